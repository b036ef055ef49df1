"""The `datasets` builders, used directly: rows, splits, features, and caches that never answer for another log."""

import importlib.util
import json
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import datasets
import numpy as np
import pytest
from raw_forms import MBGEN_TEXT, write_raw

from mbgen_hf import build_dataset
from mbgen_hf.public_datasets.builder import PublicDatasetBuilder
from mbgen_hf.public_datasets.cards import source_card
from mbgen_hf.public_datasets.catalog import CONFIGS, PUBLIC_DATASETS, RawForm, public_dataset
from mbgen_hf.public_datasets.splits import SPLITS


SCRIPTS = Path(__file__).resolve().parents[2] / "dataset_scripts"
RULES = {"min_item_count": 0, "min_user_interactions": 0, "window": None, "sample_users": None}
LONG = "".join(
    f"{user}\t{item}\tpv\t{1511568000 + day * 86_400 + item}\n"
    for user in (1, 2, 3)
    for day in range(4)
    for item in (1, 2)
)


def builder_class(name: str, script: Path | None = None) -> type[PublicDatasetBuilder]:
    """The builder of a file that is no module of any package."""
    spec = importlib.util.spec_from_file_location(f"{name}_builder", script or SCRIPTS / name / f"{name}_builder.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return next(
        value for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, PublicDatasetBuilder) and value is not PublicDatasetBuilder
    )  # fmt: skip


def built(name: str, folder: Path, cache: Path, **arguments: object) -> tuple[PublicDatasetBuilder, dict]:
    builder = builder_class(name)(data_dir=folder, cache_dir=str(cache), **arguments)
    builder.download_and_prepare()
    return builder, builder.as_dataset()


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def test_every_public_log_has_a_builder_and_the_card_that_the_catalog_writes() -> None:
    assert sorted(path.name for path in SCRIPTS.iterdir()) == sorted(PUBLIC_DATASETS)
    for name, dataset in PUBLIC_DATASETS.items():
        builder = builder_class(name)
        assert name == builder.DATASET and builder.__doc__
        assert [config.name for config in builder.BUILDER_CONFIGS] == ["sequential", "session"]
        assert {config.version for config in builder.BUILDER_CONFIGS} == {builder.VERSION}
        assert (SCRIPTS / name / "README.md").read_text(encoding="utf-8") == source_card(dataset)


@pytest.mark.parametrize("config", ["sequential", "session"])
def test_a_builder_yields_the_rows_of_build_dataset(config: str, tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "raw", {"retail.txt": LONG})
    builder, splits = built("retail", folder, tmp_path / "cache", config_name=config, rules=RULES)
    table, _ = build_dataset("retail", folder, config=config, **RULES)
    assert builder.table.fingerprint() == table.fingerprint() and set(splits) == set(SPLITS)
    assert [len(splits[split]) for split in SPLITS] == [3, 3, 3]
    assert splits["test"]["item_ids"][:] == [[0, 1] * 4] * 3
    held_out = 1 if config == "sequential" else 2
    assert splits["validation"]["item_ids"][:] == [([0, 1] * 4)[:-held_out]] * 3
    assert splits["train"]["item_ids"][:] == [([0, 1] * 4)[: -2 * held_out]] * 3
    assert [splits[split]["history_length"][0] for split in SPLITS] == [
        8 - 2 * held_out,
        8 - 2 * held_out,
        8 - held_out,
    ]
    features = splits["train"].features
    assert features["behaviors"].feature.names == ["page_view", "favorite", "cart", "purchase"]
    assert features["user_id"] == datasets.Value("int64") and ("session_ids" in features) == (config == "session")
    assert set(next(iter(builder.as_streaming_dataset(split="test")))) == set(features)


