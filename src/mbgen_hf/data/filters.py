"""Filters on an interaction log, each of which says what it took away."""

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl


HELD_OUT = 2  # validation and test interaction of each user


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def filter_log(
    frame: pl.DataFrame,
    min_item_count: int = 5,
    min_user_interactions: int = 4,
    item_count_over: str = "train",
    iterative: bool = False,
) -> tuple[pl.DataFrame, list[FilterStep]]:
    """Drop rare items, then users with too few interactions left: one pass, as MBGen does.

    After one pass some items are below the minimum again, since users went and since other interactions are now
    among the last two; `iterative` repeats both steps until neither drops a row.

    Args:
        frame: an interaction log; ties in time keep its row order.
        min_item_count: occurrences an item needs; 0 keeps every item.
        min_user_interactions: interactions a user needs after the item step; 0 keeps every user.
        item_count_over: `train` counts all but the last two interactions of each user, `all` counts every one.
        iterative: repeat until nothing changes.

    Returns:
        The log sorted by user and time, and the steps in order.

    Raises:
        ValueError: an argument is out of range, or nothing is left.
    """
    for name, value in (("min_item_count", min_item_count), ("min_user_interactions", min_user_interactions)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"`{name}`: expected a non-negative integer, found {value!r}")
    if item_count_over not in ("train", "all"):
        raise ValueError(f"`item_count_over`: expected 'train' or 'all', found {item_count_over!r}")
    frame = frame.sort("user_id", "timestamp", maintain_order=True)
    steps: list[FilterStep] = []
    while True:
        before = frame.height
        frequent = _frequent_items(frame, min_item_count, item_count_over)
        counted = "training interactions" if item_count_over == "train" else "interactions"
        frame = _step(frame, frequent, steps, f"items with at least {min_item_count} {counted}")
        active = _active_users(frame, min_user_interactions)
        frame = _step(frame, active, steps, f"users with at least {min_user_interactions} interactions")
        if not iterative or frame.height == before:
            return frame, steps


def _frequent_items(frame: pl.DataFrame, minimum: int, count_over: str) -> pl.DataFrame:
    if minimum == 0:
        return frame
    counted = frame.select("item_id")
    if count_over == "train":
        # Sorted by user: a row is in the training part when the row two below it still has the same user.
        training = pl.col("user_id") == pl.col("user_id").shift(-HELD_OUT)
        counted = frame.lazy().filter(training).select("item_id").collect()
    enough = counted.group_by("item_id").len().filter(pl.col("len") >= minimum)
    return frame.join(enough, on="item_id", how="semi", maintain_order="left")


def _active_users(frame: pl.DataFrame, minimum: int) -> pl.DataFrame:
    if minimum == 0:
        return frame
    enough = frame.group_by("user_id").len().filter(pl.col("len") >= minimum)
    return frame.join(enough, on="user_id", how="semi", maintain_order="left")


def _sizes(frame: pl.DataFrame) -> tuple[int, int, int]:
    """Rows, users and items."""
    return (frame.height, *frame.select(pl.col("user_id", "item_id").n_unique()).row(0))


def _step(before: pl.DataFrame, after: pl.DataFrame, steps: list[FilterStep], name: str) -> pl.DataFrame:
    old = (steps[-1].rows_after, steps[-1].users_after, steps[-1].items_after) if steps else _sizes(before)
    new = old if after.height == before.height else _sizes(after)
    both = [size for pair in zip(old, new, strict=True) for size in pair]
    steps.append(FilterStep(name, *both))
    if after.is_empty():
        step = steps[-1]
        raise ValueError(
            f"no interaction left after filtering to {step.name}: {step.rows_before} rows, {step.users_before} users "
            f"and {step.items_before} items before it; lower `min_item_count` or `min_user_interactions`"
        )
    return after


__all__ = ["FilterStep", "filter_log"]
