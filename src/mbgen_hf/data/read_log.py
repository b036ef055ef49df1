"""Raw log files to one interaction log: typed columns, a behavior schema, and a count of every row left out."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.behavior_values import FIRST_DROPPED, BehaviorValues, behavior_values, canonical
from mbgen_hf.data.distinct_ids import count_distinct
from mbgen_hf.data.filters import FilterStep
from mbgen_hf.data.input_error import bad_input, shown
from mbgen_hf.data.log_file import LogFile, check_columns, open_log_file
from mbgen_hf.data.parse_rows import (
    BEHAVIOR,
    DROPPED,
    EMPTY,
    GOOD,
    HEADER,
    MALFORMED,
    REASONS,
    guess_kinds,
    parse_rows,
    suspects,
    widen,
)
from mbgen_hf.data.select_rows import Survey, merged_survey, select_rows, survey, tally
from mbgen_hf.data.selection import Selection
from mbgen_hf.data.timestamps import MAX_SECONDS, TimestampFormat


SAMPLE_ROWS = 1000

Read = TypeVar("Read", pl.DataFrame, Survey)


@dataclass
class FileReport:
    """Rows of one file: `rows == kept + sum(dropped) + sum(skipped)`."""

    path: str
    format: str
    rows: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass
class ReadReport:
    """What became of every row.

    Args:
        rows: rows in all files.
        kept: rows in the interaction log.
        dropped: raw behavior value -> rows dropped by `drop_behaviors`.
        skipped: reason -> bad rows left out under `on_bad_rows="skip"`.
        users: distinct users in the interaction log.
        items: distinct items in it.
        behaviors: behavior name -> rows kept.
        behavior_source: where names and order come from: `behaviors`, `levels` or the sorted values.
        id_types: `integer` or `string` for each id column.
        first_time: earliest time kept, ISO 8601 in UTC.
        last_time: latest time kept.
        assumed_year: the year that completed timestamps without one, else `None`.
        files: the same counts for each file.
    """

    rows: int
    kept: int
    dropped: dict[str, int]
    skipped: dict[str, int]
    users: int
    items: int
    behaviors: dict[str, int]
    behavior_source: str
    id_types: dict[str, str]
    first_time: str
    last_time: str
    assumed_year: int | None
    files: list[FileReport]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class InteractionLog:
    """An interaction log in the order of its files.

    Args:
        frame: `user_id` and `item_id` (`Int64` or `String`), `behavior` (`Int8` class label of `schema`),
            `timestamp` (`Int64` seconds) and, where asked for, `session_id` (`Int64` or `String`).
        schema: the behaviors.
        report: what became of every row of the files.
        selected: where only a part was kept, the steps that led to it; the report counts what was there before them.
    """

    frame: pl.DataFrame
    schema: BehaviorSchema
    report: ReadReport
    selected: tuple[FilterStep, ...] | None = None


def read_interaction_log(
    paths: str | Path | Sequence[str | Path],
    columns: Mapping[str, str | int] | None = None,
    behaviors: Mapping[Any, str] | Sequence[str] | None = None,
    drop_behaviors: Iterable[Any] = (),
    target: str | None = None,
    levels: Mapping[str, int] | None = None,
    timestamp_format: str = "s",
    year: int | None = None,
    timezone: str | None = None,
    has_header: bool | None = None,
    separator: str | None = None,
    on_bad_rows: str = "raise",
    selection: Selection | None = None,
) -> InteractionLog:
    """Read a log of any number of files, concatenated in the order given.

    Args:
        paths: delimited text or Parquet files, plain or in gzip or zstd, told apart by content.
        columns: role (`user_id`, `item_id`, `behavior`, `timestamp`, optionally `session_id`) -> header name or
            0-based index; without it the columns are named like the four roles.
        behaviors: raw value -> behavior name in order of depth, or the raw values themselves in that order. The
            order of the names is the order of the class labels. Without it see `behavior_values`.
        drop_behaviors: raw values whose rows are left out and counted.
        target: target behavior; the last name without it.
        levels: behavior name -> level; 0, 1, 2, ... in the order of `behaviors` without it.
        timestamp_format: `s`, `ms` or a strptime format. Dates in Parquet need none.
        year: year of a format without one (2000 without it; the report says so).
        timezone: IANA zone of local times, UTC without it.
        has_header: whether text files start with a header line; `None`: they do when a column is given by name.
        separator: character between fields; `None`: the most frequent of `, tab ; |` in the first line of each file.
        on_bad_rows: `raise`, or `skip` to leave bad rows out and count them by reason. Faults of a whole file, such
            as a missing column, a damaged archive or NUL bytes, raise either way.
        selection: keep the rows of a window of days, of a sample of the users or of both. The files are then run
            through twice, and memory follows what is kept and the number of distinct ids, not the number of rows.

    Raises:
        ValueError: the input or an argument is bad; one line that says where, what was expected and what was found.
    """
    if on_bad_rows not in ("raise", "skip"):
        raise ValueError(f"`on_bad_rows`: expected 'raise' or 'skip', found {on_bad_rows!r}")
    columns = check_columns(columns)
    times = TimestampFormat(timestamp_format, year, timezone)
    drop_behaviors = tuple(drop_behaviors)
    if behaviors is not None or levels is not None:
        behavior_values(behaviors, drop_behaviors, target, levels)  # a contradiction need not wait for the files
    paths = _as_paths(paths)
    with tempfile.TemporaryDirectory(prefix="mbgen-") as folder:
        files = [open_log_file(path, Path(folder), columns, has_header, separator, timezone) for path in paths]
        _check_timezone_applies(files, times)
        found = _found_behaviors(files) if behaviors is None and levels is None else None
        values = behavior_values(behaviors, drop_behaviors, target, levels, found)
        if selection:
            window = selection.window
            read, kinds = _read_all(files, lambda file, kinds: survey(file, kinds, values, times, window))
            tallies = [found.tally for found in read]
        else:
            read, kinds = _read_all(files, lambda file, kinds: parse_rows(file, kinds, values, times))
            tallies = [tally(frame) for frame in read]
        if on_bad_rows == "raise":
            _raise_first_bad(files, tallies, values, times)
        reports = [_file_report(file, counts, values) for file, counts in zip(files, tallies, strict=True)]
        report = _report(pl.concat(tallies), reports, values, times, kinds)
        steps = None
        if selection:
            found = merged_survey(read)
            report.users, report.items = found.users.height, found.items.height
            log, steps = select_rows(files, kinds, values, times, found, selection)
    if not selection:
        log = pl.concat([_good_rows(frame) for frame in read], rechunk=False)
        report.users, report.items = (count_distinct(log[role]) for role in ("user_id", "item_id"))
    return InteractionLog(log, values.schema, report, None if steps is None else tuple(steps))


def _as_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not paths:
        raise ValueError("`paths`: expected at least one file, found none")
    if twice := [path for path, count in Counter(path.absolute() for path in paths).items() if count > 1]:
        raise bad_input(twice[0], "each file once", "it given twice")
    return paths


def _check_timezone_applies(files: list[LogFile], times: TimestampFormat) -> None:
    if times.timezone is not None and times.is_epoch and not any(file.in_seconds for file in files):
        expected = "expected none with epoch times, which are UTC by definition"
        raise ValueError(f"`timezone`: {expected}, found {times.timezone!r}")


def _found_behaviors(files: list[LogFile]) -> dict[str, int]:
    """Raw behavior value -> rows."""
    found: Counter[str] = Counter()
    for file in files:
        rows = file.rows.select("behavior")
        if len(file.malformed):
            row = pl.int_range(pl.len(), dtype=pl.Int64)
            rows = rows.filter(~row.is_in(file.malformed.tolist()))
        counts = file.collect(rows.group_by("behavior").len())
        header = str(file.columns["behavior"]) if file.has_header else ""
        found.update({canonical(value): count for value, count in counts.rows() if value not in ("", header)})
    return dict(found)


def _read_all(
    files: list[LogFile], read: Callable[[LogFile, Mapping[str, str]], Read]
) -> tuple[list[Read], dict[str, str]]:
    """Read every file, all with the same kinds of ids: what one file needs holds for the others."""
    kinds = guess_kinds(files[0].collect(files[0].rows.head(SAMPLE_ROWS)))
    results: list[Read] = []
    while len(results) < len(files):
        result = read(files[len(results)], kinds)
        if wider := suspects(result.tally if isinstance(result, Survey) else result):
            # Integers stay integers when some are written as floats; only strings change the files before.
            before, kinds = kinds, widen(kinds, wider)
            if any(kinds[role] == "string" != before[role] for role in wider):
                results = []
            continue
        results.append(result)
    return results, kinds


def _raise_first_bad(
    files: list[LogFile], tallies: list[pl.DataFrame], values: BehaviorValues, times: TimestampFormat
) -> None:
    for file, counts in zip(files, tallies, strict=True):
        bad = counts.filter(pl.col("reason") > DROPPED).sort("first_row")
        if bad.height:
            raise _row_error(file, bad["first_row"][0], bad["reason"][0], values, times)


def _row_error(file: LogFile, row: int, reason: int, values: BehaviorValues, times: TimestampFormat) -> ValueError:
    if reason == MALFORMED:
        return file.malformed_error(row)
    if reason == HEADER:
        return bad_input(file.path, "a row", "the header line again", at=file.place(row))
    raw = file.values(row)
    role, expected, remedy = "timestamp", times.expected, None
    if reason == BEHAVIOR:
        role, expected, remedy = "behavior", values.expected, "map it with `behaviors` or list it in `drop_behaviors`"
    elif reason in EMPTY.values():
        role = next(role for role, code in EMPTY.items() if code == reason)
        expected = f"an id for {role!r}"
    elif times.format == "s" and raw["timestamp"].isdecimal() and int(raw["timestamp"]) > MAX_SECONDS:
        remedy = "beyond year 9999 as seconds: use timestamp format 'ms' if it is milliseconds"
    if row == 0 and file.kind == "text" and not file.has_header:
        remedy = "if this line is a header, say so with `has_header`"
    return bad_input(
        file.path, expected, shown(raw[role]), at=file.place(row), column=file.columns[role], remedy=remedy
    )


def _file_report(file: LogFile, counts: pl.DataFrame, values: BehaviorValues) -> FileReport:
    rows = {code: sum(part["rows"]) for (code,), part in counts.partition_by("reason", as_dict=True).items()}
    dropped = dict.fromkeys(values.dropped, 0)
    for code, count in counts.filter(pl.col("reason") == DROPPED).select("behavior", "rows").rows():
        dropped[values.dropped[FIRST_DROPPED - code]] += count
    skipped = {name: rows[code] for code, name in REASONS.items() if code in rows}
    return FileReport(str(file.path), file.kind, sum(rows.values()), rows.get(GOOD, 0), dropped, skipped)


def _good_rows(frame: pl.DataFrame) -> pl.DataFrame:
    if (frame["reason"] != GOOD).any():
        frame = frame.filter(pl.col("reason") == GOOD)
    return frame.drop("reason")


def _report(
    counts: pl.DataFrame,
    files: list[FileReport],
    values: BehaviorValues,
    times: TimestampFormat,
    kinds: Mapping[str, str],
) -> ReadReport:
    """The report, in which the numbers of users and items are still missing."""
    dropped: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for file in files:
        dropped.update(file.dropped)
        skipped.update(file.skipped)
    rows = sum(file.rows for file in files)
    good = counts.filter(pl.col("reason") == GOOD)
    if good.is_empty():
        raise ValueError(
            f"no interaction left: of {rows} rows {dict(dropped)} were dropped by behavior and {dict(skipped)} skipped"
        )
    behaviors = Counter()
    for label, count in good.select("behavior", "rows").rows():
        behaviors[label] += count
    return ReadReport(
        rows=rows,
        kept=behaviors.total(),
        dropped=dict(dropped),
        skipped=dict(skipped),
        users=0,
        items=0,
        behaviors={name: behaviors[label] for label, name in enumerate(values.schema.names)},
        behavior_source=values.source,
        id_types={
            role: "string" if kind == "string" else "integer" for role, kind in kinds.items() if role != "timestamp"
        },
        first_time=iso_time(good["first_time"].min()),
        last_time=iso_time(good["last_time"].max()),
        assumed_year=times.assumed_year,
        files=files,
    )


def iso_time(seconds: int) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


__all__ = ["FileReport", "InteractionLog", "ReadReport", "iso_time", "read_interaction_log"]
