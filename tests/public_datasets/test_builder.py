"""The `datasets` builders, used directly: rows, splits, features, and caches that never answer for another log."""

import importlib.util
import shutil
import sys
from pathlib import Path

import datasets
import pytest
from raw_forms import MBGEN_TEXT, write_raw

from mbgen_hf import build_dataset
from mbgen_hf.public_datasets.builder import PublicDatasetBuilder
from mbgen_hf.public_datasets.cards import source_card
from mbgen_hf.public_datasets.catalog import PUBLIC_DATASETS
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


def test_a_builder_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="UserBehavior.csv from https://tianchi.aliyun.com/.*into this folder"):
        builder_class("retail")(data_dir=tmp_path)
