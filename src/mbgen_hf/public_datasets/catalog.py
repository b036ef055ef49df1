"""What is known about each public log: where it comes from, how its raw files look, what the papers do with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mbgen_hf.data.prepare import PreparationRules


CONFIGS = ("sequential", "session")
CHINA = "Asia/Shanghai"
FIRST_COLUMNS = {"user_id": 0, "item_id": 1, "behavior": 2, "timestamp": 3}
SECONDS = "%Y-%m-%d %H:%M:%S%.f"  # some exports write .0 behind the seconds


@dataclass(frozen=True)
class RawForm:
    """One of the forms in which a log is handed around.

    Args:
        name: what `form` is set to.
        files: patterns of file names, without the `.gz` or `.zst` of a compressed one; each must match, in order.
        source: where to get the files.
        reading: keyword arguments of `read_interaction_log`; `None` for GAMER's JSON files.
        rules: fields of `PreparationRules` that this form sets otherwise than the dataset's presets.
        note: what a reader of the card should know about it.
    """

    name: str
    files: tuple[str, ...]
    source: str
    reading: Mapping[str, Any] | None
    rules: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class PublishedRow:
    """Statistics as a paper prints them; `None` where it prints none."""

    paper: str
    config: str
    users: int
    items: int
    interactions: int
    sessions: int | None = None


@dataclass(frozen=True)
class PublicDataset:
    """A public log.

    Args:
        name: what `mbgen prepare` and `build_dataset` call it.
        title: its usual name.
        description: what it holds, in a sentence or two.
        terms: the terms it is handed out under.
        levels: behaviors in order of depth, and their levels.
        target: target behavior.
        forms: the raw forms that can be read.
        presets: the papers' rules for each of `CONFIGS`.
        published: what the papers print about it.
    """

    name: str
    title: str
    description: str
    terms: str
    levels: Mapping[str, int]
    target: str
    forms: tuple[RawForm, ...]
    presets: Mapping[str, PreparationRules]
    published: tuple[PublishedRow, ...]

    def form(self, name: str) -> RawForm:
        """A raw form by name; raises `ValueError` for an unknown one."""
        found = {form.name: form for form in self.forms}
        if name not in found:
            raise ValueError(f"`form`: expected one of {list(found)} for {self.name}, found {name!r}")
        return found[name]


def _presets(sessions: str, **common: Any) -> Mapping[str, PreparationRules]:
    """`sequential` filters as MBGen does (section 4.1.1, M16), `session` as GAMER does (section 4.1.1)."""
    return MappingProxyType(
        {
            "sequential": PreparationRules(min_item_count=5, min_user_interactions=4, **common),
            "session": PreparationRules(
                min_item_count=0, min_user_interactions=0, sessions=sessions, min_sessions=3, **common
            ),
        }
    )


def _mbgen_form(name: str, behaviors: Mapping[str, str]) -> RawForm:
    return RawForm(
        name="mbgen",
        files=(f"{name}.txt",),
        source="the folder that https://github.com/anananan116/MBGen names in data/raw_dataset/README.md",
        reading={"columns": FIRST_COLUMNS, "has_header": False, "separator": "\t", "behaviors": behaviors},
        note="MBGen's text: user, item, behavior (pv, fav, cart, buy), time; tab-separated, no header.",
    )


GAMER_FORM = RawForm(
    name="smb",
    files=(*(f"*.SMB.{part}.json" for part in ("inter", "behavior", "session", "time")), "*.behavior_level.json"),
    source="data/ of https://github.com/wzf2000/GAMER (Git LFS)",
    reading=None,
    rules={"window": None, "sample_users": None},
    note="GAMER's JSON files, user -> list; already sampled, sessions given, behaviors and levels as the file says.",
)  # fmt: skip

RETAIL_BEHAVIORS = {"pv": "page_view", "fav": "favorite", "cart": "cart", "buy": "purchase"}
IJCAI_BEHAVIORS = {0: "click", 3: "favorite", 1: "cart", 2: "purchase"}
IJCAI_READING = {
    "columns": {"user_id": "user_id", "item_id": "item_id", "behavior": "action_type", "timestamp": "time_stamp"},
    "behaviors": IJCAI_BEHAVIORS,
    "timestamp_format": "%m%d",
    "year": 2014,
    "timezone": CHINA,
}
TMALL_BEHAVIORS = {"click": "click", "collect": "collect", "cart": "cart", "alipay": "alipay"}

RETAIL = PublicDataset(
    name="retail",
    title="Retail (Taobao UserBehavior)",
    description="Page views, favorites, carts and purchases on Taobao, 25 November to 3 December 2017.",
    terms="Alibaba Tianchi data set 649: research and non-commercial use, with citation. Read them at the source.",
    levels={"page_view": 0, "favorite": 1, "cart": 1, "purchase": 2},
    target="purchase",
    forms=(
        _mbgen_form("retail", RETAIL_BEHAVIORS),
        RawForm(
            name="userbehavior",
            files=("UserBehavior.csv",),
            source="https://tianchi.aliyun.com/dataset/649",
            reading={
                "columns": {"user_id": 0, "item_id": 1, "behavior": 3, "timestamp": 4},
                "has_header": False,
                "behaviors": RETAIL_BEHAVIORS,
                "on_bad_rows": "skip",
            },
            rules={"window": f"9@2017-11-25:{CHINA}"},
            note=(
                "The original, about 100 million rows: user, item, category, behavior, epoch seconds; no header. It "
                "holds a few impossible times: negative ones are skipped, those outside the documented nine days "
                "dropped, both counted in the report."
            ),
        ),
    ),
    presets=_presets("gap:1800"),
    published=(PublishedRow("MBGen table 2", "sequential", 147_894, 97_842, 7_651_493),),
)

IJCAI = PublicDataset(
    name="ijcai",
    title="IJCAI (IJCAI-15 repeat buyers, Tmall)",
    description="Clicks, favorites, carts and purchases on Tmall, 11 May to 11 November; days without time.",
    terms="Competition data of Alibaba Tianchi: research use. Read them at the source.",
    levels={"click": 0, "favorite": 1, "cart": 1, "purchase": 2},
    target="purchase",
    forms=(
        _mbgen_form("ijcai", {"pv": "click", "fav": "favorite", "cart": "cart", "buy": "purchase"}),
        RawForm(
            name="user_log",
            files=("user_log_format1.csv",),
            source="https://tianchi.aliyun.com/dataset/42 (Repeat Buyers Prediction)",
            reading=IJCAI_READING,
            note=(
                "The contest's log, 55 million rows; time_stamp is MMDD, the year is 2014 (the contest ran in the "
                "following spring). Within a day the order of the file counts."
            ),
        ),
        RawForm(
            name="sample",
            files=("data_sample.csv",),
            source="an extract of user_log_format1.csv with the row number as its first column",
            reading=IJCAI_READING,
            note="A sample in the contest's form, whole users with their original row numbers.",
        ),
    ),
    presets=_presets(f"day:{CHINA}"),
    published=(PublishedRow("MBGen table 2", "sequential", 423_119, 351_221, 32_685_371),),
)

TMALL = PublicDataset(
    name="tmall",
    title="Tmall (Tianchi 140281)",
    description="Clicks, collects, carts and Alipay payments on Tmall.",
    terms="Alibaba Tianchi data set 140281: research and non-commercial use. Read them at the source.",
    levels={"click": 0, "collect": 1, "cart": 1, "alipay": 2},
    target="alipay",
    forms=(
        GAMER_FORM,
        RawForm(
            name="log",
            files=("tianchi_2014002_rec_tmall_log_part?.txt",),
            source="https://tianchi.aliyun.com/dataset/140281",
            reading={
                "columns": {"item_id": 0, "user_id": 1, "behavior": 2, "timestamp": 3},
                "has_header": False,
                "separator": "\x01",
                "behaviors": TMALL_BEHAVIORS,
                "timestamp_format": SECONDS,
                "timezone": CHINA,
            },
            note=(
                "The log, over a thousand million rows in three parts of 15 to 18 GB: item_id, user_id, action, vtime "
                "between \\x01, no header. Users and days are chosen while it is read."
            ),
        ),
        RawForm(
            name="sample",
            files=("*sam_tianchi_2014002_rec_tmall_log.csv",),
            source="https://tianchi.aliyun.com/dataset/140281",
            reading={
                "columns": {"item_id": "item_id", "user_id": "user_id", "behavior": "action", "timestamp": "vtime"},
                "behaviors": TMALL_BEHAVIORS,
                "timestamp_format": "%Y/%m/%d %H:%M",
                "timezone": CHINA,
            },
            note="The sample beside it: item_id,user_id,action,vtime as CSV with a header, times to the minute.",
        ),
    ),
    presets=_presets(f"day:{CHINA}", window=f"7:{CHINA}", sample_users=0.25),
    published=(PublishedRow("GAMER table 1", "session", 217_374, 379_450, 3_818_122, 856_756),),
)

JDATA = PublicDataset(
    name="jdata",
    title="JData (JD.com)",
    description="Page views, clicks, collects, carts and purchases on JD.com, February to April.",
    terms="Competition data of JD.com: research use. Read them at the source.",
    levels={"page_view": 0, "click": 1, "collect": 2, "cart": 2, "purchase": 3},
    target="purchase",
    forms=(
        GAMER_FORM,
        RawForm(
            name="jdata2016",
            files=("JData_Action_201602.csv", "JData_Action_201603*.csv", "JData_Action_201604.csv"),
            source="the JData 2017 competition on high-potential users, https://jdata.jd.com",
            reading={
                "columns": {"user_id": "user_id", "item_id": "sku_id", "behavior": "type", "timestamp": "time"},
                "behaviors": {1: "page_view", 6: "click", 5: "collect", 2: "cart", 4: "purchase"},
                "drop_behaviors": [3],
                "timestamp_format": SECONDS,
                "timezone": CHINA,
            },
            note="Three monthly files (and 201603_extra where there is one); removals from the cart are dropped.",
        ),
        RawForm(
            name="jdata2018",
            files=("jdata_action.csv",),
            source="the JData 2019 competition on category and shop, https://jdata.jd.com",
            reading={
                "columns": {"user_id": "user_id", "item_id": "sku_id", "behavior": "type", "timestamp": "action_time"},
                "behaviors": {1: "page_view", 3: "collect", 5: "cart", 2: "purchase"},
                "drop_behaviors": [4],
                "timestamp_format": SECONDS,
                "timezone": CHINA,
            },
            note="The log of 2018; it knows no click, and comments, which follow a purchase, are dropped.",
        ),
    ),
    presets=_presets("gap:1800", sample_users=0.1),
    published=(PublishedRow("GAMER table 1", "session", 10_010, 17_100, 1_643_212, 195_860),),
)

SHORTVIDEOAD = PublicDataset(
    name="shortvideoad",
    title="ShortVideoAD",
    description=(
        "Advertisements on a short-video platform in one week: played for over 3 seconds (p3s), clicked, converted."
    ),
    terms="Released with GAMER, in a repository without licence file: ask its authors before you hand it on.",
    levels={"p3s": 0, "click": 1, "conversion": 2},
    target="conversion",
    forms=(GAMER_FORM,),
    presets=_presets("given"),
    published=(PublishedRow("GAMER table 1", "session", 48_779, 168_530, 7_877_083, 1_874_719),),
)

PUBLIC_DATASETS: Mapping[str, PublicDataset] = MappingProxyType(
    {dataset.name: dataset for dataset in (RETAIL, IJCAI, TMALL, JDATA, SHORTVIDEOAD)}
)


def public_dataset(name: str) -> PublicDataset:
    """A public log by name; raises `ValueError` for an unknown one."""
    if name not in PUBLIC_DATASETS:
        raise ValueError(f"`dataset`: expected one of {list(PUBLIC_DATASETS)}, found {name!r}")
    return PUBLIC_DATASETS[name]


__all__ = ["CONFIGS", "PUBLIC_DATASETS", "PublicDataset", "PublishedRow", "RawForm", "public_dataset"]
