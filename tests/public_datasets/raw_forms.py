"""About ten lines of every raw form, and the interactions they hold: (user, item, behavior, UTC time)."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


MBGEN_TEXT = """\
1\t10\tpv\t1511568000
1\t11\tfav\t1511568010
1\t11\tbuy\t1511568020.0
2\t10\tpv\t1511568005
2\t12\tcart\t1511568006
2\t12\tbuy\t1511568007
1\t10\tpv\t1511600000
1\t12\tcart\t1511700000
2\t10\tpv\t1511600000
2\t11\tbuy\t1511700000
"""
MBGEN_ROWS = [
    (1, 10, "pv", 1511568000),
    (1, 11, "fav", 1511568010),
    (1, 11, "buy", 1511568020),
    (2, 10, "pv", 1511568005),
    (2, 12, "cart", 1511568006),
    (2, 12, "buy", 1511568007),
    (1, 10, "pv", 1511600000),
    (1, 12, "cart", 1511700000),
    (2, 10, "pv", 1511600000),
    (2, 11, "buy", 1511700000),
]


def named(names: dict[str, str]) -> list[tuple]:
    return [(user, item, names[behavior], time) for user, item, behavior, time in MBGEN_ROWS]


RETAIL_NAMES = {"pv": "page_view", "fav": "favorite", "cart": "cart", "buy": "purchase"}
# The fifth row has a negative time, as some of the original do: it is skipped.
USER_BEHAVIOR = """\
1,2268318,2520377,pv,1511544070
1,2333346,2520771,fav,1511561733
1,2576651,149192,cart,1511572885
1,2576651,149192,buy,1511593493
1,3830808,4181361,pv,-13490
100,2971043,4869428,pv,1511700000
100,598929,2429887,buy,1511742899
"""
USER_BEHAVIOR_ROWS = [
    (1, 2268318, "page_view", 1511544070),
    (1, 2333346, "favorite", 1511561733),
    (1, 2576651, "cart", 1511572885),
    (1, 2576651, "purchase", 1511593493),
    (100, 2971043, "page_view", 1511700000),
    (100, 598929, "purchase", 1511742899),
]
USER_LOG = """\
user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type
328862,323294,833,2882,2661,829,0
328862,844400,1271,2882,2661,829,3
328862,575153,1271,2882,,1111,2
34176,996875,1271,2882,2661,511,1
34176,1086186,1271,1253,1049,1111,0
"""
SAMPLE_LOG = """\
,user_id,item_id,time_stamp,action_type
23288863,328862,323294,829,0
23288864,328862,844400,829,3
23288865,328862,575153,1111,2
61929,34176,996875,511,1
61930,34176,1086186,1111,0
"""
USER_LOG_ROWS = [  # midnight in China
    (328862, 323294, "click", utc("2014-08-28 16:00")),
    (328862, 844400, "favorite", utc("2014-08-28 16:00")),
    (328862, 575153, "purchase", utc("2014-11-10 16:00")),
    (34176, 996875, "cart", utc("2014-05-10 16:00")),
    (34176, 1086186, "click", utc("2014-11-10 16:00")),
]
TMALL_LOG_A = "161\x01u2625\x01click\x012014-09-18 15:03:00\n161\x01u2626\x01cart\x012014-09-18 22:40:07\n"
TMALL_LOG_B = "12\x01u2625\x01alipay\x012014-09-19 00:00:01\n7\x01u2627\x01collect\x012014-09-20 19:09:30.0\n"
TMALL_LOG_ROWS = [
    ("u2625", 161, "click", utc("2014-09-18 07:03")),
    ("u2626", 161, "cart", utc("2014-09-18 14:40:07")),
    ("u2625", 12, "alipay", utc("2014-09-18 16:00:01")),
    ("u2627", 7, "collect", utc("2014-09-20 11:09:30")),
]
TMALL_SAMPLE = """\
item_id,user_id,action,vtime
i161,u2625,click,2014/9/18 15:03
i161,u2626,collect,2014/10/3 2:40
i12,u2625,alipay,2014/9/25 19:09
"""
TMALL_SAMPLE_ROWS = [
    ("u2625", "i161", "click", utc("2014-09-18 07:03")),
    ("u2626", "i161", "collect", utc("2014-10-02 18:40")),
    ("u2625", "i12", "alipay", utc("2014-09-25 11:09")),
]
JDATA_HEADER = "user_id,sku_id,time,model_id,type,cate,brand\n"
JDATA_FEBRUARY = JDATA_HEADER + (
    "266079.0,138778,2016-01-31 23:59:02,,1,8,403\n"
    "266079.0,138778,2016-01-31 23:59:03,0.0,6,8,403\n"
    "200719.0,61226,2016-01-31 23:59:07,,3,8,30\n"
)
JDATA_MARCH = JDATA_HEADER + "200719.0,72348,2016-02-29 23:59:05,0.0,5,5,159\n"
JDATA_EXTRA = JDATA_HEADER + "200719.0,72348,2016-03-05 08:00:00,,2,5,159\n"
JDATA_APRIL = JDATA_HEADER + "200719,72348,2016-03-31 23:59:01,,4,5,159\n266079,5,2016-04-01 00:00:00,,1,5,1\n"
JDATA_ROWS = [
    (266079, 138778, "page_view", utc("2016-01-31 15:59:02")),
    (266079, 138778, "click", utc("2016-01-31 15:59:03")),
    (200719, 72348, "collect", utc("2016-02-29 15:59:05")),
    (200719, 72348, "cart", utc("2016-03-05 00:00:00")),
    (200719, 72348, "purchase", utc("2016-03-31 15:59:01")),
    (266079, 5, "page_view", utc("2016-03-31 16:00:00")),
]
JDATA_2018 = """\
user_id,sku_id,action_time,module_id,type
937922,357022,2018-02-04 08:28:15,8107857,1
937922,73533,2018-02-04 08:27:07.0,8107857,3
937922,73533,2018-02-04 09:00:00,8107857,5
1369177,226519,2018-02-25 17:57:14,9001,2
1369177,226519,2018-03-01 12:00:00,9001,4
"""
JDATA_2018_ROWS = [
    (937922, 357022, "page_view", utc("2018-02-04 00:28:15")),
    (937922, 73533, "collect", utc("2018-02-04 00:27:07")),
    (937922, 73533, "cart", utc("2018-02-04 01:00:00")),
    (1369177, 226519, "purchase", utc("2018-02-25 09:57:14")),
]
DAYS = [f"2024-03-0{day} {hour}" for day, hour in [(1, "09:00:00"), (1, "09:05:00"), (2, "10:00:00"), (3, "08:00:00")]]
GAMER_FILES = {
    "SMB.inter": {"0": [5, 7, 5, 9], "12": [7, 7, 8, 5]},
    "SMB.behavior": {
        "0": ["p3s", "click", "p3s", "conversion"],
        "12": ["p3s", "p3s", "click", "conversion"],
    },
    "SMB.session": {"0": [3, 3, 4, 6], "12": [0, 0, 1, 2]},
    "SMB.time": {"0": DAYS, "12": DAYS},
    "behavior_level": {"p3s": 0, "click": 1, "conversion": 2},
    "item": {"5": {}, "7": {}, "8": {}, "9": {}},
}
GAMER_TIMES = [utc(text) for text in ("2024-03-01 01:00", "2024-03-01 01:05", "2024-03-02 02:00", "2024-03-03 00:00")]
GAMER_ROWS = [
    (int(user), item, behavior, time)
    for user in ("0", "12")
    for item, behavior, time in zip(
        GAMER_FILES["SMB.inter"][user], GAMER_FILES["SMB.behavior"][user], GAMER_TIMES, strict=True
    )
]


def gamer_files(name: str) -> dict[str, str]:
    return {f"{name}.{part}.json": json.dumps(content) for part, content in GAMER_FILES.items()}


RAW_FORMS = {
    ("retail", "mbgen"): ({"retail.txt": MBGEN_TEXT}, named(RETAIL_NAMES)),
    ("retail", "userbehavior"): ({"UserBehavior.csv": USER_BEHAVIOR}, USER_BEHAVIOR_ROWS),
    ("ijcai", "mbgen"): ({"ijcai.txt": MBGEN_TEXT}, named(RETAIL_NAMES | {"pv": "click"})),
    ("ijcai", "user_log"): ({"user_log_format1.csv": USER_LOG}, USER_LOG_ROWS),
    ("ijcai", "sample"): ({"data_sample.csv": SAMPLE_LOG}, USER_LOG_ROWS),
    ("tmall", "log"): (
        {
            "tianchi_2014002_rec_tmall_log_partb.txt": TMALL_LOG_B,
            "tianchi_2014002_rec_tmall_log_parta.txt.gz": TMALL_LOG_A,
        },
        TMALL_LOG_ROWS,
    ),
    ("tmall", "sample"): ({"(sample)sam_tianchi_2014002_rec_tmall_log.csv": TMALL_SAMPLE}, TMALL_SAMPLE_ROWS),
    ("tmall", "smb"): (gamer_files("Tmall"), GAMER_ROWS),
    ("jdata", "jdata2016"): (
        {
            "JData_Action_201604.csv": JDATA_APRIL,
            "JData_Action_201603_extra.csv": JDATA_EXTRA,
            "JData_Action_201603.csv.gz": JDATA_MARCH,
            "JData_Action_201602.csv": JDATA_FEBRUARY,
        },
        JDATA_ROWS,
    ),
    ("jdata", "jdata2018"): ({"jdata_action.csv": JDATA_2018}, JDATA_2018_ROWS),
    ("jdata", "smb"): (gamer_files("JData"), GAMER_ROWS),
    ("shortvideoad", "smb"): (gamer_files("ShortVideoAD"), GAMER_ROWS),
}


def write_raw(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder
