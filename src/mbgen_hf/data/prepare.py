"""Raw log files to a prepared folder: read, filter, group by user, save, report."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbgen_hf.data.filters import FilterStep, filter_log
from mbgen_hf.data.output_folder import check_output_folder, written_whole
from mbgen_hf.data.read_log import ReadReport, read_interaction_log
from mbgen_hf.data.sequence_table import CATALOG_FILE, SCHEMA_FILE, SEQUENCES_FILE, SequenceTable
from mbgen_hf.data.sessions import (
    MINIMUM_SESSIONS,
    SessionRule,
    keep_users_with_sessions,
    record_session_rule,
    session_counts,
    with_sessions,
)
from mbgen_hf.version import __version__


REPORT_FILE = "report.json"
PREPARED_FILES = (SEQUENCES_FILE, CATALOG_FILE, SCHEMA_FILE, REPORT_FILE)


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
    min_item_count: int = 5,
    min_user_interactions: int = 4,
    item_count_over: str = "train",
    iterative: bool = False,
    sessions: str | SessionRule | None = None,
    min_sessions: int | None = None,
    overwrite: bool = False,
) -> tuple[SequenceTable, dict[str, Any]]:
    """Read log files, filter them and save the sequence table with a report.

    The folder then holds `sequences.parquet`, `catalog.parquet`, `schema.json` and `report.json`. It appears whole or
    not at all, and an earlier result stays until the new one is complete.

    Args:
        paths: see `read_interaction_log`, as for all arguments up to `on_bad_rows`.
        output: folder to write.
        min_item_count: see `filter_log`, as for all arguments up to `iterative`.
        sessions: how interactions are cut into sessions, after the filters above: `gap:SECONDS`, `day:ZONE`, `given`
            or a `SessionRule`; by default a session column is kept as it is and nothing else is done.
        min_sessions: sessions a user needs where `sessions` is set (default: 3); 0 keeps every user.
        overwrite: replace the result of an earlier run in `output`.

    Returns:
        The table, and the report as it stands in `report.json`.

    Raises:
        ValueError: the input, an argument or the output folder is bad.
    """
    folder = check_output_folder(output, overwrite, PREPARED_FILES)
    rule, min_sessions = _session_arguments(sessions, min_sessions)
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
    filtering = {
        "min_item_count": min_item_count,
        "min_user_interactions": min_user_interactions,
        "item_count_over": item_count_over,
        "iterative": iterative,
    }
    log = read_interaction_log(paths, **reading)
    frame, steps = filter_log(log.frame, **filtering)
    table = SequenceTable.from_log(frame, log.schema)
    cut = None
    if rule is not None:
        table, step, cut = _cut_sessions(table, rule, min_sessions)
        steps.append(step)
    report = _report(paths, reading | filtering, log.report, steps, table)
    if cut is not None:
        report["sessions"] = cut
    with written_whole(folder) as new:
        table.save(new)
        if rule is not None:
            record_session_rule(new, rule)
        text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
        (new / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return table, report


def _session_arguments(sessions: str | SessionRule | None, minimum: int | None) -> tuple[SessionRule | None, int]:
    if sessions is None and minimum is not None:
        raise ValueError(f"`min_sessions`: expected only with `sessions`, found {minimum} without")
    rule = SessionRule.parse(sessions) if isinstance(sessions, str) else sessions
    return rule, MINIMUM_SESSIONS if minimum is None else minimum


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
    paths: list[str | Path],
    options: Mapping[str, Any],
    reading: ReadReport,
    steps: list[FilterStep],
    table: SequenceTable,
) -> dict[str, Any]:
    counts = np.bincount(table.behaviors, minlength=len(table.schema)).tolist()
    return {
        "mbgen_hf": __version__,
        "inputs": [_input(Path(path)) for path in paths],
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
    lines.append(f"time: {reading['first_time']} .. {reading['last_time']}")
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


__all__ = ["PREPARED_FILES", "REPORT_FILE", "format_report", "prepare"]
