"""Filters on a sequence table, each of which says what it took away."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import (
    MINIMUM_SESSIONS,
    SessionRule,
    session_training_end,
    users_with_sessions,
    with_sessions,
)


HELD_OUT = 2  # validation and test interaction of each user
COUNTS = ("train", "all")


@dataclass(frozen=True)
class FilterStep:
    """Rows, users and items before and after one step."""

    name: str
    rows_before: int
    rows_after: int
    users_before: int
    users_after: int
    items_before: int
    items_after: int

    @classmethod
    def between(cls, name: str, before: SequenceTable, after: SequenceTable) -> "FilterStep":
        sizes = [(table.num_interactions, table.num_users, table.num_items) for table in (before, after)]
        return cls(name, *(size for pair in zip(*sizes, strict=True) for size in pair))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def filter_table(
    table: SequenceTable,
    min_item_count: int = 5,
    min_user_interactions: int = 4,
    item_count_over: str = "train",
    iterative: bool = False,
    sessions: SessionRule | None = None,
) -> tuple[SequenceTable, list[FilterStep]]:
    """Drop rare items, then users with too few interactions left: one pass, as MBGen does.

    After one pass some items are below the minimum again, since users went and since other interactions are now
    held out; `iterative` repeats both steps until neither drops a row.

    Args:
        table: the sequences.
        min_item_count: occurrences an item needs; 0 keeps every item.
        min_user_interactions: interactions a user needs after the item step; 0 keeps every user.
        item_count_over: `train` counts what is trained on, `all` counts every interaction. Trained on is all but the
            last two interactions of each user or, with `sessions`, all but the last two sessions, and then nothing
            of a user of fewer than three.
        iterative: repeat until nothing changes.
        sessions: the rule that sessions will be cut by.

    Returns:
        The smaller table and the steps in order.

    Raises:
        ValueError: an argument is out of range, nothing is left, or what `with_sessions` raises.
    """
    for name, value in (("min_item_count", min_item_count), ("min_user_interactions", min_user_interactions)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"`{name}`: expected a non-negative integer, found {value!r}")
    if item_count_over not in COUNTS:
        raise ValueError(f"`item_count_over`: expected 'train' or 'all', found {item_count_over!r}")
    counted = "training interactions" if item_count_over == "train" else "interactions"
    steps: list[FilterStep] = []
    while True:
        before = table.num_interactions
        frequent = _frequent_items(table, min_item_count, item_count_over, sessions)
        table = _step(table, frequent, steps, f"items with at least {min_item_count} {counted}")
        active = np.repeat(table.lengths >= min_user_interactions, table.lengths)
        table = _step(table, active, steps, f"users with at least {min_user_interactions} interactions")
        if not iterative or table.num_interactions == before:
            return table, steps


def keep_users_with_sessions(
    table: SequenceTable, minimum: int = MINIMUM_SESSIONS
) -> tuple[SequenceTable, FilterStep]:
    """Drop the users with fewer sessions, and from the catalog the items that nobody else touched.

    Returns:
        The smaller table, whose item indices are those of the smaller catalog, and the sizes before and after.

    Raises:
        ValueError: what `session_starts` raises, a negative minimum, or no user is left.
    """
    if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 0:
        raise ValueError(f"`min_sessions`: expected a non-negative integer, found {minimum!r}")
    kept = users_with_sessions(table, minimum)
    if not kept.any():
        raise ValueError(
            f"`min_sessions`: expected users with at least {minimum} sessions, found none among {table.num_users}; "
            "lower it, or choose a rule that makes more sessions"
        )
    smaller = table.select(np.repeat(kept, table.lengths))
    return smaller, FilterStep.between(f"users with at least {minimum} sessions", table, smaller)


def _frequent_items(table: SequenceTable, minimum: int, count_over: str, sessions: SessionRule | None) -> np.ndarray:
    """`(num_interactions,)` bool: the interaction's item occurs often enough."""
    if minimum == 0:
        return np.ones(table.num_interactions, dtype=bool)
    items = table.items
    if count_over == "train":
        items = items[_in_training(table, sessions)]
    return (np.bincount(items, minlength=table.num_items) >= minimum)[table.items]


def _in_training(table: SequenceTable, sessions: SessionRule | None) -> np.ndarray:
    """`(num_interactions,)` bool: neither validation nor test, in the table as it stands."""
    if sessions is None:
        end = np.maximum(table.offsets[1:] - HELD_OUT, table.offsets[:-1])
    else:
        end = session_training_end(with_sessions(table, sessions))
    # +1 where a training part begins and -1 where it ends, each at most once: the running sum is 1 inside of it.
    change = np.zeros(table.num_interactions, dtype=np.int8)
    change[table.offsets[:-1]] += 1
    change[end] -= 1
    return np.cumsum(change, dtype=np.int8).astype(bool)


def _step(table: SequenceTable, kept: np.ndarray, steps: list[FilterStep], name: str) -> SequenceTable:
    if not kept.any():
        raise ValueError(
            f"no interaction left after filtering to {name}: {table.num_interactions} rows, {table.num_users} users "
            f"and {table.num_items} items before it; lower `min_item_count` or `min_user_interactions`"
        )
    smaller = table.select(kept)
    steps.append(FilterStep.between(name, table, smaller))
    return smaller


__all__ = ["COUNTS", "FilterStep", "filter_table", "keep_users_with_sessions"]
