"""How much of a protocol the latest interactions give away (GAMER section 3.2, figure 2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mbgen_hf.baselines.recency import RecencyBaseline
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import recorded_session_rule
from mbgen_hf.evaluation.protocols import (
    PAPER_HISTORY,
    PROTOCOLS,
    EvaluationCases,
    Protocol,
    Split,
    protocol_cases,
    task_cases,
)


SHOWN_KS = (1, 3, 5, 10, 20, 50)


@dataclass(frozen=True)
class RecencyAnalysis:
    """Both halves of figure 2 for one protocol.

    Args:
        protocol: the evaluation protocol.
        target: name of the target behavior.
        num_cases, num_targets: evaluation cases of the target task, and held-out items in them.
        num_hints: cases whose history ends with a weaker behavior on a target, which the lower half leaves out.
        whole: `(max_k,)` `recency_curve` of the histories as they are.
        without_hint: `(max_k,)` the same without these interactions.
    """

    protocol: Protocol
    target: str
    num_cases: int
    num_targets: int
    num_hints: int
    whole: np.ndarray
    without_hint: np.ndarray


def recency_analysis(
    table: SequenceTable, protocol: Protocol = "leave_one_out", split: Split = "test", max_k: int = 50
) -> RecencyAnalysis:
    """Measure how much of the target task the latest items of the histories give away.

    Histories are cut to what the papers show, see `PAPER_HISTORY`.

    Args:
        table: the sequences; with sessions for `"session_wise"`.
        protocol: the evaluation protocol.
        split: `"validation"` or `"test"`.
        max_k: the largest k.

    Raises:
        ValueError: no case of the target task, or what `protocol_cases` and `recency_curve` raise.
    """
    every = protocol_cases(table, protocol, split, PAPER_HISTORY[protocol])
    cases = task_cases(every, "target", table.schema)
    if len(cases) == 0:
        raise ValueError(
            f"`table`: expected {split} cases of the target task, found no user whose held-out behavior is "
            f"{table.schema.target!r}"
        )
    return RecencyAnalysis(
        protocol=protocol,
        target=table.schema.target,
        num_cases=len(cases),
        num_targets=int(np.count_nonzero(cases.targets >= 0)),
        num_hints=int((cases.history_end - _without_latest_hint(table, cases).history_end).sum()),
        whole=recency_curve(table, cases, max_k),
        without_hint=recency_curve(table, cases, max_k, drop_latest=True),
    )


def folder_recency(folder: str | Path, protocol: Protocol | None = None) -> list[RecencyAnalysis]:
    """`recency_analysis` of a prepared folder.

    Args:
        folder: written by `mbgen prepare`.
        protocol: the protocol; by default leave-one-out, and session-wise too where sessions were cut.

    Raises:
        ValueError: not a prepared folder, or what `recency_analysis` raises.
    """
    table = SequenceTable.load(folder)
    if protocol is not None:
        return [recency_analysis(table, protocol)]
    cut = recorded_session_rule(folder) is not None
    return [recency_analysis(table, name) for name in (PROTOCOLS if cut else PROTOCOLS[:1])]


def format_recency(analyses: Sequence[RecencyAnalysis], ks: Sequence[int] = SHOWN_KS) -> str:
    """A table of the shares at a few k, none beyond the curves, two rows for each protocol."""
    width = len("  without the hint") + 2
    lines = ["share of the targets among the k latest distinct items of the history"]
    lines.append(" " * width + "".join(f"{f'k={k}':>8}" for k in ks))
    notes = []
    for analysis in analyses:
        for name, curve in ((analysis.protocol, analysis.whole), ("  without the hint", analysis.without_hint)):
            shares = (f"{curve[k - 1]:8.4f}" for k in ks)
            lines.append(f"{name:<{width}}" + "".join(shares))
        notes.append(
            f"{analysis.protocol}: {analysis.num_cases:,} cases under {analysis.target} with {analysis.num_targets:,} "
            f"targets; {analysis.num_hints:,} histories ({analysis.num_hints / analysis.num_cases:.1%}) end with a "
            "hint, a weaker behavior on a target"
        )
    return "\n".join([*lines, *notes])


def recency_curve(
    table: SequenceTable, cases: EvaluationCases, max_k: int = 50, drop_latest: bool = False
) -> np.ndarray:
    """Share of the targets that are among the k most recently touched distinct items, for k = 1..max_k.

    With one target per case this is the HR@k of the recency baseline.

    Args:
        table: the table that `cases` point into.
        cases: evaluation cases; those of the target task give the figure.
        max_k: the largest k.
        drop_latest: leave out a history's latest interaction where it is one of a weaker behavior, by level, with a
            target of the case (the figure's lower half).

    Returns:
        `(max_k,)` `float64`, never falling.

    Raises:
        ValueError: there are no cases, or `max_k` is not positive.
    """
    if len(cases) == 0:
        raise ValueError("`cases`: expected at least one, found none")
    if drop_latest:
        cases = _without_latest_hint(table, cases)
    items, _ = RecencyBaseline().recommend(table, cases, max_k)
    span = np.int64(table.num_items) + 1
    row = np.arange(len(cases))[:, None] * span
    listed, asked = (items + row + 1).ravel(), (cases.targets + row + 1)[cases.targets >= 0]
    order = np.argsort(listed, kind="stable")
    place = np.minimum(np.searchsorted(listed, asked, sorter=order), len(listed) - 1)
    found = listed[order[place]] == asked
    ranks = (order[place] % max_k)[found]
    return np.cumsum(np.bincount(ranks, minlength=max_k)) / len(asked)


def _without_latest_hint(table: SequenceTable, cases: EvaluationCases) -> EvaluationCases:
    """Cases whose history ends one interaction earlier where the latest one is a weaker behavior on a target."""
    latest = cases.history_end - 1
    present = latest >= cases.history_start
    latest = np.where(present, latest, 0)
    levels = np.array(table.schema.levels)
    weaker = levels[table.behaviors[latest]] < levels[cases.behavior]
    on_target = (cases.targets == table.items[latest][:, None]).any(axis=1)
    return replace(cases, history_end=cases.history_end - (present & weaker & on_target))


__all__ = ["RecencyAnalysis", "folder_recency", "format_recency", "recency_analysis", "recency_curve"]
