"""A part of a log whose whole does not fit into memory, in two runs through its files.

The first run counts the rows and collects the distinct users and items; the second keeps the rows of the selection.
Memory follows what is selected and how many distinct ids there are, not the number of rows, and the result and its
counts are those of reading everything and selecting afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from mbgen_hf.data.batch_groups import Groups, LastDays
from mbgen_hf.data.behavior_values import BehaviorValues
from mbgen_hf.data.distinct_ids import count_distinct
from mbgen_hf.data.filters import FilterStep
from mbgen_hf.data.log_file import LogFile
from mbgen_hf.data.parse_rows import GOOD, check_height, mark_malformed, suspects, typed_rows
from mbgen_hf.data.selection import Selection, TimeWindow
from mbgen_hf.data.sessions import local_day
from mbgen_hf.data.timestamps import TimestampFormat


TALLIED_AT_ONCE = 1 << 20
"""Rows."""
TALLY_KEYS = ("reason", "behavior", "day")
MERGED_TALLY = [pl.col("rows").sum(), pl.col("first_row", "first_time").min(), pl.col("last_time").max()]


@dataclass(frozen=True)
class Survey:
    """What the first run through a file finds.

    Args:
        tally: see `tally`.
        users: the distinct `user_id` of the good rows and, with a window, the last `day` each was seen on; null for
            those who were never seen in a window that is known beforehand.
        items: the same of `item_id`.
    """

    tally: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame


def tally(frame: pl.DataFrame, first_row: int = 0) -> pl.DataFrame:
    """Count parsed rows by reason, behavior and, where there is one, day.

    Args:
        frame: rows as `parse_rows` returns them.
        first_row: row number of the first of them in the file.

    Returns:
        For each group also its first row number, its earliest and its latest time.
    """
    time = pl.col("timestamp")
    groups = Groups([key for key in TALLY_KEYS if key in frame.columns], MERGED_TALLY)
    for start in range(0, max(frame.height, 1), TALLIED_AT_ONCE):  # grouping all at once takes several copies
        part = frame.slice(start, TALLIED_AT_ONCE).with_row_index("row", first_row + start).group_by(groups.keys)
        groups.add(
            part.agg(
                pl.len().cast(pl.Int64).alias("rows"),
                pl.col("row").min().cast(pl.Int64).alias("first_row"),
                time.min().alias("first_time"),
                time.max().alias("last_time"),
            )
        )
    return groups.merged()


def survey(
    file: LogFile,
    kinds: Mapping[str, str],
    values: BehaviorValues,
    times: TimestampFormat,
    window: TimeWindow | None,
) -> Survey:
    """Run through a file once; given up at the first batch with `suspects`, which its tally then shows."""
    rows = typed_rows(file, kinds, values, times)
    dated = []
    if window is not None:
        dated = ["day"]
        rows = rows.with_columns(local_day(pl.col("timestamp"), window.timezone).alias("day"))
    counts = Groups(["reason", "behavior", *dated], MERGED_TALLY)
    ids = {role: LastDays(role, window is not None) for role in ("user_id", "item_id")}
    height = 0
    for batch in file.batches(rows):
        batch = mark_malformed(file, batch, height)
        counts.add(tally(batch, height))
        height += batch.height
        good = batch.filter(pl.col("reason") == GOOD).select(*ids, *dated)
        if window is not None and window.first_day is not None:
            good = good.with_columns(pl.when(_in_window(window, window.first(0))).then("day").alias("day"))
        for distinct in ids.values():
            distinct.add(good)
        if suspects(batch):
            break
    else:
        check_height(file, height)
    return Survey(counts.merged(), *(distinct.merged() for distinct in ids.values()))


def merged_survey(surveys: Sequence[Survey]) -> Survey:
    """The users and items of several files, and their tallies one below the other."""
    ids = {role: LastDays(role, "day" in surveys[0].users.columns) for role in ("user_id", "item_id")}
    for found in surveys:
        ids["user_id"].add(found.users)
        ids["item_id"].add(found.items)
    return Survey(pl.concat([found.tally for found in surveys]), *(distinct.merged() for distinct in ids.values()))


def select_rows(
    files: Sequence[LogFile],
    kinds: Mapping[str, str],
    values: BehaviorValues,
    times: TimestampFormat,
    found: Survey,
    selection: Selection,
) -> tuple[pl.DataFrame, list[FilterStep]]:
    """Run through the files again and keep the good rows of a selection.

    Args:
        found: `merged_survey` of all files.

    Returns:
        The rows in the order of the files, and the sizes before and after the window and the sample.

    Raises:
        ValueError: nothing lies in the window, or no user is in the sample.
    """
    good = found.tally.filter(pl.col("reason") == GOOD)
    users, items, steps = found.users, found.items, []
    sizes = (good["rows"].sum(), users.height, items.height)
    window, first = selection.window, 0
    if window is not None:
        first = window.first(good["day"].max())
        inside = _in_window(window, first)
        users, items = users.filter(inside), items.filter(inside)
        before, sizes = sizes, (good.filter(inside)["rows"].sum(), users.height, items.height)
        if not sizes[0]:
            raise window.nothing_in_it(good["day"].min(), good["day"].max())
        steps.append(_step(window.describe(first), before, sizes))
    if selection.sample is not None:
        users = users.filter(pl.Series(selection.sample.of(users["user_id"])))
    frames = []
    for file in files:
        rows = typed_rows(file, kinds, values, times)
        if len(file.malformed):
            malformed = pl.LazyFrame({"row": file.malformed}, schema={"row": pl.Int64})
            numbered = rows.select(pl.int_range(pl.len(), dtype=pl.Int64).alias("row"), pl.all())
            rows = numbered.join(malformed, on="row", how="anti", maintain_order="left").drop("row")
        rows = rows.filter(pl.col("reason") == GOOD).drop("reason")
        if window is not None:
            rows = rows.filter(_in_window(window, first, local_day(pl.col("timestamp"), window.timezone)))
        if selection.sample is not None:
            rows = rows.join(users.lazy().select("user_id"), on="user_id", how="semi", maintain_order="left")
        frames.append(file.collect(rows))
    frame = pl.concat(frames, rechunk=False)
    if selection.sample is not None:
        after = (frame.height, users.height, count_distinct(frame["item_id"]))
        steps.append(_step(selection.sample.describe(), sizes, after))
    return frame, steps


def _in_window(window: TimeWindow, first: int, day: pl.Expr | None = None) -> pl.Expr:
    day = pl.col("day") if day is None else day
    return day.is_between(first, first + window.days - 1)


def _step(name: str, before: tuple[int, int, int], after: tuple[int, int, int]) -> FilterStep:
    return FilterStep(name, *(size for pair in zip(before, after, strict=True) for size in pair))


__all__ = ["Survey", "merged_survey", "select_rows", "survey", "tally"]
