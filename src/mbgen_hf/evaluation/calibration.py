"""Does a model mean its probabilities? What it gives to items of the history and to others, against what comes true.

An ideal model gives the items of the history together the share of repeats among the targets, and among all listed
items of probability p, a share p is right.
"""

from dataclasses import dataclass

import numpy as np

from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.evaluator import Recommendations
from mbgen_hf.evaluation.protocols import EvaluationCases


@dataclass(frozen=True)
class Reliability:
    """Listed items by the probability they were given.

    Args:
        predicted: `(num_bins,)` mean probability of the items in each bin; NaN where there are none.
        observed: `(num_bins,)` share of them that were a target.
        counts: `(num_bins,)` number of items.
    """

    predicted: np.ndarray
    observed: np.ndarray
    counts: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, weighted by the number of items."""
        filled = self.counts > 0
        distance = np.abs(self.predicted - self.observed)[filled]
        return float((distance * self.counts[filled]).sum() / max(self.counts.sum(), 1))


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration of ranked lists.

    Args:
        history_items: mean number of distinct items in a history.
        listed_history_items: mean number of them in a list.
        history_mass: mean probability given to listed items of the history.
        history_share: share of the cases with a target among the items of the history: what `history_mass` should be.
        new_mass, new_share: the same for listed items outside the history, and for targets outside it that are listed.
        history, new: reliability of the listed items of either kind.
    """

    history_items: float
    listed_history_items: float
    history_mass: float
    history_share: float
    new_mass: float
    new_share: float
    history: Reliability
    new: Reliability


def calibration(
    table: SequenceTable, cases: EvaluationCases, answers: Recommendations, edges: np.ndarray | None = None
) -> CalibrationReport:
    """Compare the probabilities of ranked lists with what came true.

    Args:
        table: the table that `cases` point into.
        cases: evaluation cases; those of the target task give the figure its plain meaning.
        answers: lists whose scores are log-probabilities of the items.
        edges: `(num_bins + 1,)` ascending edges of the probability bins; four to a power of ten by default.

    Raises:
        ValueError: no cases, or not one list per case.
    """
    if len(cases) == 0 or len(answers.items) != len(cases):
        raise ValueError(f"`answers`: expected one list for each of some cases, found {len(answers.items)} lists")
    edges = 10.0 ** np.linspace(-6, 0, 25) if edges is None else np.asarray(edges)
    rows, positions = flat_ranges(cases.history_start, cases.history_end)
    span = np.int64(table.num_items) + 1
    past = np.unique(rows * span + table.items[positions])
    row = np.arange(len(cases))[:, None] * span
    listed = answers.items >= 0
    in_history = listed & np.isin(answers.items + row, past)
    hits = listed & (answers.items[:, :, None] == cases.targets[:, None, :]).any(-1)
    probabilities = np.where(listed, np.exp(answers.scores), 0.0)
    repeated = (np.isin(cases.targets + row, past) & (cases.targets >= 0)).any(1)
    outside = listed & ~in_history
    return CalibrationReport(
        history_items=len(past) / len(cases),
        listed_history_items=float(in_history.sum(1).mean()),
        history_mass=float((probabilities * in_history).sum(1).mean()),
        history_share=float(repeated.mean()),
        new_mass=float((probabilities * outside).sum(1).mean()),
        new_share=float((hits & outside).any(1).mean()),
        history=_reliability(probabilities[in_history], hits[in_history], edges),
        new=_reliability(probabilities[outside], hits[outside], edges),
    )


def _reliability(probabilities: np.ndarray, hits: np.ndarray, edges: np.ndarray) -> Reliability:
    bins = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    some = np.where(counts > 0, counts, np.nan)
    predicted = np.bincount(bins, weights=probabilities, minlength=len(counts)) / some
    return Reliability(predicted, np.bincount(bins, weights=hits, minlength=len(counts)) / some, counts)


__all__ = ["CalibrationReport", "Reliability", "calibration"]
