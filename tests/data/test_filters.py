from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.filters import FilterStep, filter_table
from mbgen_hf.data.read_log import read_interaction_log
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import SessionRule


def log(*rows: tuple[int, int, int]) -> pl.DataFrame:
    """A log from (user, item, timestamp); the row number stands as behavior, to follow rows around."""
    users, items, times = zip(*rows, strict=True)
    numbers = np.arange(len(rows)) % 100
    return pl.DataFrame({"user_id": users, "item_id": items, "behavior": numbers, "timestamp": times})


def as_table(frame: pl.DataFrame) -> SequenceTable:
    return SequenceTable.from_log(frame, BehaviorSchema.from_names([f"b{i}" for i in range(100)]))


def as_rows(table: SequenceTable) -> pl.DataFrame:
    """The rows of a table in its order, with raw ids."""
    ids = [np.repeat(table.user_ids, table.lengths), table.item_ids[table.items]]
    names = ("user_id", "item_id", "behavior", "timestamp")
    return pl.DataFrame(dict(zip(names, [*ids, table.behaviors, table.timestamps], strict=True)))


def filter_log(frame: pl.DataFrame, *rules: object, **named: object) -> tuple[pl.DataFrame, list[FilterStep]]:
    table, steps = filter_table(as_table(frame), *rules, **named)
    return as_rows(table), steps


def plain_filter(rows: list[tuple], min_items: int, min_users: int, over: str, iterative: bool) -> list[tuple]:
    """The same rule over Python lists."""
    while True:
        before = len(rows)
        by_user: dict = {}
        for row in sorted(rows, key=lambda row: row[3]):  # stable, so that ties keep file order
            by_user.setdefault(row[0], []).append(row)
        counted = [row for own in by_user.values() for row in (own[:-2] if over == "train" else own)]
        items = Counter(row[1] for row in counted)
        rows = [row for row in rows if min_items == 0 or items[row[1]] >= min_items]
        users = Counter(row[0] for row in rows)
        rows = [row for row in rows if users[row[0]] >= min_users]
        if not iterative or len(rows) == before:
            return sorted(rows, key=lambda row: (row[0], row[3]))


def test_filter_table_counts_items_in_the_training_part_only() -> None:
    frame = log((1, 5, 1), (1, 5, 2), (1, 6, 3), (1, 6, 4), (2, 5, 1), (2, 6, 2), (2, 5, 3))
    kept, _ = filter_log(frame, min_item_count=3, min_user_interactions=0)
    assert kept["item_id"].to_list() == [5, 5, 5, 5]
    kept, _ = filter_log(frame, min_item_count=3, min_user_interactions=0, item_count_over="all")
    assert kept.height == 7
    with pytest.raises(ValueError, match="no interaction left after filtering to items with at least 4.*7 rows"):
        filter_log(frame, min_item_count=4, min_user_interactions=0)


def test_filter_table_ties_keep_file_order() -> None:
    # All at one time: the last two in file order are held out, so item 8 counts and item 9 does not.
    frame = log((1, 8, 7), (1, 9, 7), (1, 9, 7))
    kept, _ = filter_log(frame, min_item_count=1, min_user_interactions=0)
    assert kept["item_id"].to_list() == [8]
    kept, _ = filter_log(frame.reverse(), min_item_count=1, min_user_interactions=0)
    assert kept["item_id"].to_list() == [9, 9]


def test_filter_table_one_pass_leaves_what_iteration_removes() -> None:
    # Item 2 has three rows, two of them from user 2, who goes for having too few interactions.
    frame = log((1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 2, 4), (2, 2, 1), (2, 2, 2))
    kept, steps = filter_log(frame, 3, 3, "all")
    assert (kept.height, len(steps)) == (4, 2)
    kept, steps = filter_log(frame, 3, 3, "all", iterative=True)
    assert kept["item_id"].to_list() == [1, 1, 1] and len(steps) == 6
    assert [(s.rows_before, s.rows_after) for s in steps] == [(6, 6), (6, 4), (4, 3), (3, 3), (3, 3), (3, 3)]


def test_filter_table_steps_tell_rows_users_and_items() -> None:
    frame = log((1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 2, 4), (2, 2, 1), (2, 1, 2))
    _, (items, users) = filter_log(frame, 3, 3, "all")
    assert (items.name, users.name) == ("items with at least 3 interactions", "users with at least 3 interactions")
    assert items.to_dict() == {
        "name": items.name,
        "rows_before": 6,
        "rows_after": 4,
        "users_before": 2,
        "users_after": 2,
        "items_before": 2,
        "items_after": 1,
    }
    assert (users.users_before, users.users_after, users.rows_after) == (2, 1, 3)


