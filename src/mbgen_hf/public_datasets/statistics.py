"""The size of a prepared log beside what the papers print."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbgen_hf.data.prepare import REPORT_FILE
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import recorded_session_rule, session_counts
from mbgen_hf.public_datasets.catalog import PUBLIC_DATASETS


COLUMNS = ("users", "items", "interactions", "sessions", "per user", "per item")


@dataclass(frozen=True)
class LogStatistics:
    """The size of a log; `sessions` is `None` where none were cut or none is printed."""

    label: str
    users: int
    items: int
    interactions: int
    sessions: int | None = None

    def cells(self) -> list[float | None]:
        """The values of `COLUMNS`; interactions per user and per item are what MBGen's table 2 prints as averages."""
        averages = [self.interactions / self.users, self.interactions / self.items]
        return [self.users, self.items, self.interactions, self.sessions, *averages]


def log_statistics(table: SequenceTable, label: str = "ours", sessions: bool | None = None) -> LogStatistics:
    """Count a table.

    Args:
        table: the sequences.
        label: what the row is called.
        sessions: whether to count sessions; by default where the table has session ids.

    Raises:
        ValueError: what `session_starts` raises.
    """
    count = table.session_ids is not None if sessions is None else sessions
    counted = int(session_counts(table).sum()) if count else None
    return LogStatistics(label, table.num_users, table.num_items, table.num_interactions, counted)


def published_statistics(dataset: str) -> list[LogStatistics]:
    """What the papers print about a public log."""
    return [
        LogStatistics(f"{row.paper} ({row.config})", row.users, row.items, row.interactions, row.sessions)
        for row in PUBLIC_DATASETS[dataset].published
    ]


def prepared_statistics(folder: str | Path) -> str:
    """The table for a prepared folder: our row and, for a public log, the papers' rows and our share of each.

    Raises:
        ValueError: not a prepared folder.
    """
    table = SequenceTable.load(folder)
    report = json.loads((Path(folder) / REPORT_FILE).read_text(encoding="utf-8"))
    options = report.get("options", {})
    dataset, config = options.get("dataset"), options.get("config")
    label = "ours" if dataset is None else f"ours ({config})"
    ours = log_statistics(table, label, recorded_session_rule(folder) is not None)
    published = published_statistics(dataset) if dataset in PUBLIC_DATASETS else []
    counts = np.bincount(table.behaviors, minlength=len(table.schema)).tolist()
    behaviors = [
        f"{name} {count:,} ({count / table.num_interactions:.1%}, level {level})"
        for name, count, level in zip(table.schema.names, counts, table.schema.levels, strict=True)
    ]
    return f"{format_statistics(ours, published)}\nbehaviors: {', '.join(behaviors)}; target {table.schema.target}"


def format_statistics(ours: LogStatistics, published: Sequence[LogStatistics] = ()) -> str:
    """Our row, each published row, and below it ours divided by it."""
    lines = [["", *COLUMNS], [ours.label, *map(_cell, ours.cells())]]
    for row in published:
        shares = [None if None in pair else pair[0] / pair[1] for pair in zip(ours.cells(), row.cells(), strict=True)]
        lines.append([row.label, *map(_cell, row.cells())])
        lines.append(["  ours / theirs", *("-" if share is None else f"{share:.3f}" for share in shares)])
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{line[0]:<{width}}" + "".join(f"{cell:>14}" for cell in line[1:]) for line in lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


__all__ = [
    "COLUMNS",
    "LogStatistics",
    "format_statistics",
    "log_statistics",
    "prepared_statistics",
    "published_statistics",
]
