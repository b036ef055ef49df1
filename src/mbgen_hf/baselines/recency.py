"""The recency baseline: what was touched last comes next."""

from typing import Self

import numpy as np

from mbgen_hf.baselines.baseline import Baseline, check_length, training_mask
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases


class RecencyBaseline(Baseline):
    """The most recent distinct items of the history, last first (the shortcut of GAMER section 3.2, figure 2).

    The score of an item is minus the number of interactions since its last one, so there are no ties. The asked
    behavior makes no difference: what was put in the cart last is also what is bought next.

    For (behavior, item) pairs, each of these items gets the behavior that most often came next **on the same item**
    after the behavior it last had: a carted item may be bought, a bought one looked at again. These follow-ups are
    counted over the training parts; a behavior never followed by another one on the same item is repeated.
    """

    name = "recency"

    def __init__(self) -> None:
        self.follow_up: np.ndarray | None = None

    def fit(self, table: SequenceTable, training_end: np.ndarray | None = None) -> Self:
        """Learn each behavior's follow-up, `(num_behaviors,)`; `recommend` works without."""
        kept = np.flatnonzero(training_mask(table, training_end))
        users = np.repeat(np.arange(table.num_users), table.lengths)[kept]
        items = table.items[kept]
        order = np.lexsort((items, users))
        same = (np.diff(users[order]) == 0) & (np.diff(items[order]) == 0)
        behaviors = table.behaviors[kept][order]
        counts = np.zeros((len(table.schema), len(table.schema)), dtype=np.int64)
        np.add.at(counts, (behaviors[:-1][same], behaviors[1:][same]), 1)
        own = np.arange(len(table.schema))
        self.follow_up = np.where(counts.any(axis=1), counts.argmax(axis=1), own).astype(np.int8)
        return self

    def recommend(
        self, table: SequenceTable, cases: EvaluationCases, k: int, behavior: int | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        positions, scores = _recent_positions(table, cases, k)
        return np.where(positions >= 0, table.items[positions], -1).astype(np.int32), scores

    def recommend_pairs(
        self, table: SequenceTable, cases: EvaluationCases, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.follow_up is None or len(self.follow_up) != len(table.schema):
            raise ValueError(
                f"`table`: expected a baseline fitted on the {len(table.schema)} behaviors of this table, found "
                f"{'none' if self.follow_up is None else len(self.follow_up)}; call `fit(table)` first"
            )
        positions, scores = _recent_positions(table, cases, k)
        listed = positions >= 0
        items = np.where(listed, table.items[positions], -1).astype(np.int32)
        return items, np.where(listed, self.follow_up[table.behaviors[positions]], -1).astype(np.int8), scores


def _recent_positions(table: SequenceTable, cases: EvaluationCases, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Last position of each of the k most recent distinct items, -1 beyond, and scores; both `(num_cases, k)`."""
    check_length(k)
    lengths = np.maximum(cases.history_end - cases.history_start, 0).astype(np.int64)
    rows = np.repeat(np.arange(len(cases)), lengths)
    age = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    position = cases.history_end[rows] - age
    # Histories run newest first here, so the first copy of an item is its latest interaction.
    pairs = rows * np.int64(table.num_items) + table.items[position]
    latest = np.sort(np.unique(pairs, return_index=True)[1])
    row = rows[latest]
    rank = np.arange(len(latest)) - np.searchsorted(row, row)
    listed = rank < k
    positions = np.full((len(cases), k), -1, dtype=np.int64)
    scores = np.full((len(cases), k), -np.inf)
    positions[row[listed], rank[listed]] = position[latest[listed]]
    scores[row[listed], rank[listed]] = -age[latest[listed]]
    return positions, scores


__all__ = ["RecencyBaseline"]