def test_a_second_builder_does_not_hit_the_cache_of_the_first(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    raw = write_raw(tmp_path / "raw", {"retail.txt": LONG, "ijcai.txt": MBGEN_TEXT})
    _, retail = built("retail", raw, cache, rules=RULES)
    _, ijcai = built("ijcai", raw, cache, rules=RULES)
    assert len(retail["test"]) == 3 and len(ijcai["test"]) == 2
    assert ijcai["test"].features["behaviors"].feature.names[0] == "click"
    _, session = built("retail", raw, cache, rules=RULES, config_name="session")
    assert "session_ids" in session["test"].features and "session_ids" not in retail["test"].features
    _, fewer = built("retail", raw, cache, rules=RULES | {"sample_users": 0.5})
    assert len(fewer["test"]) < 3


def test_other_raw_files_or_other_code_are_no_stale_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    raw = write_raw(tmp_path / "raw", {"retail.txt": LONG})
    first, _ = built("retail", raw, cache, rules=RULES)
    again, _ = built("retail", raw, cache, rules=RULES)
    assert again.cache_dir == first.cache_dir
    write_raw(raw, {"retail.txt": LONG.replace("\tpv\t", "\tbuy\t")})
    changed, splits = built("retail", raw, cache, rules=RULES)
    assert changed.cache_dir != first.cache_dir and splits["test"][0]["behaviors"] == [3] * 8
    script = Path(shutil.copy(SCRIPTS / "retail" / "retail_builder.py", tmp_path / "retail_builder.py"))
    script.write_text(script.read_text() + "\n# another comment\n")
    other = builder_class("retail", script)(data_dir=raw, cache_dir=str(cache), rules=RULES)
    assert other.cache_dir != changed.cache_dir


BOTH_MARK, VALIDATION_MARK, TEST_MARK = 9001, 9002, 9003
MARKS = {BOTH_MARK, VALIDATION_MARK, TEST_MARK}


def marked_rows(config: str) -> list[tuple[int, int, int, datetime]]:
    """(user, item, behavior number, local time): every mark occurs forty times or more, in held-out rows alone."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(40):
        for day in range(5):
            items = rng.integers(0, 12, 3).tolist()
            if config == "session" and day >= 3:
                items[1:] = [BOTH_MARK, VALIDATION_MARK if day == 3 else TEST_MARK]
            if config == "sequential" and day == 4:
                items[1:] = [VALIDATION_MARK, TEST_MARK]
            start = datetime(2014, 9, 1, 12, tzinfo=ZoneInfo("Asia/Shanghai"))
            rows += [(user, item, 0, start + timedelta(days=day, seconds=at)) for at, item in enumerate(items)]
    return rows


def write_marked(folder: Path, form: RawForm, config: str) -> Path:
    rows = marked_rows(config)
    if form.reading is None:
        by_user = {str(user): [row for row in rows if row[0] == user] for user in range(40)}
        parts = {
            "SMB.inter": {user: [row[1] for row in own] for user, own in by_user.items()},
            "SMB.behavior": {user: ["p3s"] * len(own) for user, own in by_user.items()},
            "SMB.session": {user: [row[3].day for row in own] for user, own in by_user.items()},
            "SMB.time": {user: [f"{row[3]:%Y-%m-%d %H:%M:%S}" for row in own] for user, own in by_user.items()},
            "behavior_level": {"p3s": 0, "conversion": 1},
        }
        return write_raw(folder, {f"X.{part}.json": json.dumps(value) for part, value in parts.items()})
    reading = form.reading
    separator, pattern = reading.get("separator", ","), reading.get("timestamp_format", "s").replace("%.f", "")
    columns = reading["columns"]
    named = any(isinstance(column, str) for column in columns.values())
    places = list(range(4)) if named else list(columns.values())
    lines = []
    for user, item, label, time in rows:
        shown = int(time.timestamp()) if pattern == "s" else time.strftime(pattern)
        values = {"user_id": user, "item_id": item, "behavior": list(reading["behaviors"])[label], "timestamp": shown}
        fields = ["0"] * (max(places) + 1)
        for role, place in zip(columns, places, strict=True):
            fields[place] = str(values[role])
        lines.append(separator.join(fields) + "\n")
    header = separator.join(columns.values()) + "\n" if named else ""
    files = [name.replace("?", "a").replace("*", "") for name in form.files]
    return write_raw(folder, {name: header + "".join(lines[at :: len(files)]) for at, name in enumerate(files)})


FORMS = [(name, form.name) for name, dataset in PUBLIC_DATASETS.items() for form in dataset.forms]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_nothing_held_out_is_learned_or_reaches_an_earlier_split(
    name: str, form: str, config: str, tmp_path: Path
) -> None:
    raw = write_marked(tmp_path / "raw", public_dataset(name).form(form), config)
    rules = {"sample_users": None, "window": None, "min_item_count": 5}
    counted, _ = built(name, raw, tmp_path / "a", config_name=config, rules=rules)
    assert counted.table.item_ids.tolist() == list(range(12))  # the marks are frequent, yet not in training rows
    builder, splits = built(name, raw, tmp_path / "b", config_name=config, rules=rules | {"item_count_over": "all"})

    def found(split: str, held_out: bool) -> set[int]:
        items = set()
        for row in splits[split]:
            shown = row["history_length"]
            items |= set(row["item_ids"][shown:] if held_out else row["item_ids"][:shown])
        return set(builder.table.item_ids[sorted(items)].tolist()) & MARKS

    both = {BOTH_MARK} if config == "session" else set()
    assert found("train", False) == found("train", True) == found("validation", False) == set()
    assert found("validation", True) == found("test", False) == both | {VALIDATION_MARK}
    assert found("test", True) == both | {TEST_MARK}


def test_a_builder_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="UserBehavior.csv from https://tianchi.aliyun.com/.*into this folder"):
        builder_class("retail")(data_dir=tmp_path)
