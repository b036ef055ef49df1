import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import load_dataset

from mbgen_hf.data import sequence_table
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable


SCHEMA = BehaviorSchema.from_names(["view", "cart", "buy"])


def log(rows: list[tuple], names: tuple[str, ...] = ("user_id", "item_id", "behavior", "timestamp")) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=list(names), orient="row")


ROWS = [(7, 30, 0, 5), (3, 20, 2, 9), (7, 10, 1, 5), (7, 30, 2, 4), (3, 20, 0, 1)]


def table_rows(table: SequenceTable) -> dict:
    """user -> [(raw item, label, time)], read through the offsets."""
    return {
        user: [
            (table.item_ids[table.items[i]], table.behaviors[i], table.timestamps[i])
            for i in range(table.offsets[row], table.offsets[row + 1])
        ]
        for row, user in enumerate(table.user_ids.tolist())
    }


def test_sequence_table_sorts_by_user_and_time_and_keeps_ties() -> None:
    table = SequenceTable.from_log(log(ROWS), SCHEMA)
    assert table_rows(table) == {3: [(20, 0, 1), (20, 2, 9)], 7: [(30, 2, 4), (30, 0, 5), (10, 1, 5)]}
    assert table.item_ids.tolist() == [10, 20, 30] and table.lengths.tolist() == [2, 3]
    assert (table.num_users, table.num_items, table.num_interactions) == (2, 3, 5)
    dtypes = [array.dtype for array in (table.offsets, table.items, table.behaviors, table.timestamps)]
    assert dtypes == [np.int64, np.int32, np.int8, np.int64] and table.session_ids is None


def test_sequence_table_takes_string_ids() -> None:
    table = SequenceTable.from_log(log([("b", "é", 0, 1), ("a", "x", 1, 2), ("b", "项", 2, 0)]), SCHEMA)
    assert table_rows(table) == {"a": [("x", 1, 2)], "b": [("项", 2, 0), ("é", 0, 1)]}


@pytest.mark.parametrize("names", [[900, 5, 70], ["s900", "s5", "s70"]])
def test_sequence_table_numbers_sessions_by_first_appearance(names: list) -> None:
    a, b, c = names
    rows = [(1, 1, 0, 1, b), (1, 2, 0, 2, b), (1, 3, 0, 3, a), (1, 4, 0, 4, b), (2, 1, 0, 1, a), (2, 1, 0, 0, c)]
    table = SequenceTable.from_log(log(rows, ("user_id", "item_id", "behavior", "timestamp", "session_id")), SCHEMA)
    assert table.session_ids.tolist() == [0, 0, 1, 0, 0, 1] and table.session_ids.dtype == np.int32


@pytest.mark.parametrize("sessions", [False, True])
@pytest.mark.parametrize("ids", [pl.Int64, pl.String])
def test_sequence_table_round_trip_and_dataset(sessions: bool, ids: pl.DataType, tmp_path: Path) -> None:
    frame = log(ROWS).with_columns(pl.col("user_id", "item_id").cast(ids))
    if sessions:
        frame = frame.with_columns(session_id=pl.col("timestamp") > 4)
    table = SequenceTable.from_log(frame, SCHEMA)
    table.save(tmp_path)
    loaded = SequenceTable.load(tmp_path)
    assert loaded.schema == SCHEMA
    for name in ("user_ids", "item_ids", "offsets", "items", "behaviors", "timestamps", "session_ids"):
        before, after = getattr(table, name), getattr(loaded, name)
        if before is None:
            assert after is None
        else:
            assert before.dtype == after.dtype and before.tolist() == after.tolist(), name
    dataset = table.to_dataset()
    assert dataset.features["behaviors"].feature.names == ["view", "cart", "buy"]
    assert dataset[1]["timestamps"] == [4, 5, 5] and dataset[1]["behaviors"] == [2, 0, 1]
    assert ("session_ids" in dataset.features) == sessions
    read_back = load_dataset(
        "parquet", data_files=str(tmp_path / "sequences.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read_back.features == dataset.features and read_back.to_list() == dataset.to_list()


def test_sequence_table_load_names_the_missing_file(tmp_path: Path) -> None:
    SequenceTable.from_log(log(ROWS), SCHEMA).save(tmp_path)
    assert json.loads((tmp_path / "schema.json").read_text())["target"] == "buy"
    (tmp_path / "catalog.parquet").unlink()
    with pytest.raises(ValueError, match="prepared folder holding catalog.parquet, found none"):
        SequenceTable.load(tmp_path)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (log(ROWS).head(0), "at least one interaction"),
        (log(ROWS).drop("item_id"), r"without \['item_id'\]"),
        (log([(1, None, 0, 1)]), r"no nulls, found some in \['item_id'\]"),
        (log([(1, 1, 3, 1)]), "labels from 0 to 2, found 3 to 3"),
        (log([(1, 1, -1, 1)]), "labels from 0 to 2, found -1 to -1"),
        (log([(1, 1, "buy", 1)]), "class labels in 'behavior', found String"),
    ],
)
def test_sequence_table_rejects_a_bad_frame(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceTable.from_log(frame, SCHEMA)


def test_sample_users_keeps_their_rows_and_the_items_that_occur() -> None:
    rows = [(user, 10 * (user % 5) + place, place % 3, place) for user in range(40) for place in range(1 + user % 3)]
    table = SequenceTable.from_log(log(rows), SCHEMA)
    part = table.sample_users(12, seed=3)
    assert part.num_users == 12 and part.user_ids.tolist() == sorted(part.user_ids.tolist())
    whole = table_rows(table)
    assert table_rows(part) == {user: whole[user] for user in part.user_ids.tolist()}
    assert sorted(set(part.items.tolist())) == list(range(part.num_items)) and part.num_items < table.num_items
    assert part.fingerprint() == table.sample_users(12, seed=3).fingerprint()
    assert part.fingerprint() != table.sample_users(12, seed=4).fingerprint()
    assert table.sample_users(40) is table
    with pytest.raises(ValueError, match="at least 1 user, found 0"):
        table.sample_users(0)


@pytest.mark.parametrize("times", ["many ties", "wide"])
@pytest.mark.parametrize("at_once", [50, 1 << 23])
def test_sequence_table_sorts_large_logs_in_groups(times: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_table, "SORTED_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    # Wide times with many users do not fit into one integer key.
    stamps = rng.integers(0, 5, 1000) if times == "many ties" else rng.integers(0, 2**60, 1000)
    frame = log(list(zip(rng.integers(0, 70, 1000), range(1000), [0] * 1000, stamps, strict=True)))
    table = SequenceTable.from_log(frame, SCHEMA)
    expected = frame.sort("user_id", "timestamp", maintain_order=True)
    assert table.item_ids[table.items].tolist() == expected["item_id"].to_list()
    assert np.repeat(table.user_ids, table.lengths).tolist() == expected["user_id"].to_list()
    ordered = SequenceTable.from_log(expected, SCHEMA)
    assert ordered.fingerprint() == table.fingerprint()
