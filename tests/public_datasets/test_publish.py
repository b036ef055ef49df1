"""Published folders: plain `load_dataset` reads them without this package, and the upload sends exactly them."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mbgen_hf import build_dataset
from mbgen_hf.cli import main
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.public_datasets.publish import push_dataset, write_published_folder
from mbgen_hf.public_datasets.splits import SPLITS
from mbgen_hf.simulation import simulate_shop


SHOP = (
    "--columns user_id=user_id,item_id=item_id,behavior=behavior,timestamp=timestamp --behaviors click,cart,purchase"
)


@pytest.fixture(scope="module")
def shops(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shops")
    simulate_shop(num_users=80, num_items=24, seed=3).write_csv(root / "log.csv")
    for name, options in (("sequential", []), ("session", ["--sessions", "gap:20000"])):
        command = ["prepare", str(root / "log.csv"), *SHOP.split(), *options, "--output", str(root / name)]
        assert main(command) == 0
    return {name: root / name for name in ("sequential", "session")}


LOAD = """
import json, sys
sys.modules["mbgen_hf"] = None
import datasets
datasets.disable_progress_bars()
found = {}
for config in (None, "session", "session_catalog", "session_behaviors"):
    loaded = datasets.load_dataset(sys.argv[1], config, cache_dir=sys.argv[2])
    found[str(config)] = {split: rows.to_list() for split, rows in loaded.items()}
    if config == "session":
        found["names"] = loaded["test"].features["behaviors"].feature.names
        found["configs"] = datasets.get_dataset_config_names(sys.argv[1])
print(json.dumps(found))
"""


def test_plain_load_dataset_reads_the_folder_without_the_package(shops, tmp_path: Path, capsys) -> None:
    out = tmp_path / "published"
    command = ["push-dataset", "me/shop", str(shops["session"]), str(shops["sequential"]), "--output", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert "nothing uploaded" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out), str(tmp_path / "cache")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"] == ["click", "cart", "purchase"]
    assert found["configs"] == ["sequential", "session"] + [
        f"{config}_{part}" for config in ("sequential", "session") for part in ("catalog", "behaviors")
    ]
    table = SequenceTable.load(shops["session"])
    assert set(found["session"]) == set(found["None"]) == set(SPLITS)
    tests = found["session"]["test"]
    assert [row["user_id"] for row in tests] == table.user_ids.tolist()
    assert [item for row in tests for item in row["item_ids"]] == table.items.tolist()
    assert [session for row in tests for session in row["session_ids"]] == table.session_ids.tolist()
    assert [row["item_id"] for row in found["session_catalog"]["catalog"]] == table.item_ids.tolist()
    assert found["session_behaviors"]["behaviors"] == [
        {"behavior": name, "level": level, "target": name == "purchase"}
        for level, name in enumerate(("click", "cart", "purchase"))
    ]
    assert "session_ids" not in found["None"]["test"][0]


def test_shards_hold_every_row_once_and_in_order(shops, tmp_path: Path) -> None:
    files = write_published_folder([shops["session"]], tmp_path / "p", "me/shop", shard_interactions=150)
    shards = [file for file in files if file.name.startswith("test-")]
    assert len(shards) > 3 and shards[0].name == f"test-00000-of-{len(shards):05d}.parquet"
    assert not [file for file in files if file.suffix not in (".parquet", ".md", ".json")]
    rows = [row for file in shards for row in pq.read_table(tmp_path / "p" / file).to_pylist()]
    table = SequenceTable.load(shops["session"])
    assert [item for row in rows for item in row["item_ids"]] == table.items.tolist()


def test_the_card_tells_source_terms_and_every_filter(raw_folder, tmp_path: Path) -> None:
    build_dataset("retail", raw_folder("retail", "mbgen"), tmp_path / "r", min_item_count=0)
    write_published_folder([tmp_path / "r"], tmp_path / "p", "me/retail")
    card = (tmp_path / "p" / "README.md").read_text()
    for text in ("# Retail", "non-commercial", 'load_dataset("me/retail", "sequential")', "license: other",
                 "rows in the files", "`purchase` (level 2)"):  # fmt: skip
        assert text in card
    assert (tmp_path / "p" / "data" / "sequential" / "schema.json").is_file()


def test_push_sends_the_folder_as_a_dataset(shops, tmp_path: Path) -> None:
    calls = []

    class Hub:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return f"https://hub.example/datasets/{repo_id}"

        def upload_folder(self, **options):
            calls.append(options)

    with pytest.raises(ValueError, match="expected a published folder holding README.md"):
        push_dataset(tmp_path, "me/shop", api=Hub())
    write_published_folder([shops["sequential"]], tmp_path / "p", "me/shop")
    assert push_dataset(tmp_path / "p", "me/shop", private=True, api=Hub()) == "https://hub.example/datasets/me/shop"
    assert calls[0] == ("me/shop", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert (calls[1]["repo_type"], calls[1]["folder_path"]) == ("dataset", str(tmp_path / "p"))
    assert calls[1]["delete_patterns"] == "data/*"


def test_hostile_requests_end_in_one_line(shops, raw_folder, tmp_path: Path, capsys) -> None:
    build_dataset("retail", raw_folder("retail", "mbgen"), tmp_path / "retail", min_item_count=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    out = tmp_path / "out"
    for words, message in (
        ([tmp_path / "none"], "expected a prepared folder holding schema.json"),
        ([shops["session"], shops["session"]], "expected one folder for 'session'"),
        ([shops["session"], tmp_path / "retail"], "`prepared`: expected folders of one log"),
        ([shops["session"], "--output", tmp_path / "full", "--overwrite"], "found also ['thesis.tex']"),
    ):
        assert main(["push-dataset", "shop", str(shops["session"]), "--output", str(out), "--dry-run"]) == 2
        assert "`repo_id`: expected owner/name, found 'shop'" in capsys.readouterr().err and not out.exists()
        command = ["push-dataset", "me/x", *map(str, words), *([] if "--output" in words else ["--output", str(out)])]
        assert main([*command, "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not out.exists()


def test_an_earlier_result_is_replaced_whole(shops, tmp_path: Path) -> None:
    write_published_folder([shops["session"], shops["sequential"]], tmp_path / "p", "me/shop")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        write_published_folder([shops["session"]], tmp_path / "p", "me/shop")
    files = write_published_folder([shops["session"]], tmp_path / "p", "me/shop", overwrite=True)
    assert not [file for file in files if "sequential" in str(file)]
