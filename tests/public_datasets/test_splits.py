"""Nothing held out reaches an earlier split, and nothing is learned from it: marked items are planted to see."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mbgen_hf.data.prepare import prepare
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import SessionRule, with_sessions
from mbgen_hf.evaluation.protocols import protocol_cases, protocol_training_end
from mbgen_hf.public_datasets.splits import CONFIG_PROTOCOLS, SPLITS, split_features, split_tables
from mbgen_hf.simulation import simulate_shop


VALIDATION_MARK, TEST_MARK, BOTH_MARK = 9001, 9002, 9003
RULES = {"sequential": {}, "session": {"sessions": "gap:1800"}}


def marked_log(folder: Path, num_users: int = 40) -> Path:
    """Every user has five sessions of three rows over shared items; marked items stand in the last two alone."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(num_users):
        for session in range(5):
            items = rng.integers(0, 12, 3)
            if session == 3:
                items[1:] = [BOTH_MARK, VALIDATION_MARK]
            if session == 4:
                items[1:] = [BOTH_MARK, TEST_MARK]
            rows += [(user, item, "buy", session * 10_000 + place) for place, item in enumerate(items)]
    path = folder / "log.csv"
    pl.DataFrame(rows, schema=["user_id", "item_id", "behavior", "timestamp"], orient="row").write_csv(path)
    return path


def items_of(table: SequenceTable, protocol: str, split: str, part: str) -> set[int]:
    found: set[int] = set()
    for block in split_tables(table, protocol, split):
        for items, shown in zip(block["item_ids"].to_pylist(), block["history_length"].to_pylist(), strict=True):
            found |= set(items[:shown] if part == "history" else items[shown:])
    return set(table.item_ids[sorted(found)].tolist())


def test_no_held_out_session_is_counted_or_reaches_an_earlier_split(tmp_path: Path) -> None:
    marks = {VALIDATION_MARK, TEST_MARK, BOTH_MARK}
    path = marked_log(tmp_path)
    # The marked items occur 40 to 80 times, yet in held-out sessions only: by training counts they are unknown.
    counted, _ = prepare(path, tmp_path / "a", behaviors=["buy"], sessions="gap:1800")
    assert not marks & set(counted.item_ids.tolist())
    everywhere, _ = prepare(path, tmp_path / "b", behaviors=["buy"], sessions="gap:1800", item_count_over="all")
    assert marks <= set(everywhere.item_ids.tolist())
    protocol = "session_wise"
    assert not marks & items_of(everywhere, protocol, "train", "history")
    assert items_of(everywhere, protocol, "train", "held out") == set()
    assert not marks & items_of(everywhere, protocol, "validation", "history")
    assert {VALIDATION_MARK, BOTH_MARK} == marks & items_of(everywhere, protocol, "validation", "held out")
    assert {VALIDATION_MARK, BOTH_MARK} == marks & items_of(everywhere, protocol, "test", "history")
    assert {TEST_MARK, BOTH_MARK} == marks & items_of(everywhere, protocol, "test", "held out")


def test_no_held_out_interaction_is_counted_or_reaches_an_earlier_split(tmp_path: Path) -> None:
    rows = [f"{user},{user % 4},buy,{time}\n" for user in range(40) for time in range(4)]
    rows += [f"{user},{VALIDATION_MARK},buy,10\n{user},{TEST_MARK},buy,11\n" for user in range(40)]
    (tmp_path / "log.csv").write_text("user_id,item_id,behavior,timestamp\n" + "".join(rows))
    counted, _ = prepare(tmp_path / "log.csv", tmp_path / "a", behaviors=["buy"])
    assert counted.item_ids.tolist() == [0, 1, 2, 3]
    table, _ = prepare(tmp_path / "log.csv", tmp_path / "b", behaviors=["buy"], item_count_over="all")
    marks = {VALIDATION_MARK, TEST_MARK}
    for split, history, held_out in (
        ("train", set(), set()),
        ("validation", set(), {VALIDATION_MARK}),
        ("test", {VALIDATION_MARK}, {TEST_MARK}),
    ):
        assert marks & items_of(table, "leave_one_out", split, "history") == history
        assert items_of(table, "leave_one_out", split, "held out") == held_out


@pytest.mark.parametrize("config", CONFIG_PROTOCOLS)
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_splits_are_those_of_the_protocols(config: str, block: int) -> None:
    shop = simulate_shop(num_users=60, num_items=24, seed=3)
    table = shop.table()
    if config == "session":
        table = with_sessions(table, SessionRule("gap", gap_seconds=20_000))
    protocol = CONFIG_PROTOCOLS[config]
    blocks = {split: list(split_tables(table, protocol, split, block)) for split in SPLITS}
    assert all(part.schema == split_features(table).arrow_schema for parts in blocks.values() for part in parts)
    assert (len(blocks["test"]) == len(blocks["train"]) == 1) == (block > 10_000)
    rows = {split: [row for part in parts for row in part.to_pylist()] for split, parts in blocks.items()}
    end = protocol_training_end(table, protocol)
    by_id = dict(zip(table.user_ids.tolist(), range(table.num_users), strict=True))
    for split in SPLITS:
        for row in rows[split]:
            first = table.offsets[by_id[row["user_id"]]]
            for name, flat in (("item_ids", table.items), ("behaviors", table.behaviors),
                               ("timestamps", table.timestamps)):  # fmt: skip
                assert row[name] == flat[first : first + len(row[name])].tolist()
            if config == "session":
                assert row["session_ids"] == table.session_ids[first : first + len(row["item_ids"])].tolist()
    for row in rows["train"]:
        user = by_id[row["user_id"]]
        assert len(row["item_ids"]) == row["history_length"] == end[user] - table.offsets[user]
    for split in ("validation", "test"):
        cases = protocol_cases(table, protocol, split, 10**6)
        targets: dict[int, set] = {}
        for user, items in zip(cases.users.tolist(), cases.targets.tolist(), strict=True):
            targets.setdefault(user, set()).update(item for item in items if item >= 0)
        shown = dict(zip(cases.users.tolist(), (cases.history_end - cases.history_start).tolist(), strict=True))
        assert {by_id[row["user_id"]]: set(row["item_ids"][row["history_length"] :]) for row in rows[split]} == targets
        assert {by_id[row["user_id"]]: row["history_length"] for row in rows[split]} == shown
    assert all(len(rows[split]) == len(rows["test"]) for split in SPLITS)


def test_unknown_split() -> None:
    table = simulate_shop(num_users=20, num_items=12, seed=3).table()
    with pytest.raises(ValueError, match="`split`: expected one of .* found 'dev'"):
        list(split_tables(table, "leave_one_out", "dev"))
