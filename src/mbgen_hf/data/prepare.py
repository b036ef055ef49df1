"""Raw log files to a prepared folder: read, filter, group by user, save, report."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mbgen_hf.data.filters import FilterStep, filter_table, keep_users_with_sessions
from mbgen_hf.data.input_error import listed
from mbgen_hf.data.output_folder import check_output_folder, written_whole
from mbgen_hf.data.read_log import InteractionLog, ReadReport, read_interaction_log
from mbgen_hf.data.selection import Selection, TimeWindow, UserSample, keep_window, sample_users
from mbgen_hf.data.sequence_table import CATALOG_FILE, SCHEMA_FILE, SEQUENCES_FILE, SequenceTable
from mbgen_hf.data.sessions import (
    MINIMUM_SESSIONS,
    SessionRule,
    record_session_rule,
    session_counts,
    with_sessions,
)
from mbgen_hf.version import __version__


REPORT_FILE = "report.json"
PREPARED_FILES = (SEQUENCES_FILE, CATALOG_FILE, SCHEMA_FILE, REPORT_FILE)


@dataclass(frozen=True)
class PreparationRules:
    """What is kept of a log that has been read, in the order in which it is applied.

    Args:
        window: days to keep, see `TimeWindow.parse`; all by default.
        sample_users: share of the users to keep, see `sample_users`; all by default.
        sample_seed: of that sample.
        min_item_count: see `filter_table`, as for all arguments up to `iterative`.
        sessions: how interactions are cut into sessions, after the filters above: `gap:SECONDS`, `day:ZONE`, `given`
            or a `SessionRule`; by default a session column is kept as it is and nothing else is done.
        min_sessions: sessions a user needs where `sessions` is set (default: 3); 0 keeps every user.

    Raises:
        ValueError: an unknown rule, or `min_sessions` without `sessions`.
    """

    window: str | TimeWindow | None = None
    sample_users: float | None = None
    sample_seed: int = 0
    min_item_count: int = 5
    min_user_interactions: int = 4
    item_count_over: str = "train"
    iterative: bool = False
    sessions: str | SessionRule | None = None
    min_sessions: int | None = None

    def __post_init__(self) -> None:
        if self.sessions is None and self.min_sessions is not None:
            raise ValueError(f"`min_sessions`: expected only with `sessions`, found {self.min_sessions} without")
        for name, kind in (("window", TimeWindow), ("sessions", SessionRule)):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, kind.parse(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are given on the command line."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(v) if isinstance(v, (TimeWindow, SessionRule)) else v for name, v in values.items()}

    @property
    def selection(self) -> Selection:
        """The rules that can be applied while a log is read.

        Raises:
            ValueError: what `UserSample` raises.
        """
        sample = None if self.sample_users is None else UserSample(self.sample_users, self.sample_seed)
        return Selection(self.window, sample)

    def apply(
        self, table: SequenceTable, selected: Sequence[FilterStep] | None = None
    ) -> tuple[SequenceTable, list[FilterStep], dict[str, Any] | None]:
        """The table that is left, what each step took away, and what became of the sessions.

        Args:
            table: the sequences.
            selected: the steps of the `selection` where it was applied while the log was read.

        Raises:
            ValueError: nothing is left, or what the steps raise.
        """
        steps = list(selected or ())
        if selected is None and self.window is not None:
            table, step = keep_window(table, self.window)
            steps.append(step)
        if selected is None and self.sample_users is not None:
            table, step = sample_users(table, self.sample_users, self.sample_seed)
            steps.append(step)
        try:
            table, filtered, cut = self._filter(table)
        except ValueError as error:
            if not steps:
                raise
            kept = ", ".join(f"{step.rows_after} of {step.rows_before} rows by {step.name}" for step in steps)
            raise ValueError(f"{error}; kept before that: {kept}") from error
        return table, steps + filtered, cut

    def _filter(self, table: SequenceTable) -> tuple[SequenceTable, list[FilterStep], dict[str, Any] | None]:
        """What follows the selection."""
        table, steps = filter_table(
            table,
            self.min_item_count,
            self.min_user_interactions,
            self.item_count_over,
            self.iterative,
            self.sessions,
        )
        cut = None
        if self.sessions is not None:
            minimum = MINIMUM_SESSIONS if self.min_sessions is None else self.min_sessions
            table, step, cut = _cut_sessions(table, self.sessions, minimum)
            steps.append(step)
        return table, steps, cut


def prepare(
    paths: str | Path | Sequence[str | Path],
    output: str | Path,
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
    overwrite: bool = False,
    **rules: Any,
) -> tuple[SequenceTable, dict[str, Any]]:
    """Read log files, filter them and save the sequence table with a report.

    The folder then holds `sequences.parquet`, `catalog.parquet`, `schema.json` and `report.json`. It appears whole or
    not at all, and an earlier result stays until the new one is complete.

    Args:
        paths: see `read_interaction_log`, as for all arguments up to `on_bad_rows`.
        output: folder to write.
        overwrite: replace the result of an earlier run in `output`.
        rules: fields of `PreparationRules`, such as `min_item_count=5` or `sessions="gap:1800"`.

    Returns:
        The table, and the report as it stands in `report.json`.

    Raises:
        ValueError: the input, an argument or the output folder is bad.
    """
    folder = check_output_folder(output, overwrite, PREPARED_FILES)
    rules = preparation_rules(PreparationRules(), rules)
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    drop_behaviors = list(drop_behaviors)
    reading = {
        "columns": columns,
        "behaviors": behaviors,
        "drop_behaviors": drop_behaviors,
        "target": target,
        "levels": levels,
        "timestamp_format": timestamp_format,
        "year": year,
        "timezone": timezone,
        "has_header": has_header,
        "separator": separator,
        "on_bad_rows": on_bad_rows,
    }
    log = read_interaction_log(paths, **reading, selection=rules.selection)
    table, report = prepare_log(log, paths, rules, reading)
    save_prepared(folder, table, report, rules)
    return table, report


def preparation_rules(base: PreparationRules, changes: Mapping[str, Any]) -> PreparationRules:
    """The rules with some of them changed.

    Raises:
        ValueError: a rule that does not exist, or what `PreparationRules` raises.
    """
    known = [field.name for field in fields(PreparationRules)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"`rules`: expected {listed(known)}, found {listed(unknown)}")
    return replace(base, **changes)


def prepare_log(
    log: InteractionLog, paths: Sequence[str | Path], rules: PreparationRules, options: Mapping[str, Any]
) -> tuple[SequenceTable, dict[str, Any]]:
    """Group and filter a log that has been read; returns the table and the report.

    Args:
        log: the log.
        paths: the files it came from, for the report.
        rules: what is kept of it.
        options: how it was read, for the report.

    Raises:
        ValueError: what `PreparationRules.apply` raises.
    """
    table, reading, selected = SequenceTable.from_log(log.frame, log.schema), log.report, log.selected
    del log  # of a large log every copy counts
    table, steps, cut = rules.apply(table, selected)
    report = _report([Path(path) for path in paths], {**options, **rules.to_dict()}, reading, steps, table)
    if cut is not None:
        report["sessions"] = cut
    return table, report


def save_prepared(folder: Path, table: SequenceTable, report: Mapping[str, Any], rules: PreparationRules) -> None:
    """Write the four files of a prepared folder, whole or not at all."""
    with written_whole(folder) as new:
        table.save(new)
        if rules.sessions is not None:
            record_session_rule(new, rules.sessions)
        text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
        (new / REPORT_FILE).write_text(text + "\n", encoding="utf-8")


def _cut_sessions(
    table: SequenceTable, rule: SessionRule, minimum: int
) -> tuple[SequenceTable, FilterStep, dict[str, Any]]:
    table = with_sessions(table, rule)
    before = int(session_counts(table).sum())
    table, step = keep_users_with_sessions(table, minimum)
    return (
        table,
        step,
        {
            "rule": str(rule),
            "min_sessions": minimum,
            "sessions_before": before,
            "sessions_after": int(session_counts(table).sum()),
            "users_dropped": step.users_before - step.users_after,
        },
    )


def _report(
    paths: list[Path],
    options: Mapping[str, Any],
    reading: ReadReport,
    steps: list[FilterStep],
    table: SequenceTable,
) -> dict[str, Any]:
    counts = np.bincount(table.behaviors, minlength=len(table.schema)).tolist()
    return {
        "mbgen_hf": __version__,
        "inputs": [_input(path) for path in paths],
        "options": {name: _plain(value) for name, value in options.items()},
        "assumed_year": reading.assumed_year,
        "reading": reading.to_dict(),
        "filters": [step.to_dict() for step in steps],
        "result": {
            "rows": table.num_interactions,
            "users": table.num_users,
            "items": table.num_items,
            "behaviors": dict(zip(table.schema.names, counts, strict=True)),
            "levels": dict(zip(table.schema.names, table.schema.levels, strict=True)),
            "target": table.schema.target,
        },
    }


def _input(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest}


def _plain(value: Any) -> Any:
    """A value that JSON holds without loss of order."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a small table for the terminal."""
    reading, result = report["reading"], report["result"]
    rows = [("", "rows", "users", "items"), ("rows in the files", reading["rows"], "", "")]
    rows += [(f"dropped, behavior {raw}", -count, "", "") for raw, count in reading["dropped"].items()]
    rows += [(f"skipped, {reason}", -count, "", "") for reason, count in reading["skipped"].items()]
    rows.append(("read", reading["kept"], reading["users"], reading["items"]))
    rows += [(s["name"], s["rows_after"], s["users_after"], s["items_after"]) for s in report["filters"]]
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}" + "".join(f"{_number(value):>14}" for value in row[1:]) for row in rows]
    marks = {name: " (target)" if name == result["target"] else "" for name in result["behaviors"]}
    counts = [
        f"{name}{marks[name]}={count:,} at level {result['levels'][name]}"
        for name, count in result["behaviors"].items()
    ]
    lines.append(f"behaviors: {', '.join(counts)}; order from {reading['behavior_source']}")
    lines.append(f"time in the files: {reading['first_time']} .. {reading['last_time']}")
    if cut := report.get("sessions"):
        lines.append(
            f"sessions: {cut['rule']}, {cut['sessions_after']:,} of {cut['sessions_before']:,} kept, "
            f"{cut['users_dropped']:,} users dropped"
        )
    if report["assumed_year"] is not None:
        lines.append(f"year: the log has none, {report['assumed_year']} is assumed")
    return "\n".join(lines)


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


__all__ = [
    "PREPARED_FILES",
    "REPORT_FILE",
    "PreparationRules",
    "format_report",
    "preparation_rules",
    "prepare",
    "prepare_log",
    "save_prepared",
]
