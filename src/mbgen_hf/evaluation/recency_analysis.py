"""How much of a protocol the latest interactions give away (GAMER section 3.2, figure 2)."""

from dataclasses import replace

import numpy as np

from mbgen_hf.baselines.recency import RecencyBaseline
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases


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


__all__ = ["recency_curve"]