@pytest.mark.parametrize("over", ["train", "all"])
@pytest.mark.parametrize("iterative", [False, True])
@pytest.mark.parametrize("ids", [pl.Int64, pl.String])
def test_filter_table_agrees_with_plain_python(over: str, iterative: bool, ids: pl.DataType) -> None:
    rng = np.random.default_rng(7)
    size = 3000
    frame = log(*zip(rng.integers(0, 300, size), rng.integers(0, 200, size), rng.integers(0, 40, size), strict=True))
    frame = frame.with_columns(pl.col("user_id", "item_id").cast(ids))
    kept, _ = filter_log(frame, 8, 7, over, iterative)
    expected = plain_filter(frame.rows(), 8, 7, over, iterative)
    assert kept.rows() == expected and 0 < len(expected) < size


def test_filter_table_zero_minima_keep_everything() -> None:
    kept, steps = filter_log(log((2, 1, 1), (1, 1, 2)), 0, 0)
    assert kept["user_id"].to_list() == [1, 2]
    assert [step.rows_after for step in steps] == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_item_count": -1}, "`min_item_count`: expected a non-negative integer, found -1"),
        ({"min_user_interactions": 1.5}, "`min_user_interactions`: .* found 1.5"),
        ({"item_count_over": "test"}, "`item_count_over`: expected 'train' or 'all', found 'test'"),
    ],
)
def test_filter_table_rejects_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filter_log(log((1, 1, 1)), **options)


def test_filter_table_real_log_agrees_with_its_source(data_dir: Path) -> None:
    path = data_dir / "taobao_kcore_fav_cart_buy" / "interactions.csv.gz"
    roles = {"user_id": "user", "item_id": "item", "behavior": "behavior", "timestamp": "timestamp"}
    frame = read_interaction_log(path, roles, ["fav", "cart", "buy"]).frame
    _, (items, users) = filter_log(frame, item_count_over="all")
    assert (items.items_after, round(items.rows_after / items.rows_before, 3)) == (20247, 0.9)
    assert users.items_after <= 20247 and 24_000 < users.users_after < 25_518
    kept, _ = filter_log(frame)
    assert kept.rows() == plain_filter(frame.rows(), 5, 4, "train", False)


def test_filter_table_counts_no_interaction_of_the_last_two_sessions() -> None:
    # Three sessions of user 1; items 7 and 8 fill the first, item 9 the last two. User 2 has two sessions only.
    first = [(1, 7, 0), (1, 8, 1), (1, 8, 2), (1, 7, 3)]
    frame = log(*first, (1, 9, 5000), (1, 9, 5001), (1, 9, 5002), (1, 9, 9000), (2, 7, 0), (2, 9, 1), (2, 9, 5000))
    rule = SessionRule()
    kept, steps = filter_log(frame, 2, 0, sessions=rule)
    assert kept["item_id"].to_list() == [7, 8, 8, 7, 7]
    assert steps[0].name == "items with at least 2 training interactions"
    # All but the last two interactions: item 9 has two of them.
    assert filter_log(frame, 2, 0)[0]["item_id"].to_list() == [7, 8, 8, 7, 9, 9, 9, 9, 7, 9, 9]
    kept, _ = filter_log(frame, 3, 0, "all", sessions=rule)
    assert kept["item_id"].to_list() == [7, 7, 9, 9, 9, 9, 7, 9, 9]
    with pytest.raises(ValueError, match="no interaction left after filtering to items with at least 3 training"):
        filter_log(frame, 3, 0, sessions=rule)


def test_filter_table_with_sessions_agrees_with_plain_python() -> None:
    rng = np.random.default_rng(11)
    frame = log(*zip(rng.integers(0, 60, 900), rng.integers(0, 50, 900), rng.integers(0, 90_000, 900), strict=True))
    counted: Counter = Counter()
    rows = frame.sort("user_id", "timestamp", maintain_order=True).rows()
    for user in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == user]
        sessions = [0]
        for before, after in zip(own, own[1:], strict=False):
            sessions.append(sessions[-1] + (after[3] - before[3] > 1800))
        counted.update(row[1] for row, session in zip(own, sessions, strict=True) if session < sessions[-1] - 1)
    kept, _ = filter_log(frame, 12, 0, sessions=SessionRule())
    expected = [row for row in rows if counted[row[1]] >= 12]
    assert kept.rows() == expected and 0 < len(expected) < len(rows)


def test_filter_table_numbers_given_sessions_anew() -> None:
    frame = log((1, 5, 1), (1, 6, 2), (1, 6, 3), (2, 6, 1)).with_columns(session_id=pl.Series([4, 4, 9, 1]))
    table, _ = filter_table(as_table(frame), 2, 0, "all")
    assert table.item_ids.tolist() == [6] and table.session_ids.tolist() == [0, 1, 0]
    dropped = frame.with_columns(item_id=pl.Series([5, 7, 6, 6]))
    assert filter_table(as_table(dropped), 2, 0, "all")[0].session_ids.tolist() == [0, 0]
