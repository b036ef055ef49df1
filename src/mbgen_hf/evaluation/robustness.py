"""Robustness: the same questions with less in the histories (GAMER appendix B, table 7).

Both functions return a new table, with one row per case that holds the reduced history alone, and cases that point
into it. The cases line up with those given and have the same targets, so lists found for them are scored with the
given table and cases: whether a target was seen before, for one, is a matter of the user's real past. A history may be
left empty. Baselines and models are fitted on the given table as well; the new one has no training part.

To reduce whole pasts rather than the latest part of them, make the cases with a large `max_history`.
"""

from dataclasses import dataclass, replace

import numpy as np

from mbgen_hf.data.augmentation import first_of_groups, level_ranks, random_keys
from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases


@dataclass(frozen=True)
class Reduction:
    """What to leave out of histories, as `evaluate_tasks(reduce_histories=...)` takes it.

    Args:
        low_level_share: share of the lowest-level interactions, from 0 to 1.
        targets: leave out a case's own targets.

    Raises:
        ValueError: neither or both, or a share out of range.
    """

    low_level_share: float | None = None
    targets: bool = False

    def __post_init__(self) -> None:
        if (self.low_level_share is not None) == self.targets:
            raise ValueError("`targets`: expected either a share of the lowest level or the targets")
        if self.low_level_share is not None:
            _check_share(self.low_level_share)

    def __call__(self, table: SequenceTable, cases: EvaluationCases) -> tuple[SequenceTable, EvaluationCases]:
        if self.targets:
            return without_targets(table, cases)
        return without_low_levels(table, cases, self.low_level_share)

    def __str__(self) -> str:
        return "without targets" if self.targets else f"without {self.low_level_share:g} of the lowest level"


def without_low_levels(
    table: SequenceTable, cases: EvaluationCases, share: float, seed: int = 0
) -> tuple[SequenceTable, EvaluationCases]:
    """Drop a share of the lowest-level interactions from every history, at random ("dropout r").

    Of each behavior at the lowest level, `floor(share * count)` interactions of each history go; products within 1e-9
    below a whole number count as that number. Cases of one history lose the same interactions.

    Args:
        table: the table that `cases` point into.
        cases: evaluation cases.
        share: from 0 to 1.
        seed: of the draw.

    Raises:
        ValueError: `share` is out of range.
    """
    _check_share(share)
    rows, positions = flat_ranges(cases.history_start, cases.history_end)
    num_behaviors = len(table.schema)
    behaviors = table.behaviors[positions]
    groups = rows * num_behaviors + behaviors
    counts = np.bincount(groups, minlength=len(cases) * num_behaviors)
    lowest = np.tile(level_ranks(table.schema) == 1, len(cases))
    sizes = np.where(lowest, np.floor(share * counts + 1e-9), 0).astype(np.int64)
    dropped = first_of_groups(groups, random_keys([seed], np.zeros_like(positions), positions), sizes)
    return _reduced(table, cases, rows[~dropped], positions[~dropped])


def without_targets(table: SequenceTable, cases: EvaluationCases) -> tuple[SequenceTable, EvaluationCases]:
    """Drop every interaction with one of a case's own targets from its history ("dropout gt").

    Args:
        table: the table that `cases` point into.
        cases: evaluation cases.
    """
    rows, positions = flat_ranges(cases.history_start, cases.history_end)
    span = np.int64(table.num_items)
    asked = (np.arange(len(cases))[:, None] * span + cases.targets)[cases.targets >= 0]
    kept = ~np.isin(rows * span + table.items[positions], asked)
    return _reduced(table, cases, rows[kept], positions[kept])


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"`share`: expected a number from 0 to 1, found {share}")


def _reduced(
    table: SequenceTable, cases: EvaluationCases, rows: np.ndarray, positions: np.ndarray
) -> tuple[SequenceTable, EvaluationCases]:
    """A table of the interactions at `positions`, one row per case, and the cases on it."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(cases)))]).astype(np.int64)
    reduced = replace(
        table,
        user_ids=table.user_ids[cases.users],
        offsets=offsets,
        items=table.items[positions],
        behaviors=table.behaviors[positions],
        timestamps=table.timestamps[positions],
        session_ids=None if table.session_ids is None else _renumbered(table.session_ids[positions], rows, offsets),
    )
    numbers = np.arange(len(cases))
    return reduced, replace(cases, users=numbers, history_start=offsets[:-1], history_end=offsets[1:])


def _renumbered(session_ids: np.ndarray, rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Count the sessions left in each row from 0."""
    changed = (np.diff(rows) != 0) | (np.diff(session_ids) != 0)
    begun = np.cumsum(np.concatenate([[0], changed])[: len(rows)])
    return (begun - begun[offsets[rows]]).astype(np.int32)


__all__ = ["Reduction", "without_low_levels", "without_targets"]
