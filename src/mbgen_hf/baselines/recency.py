"""The recency baselines: what was touched last comes next, and what of it the asked behavior still lies ahead of."""

from typing import Self

import numpy as np

from mbgen_hf.baselines.baseline import Baseline, check_length, training_mask
from mbgen_hf.data.ranges import flat_ranges
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


class RecencyByBehaviorBaseline(RecencyBaseline):
    """Recency that knows what was asked: items that have not had the asked behavior yet come before those that have.

    What was carted and not bought is what is bought next; what was bought already is hardly ever bought again in most
    shops. Where training shows the opposite for a behavior (groceries are bought again and again), the items that have
    had it come first instead. Within both parts the most recent come first. Without an asked behavior, and for
    (behavior, item) pairs, it is the plain recency baseline.
    """

    name = "recency_by_behavior"

    def __init__(self) -> None:
        super().__init__()
        self.again: np.ndarray | None = None

    def fit(self, table: SequenceTable, training_end: np.ndarray | None = None) -> Self:
        """Learn of each behavior whether repeats mostly fall on items that have had it already, `(num_behaviors,)`."""
        super().fit(table, training_end)
        kept = np.flatnonzero(training_mask(table, training_end))
        users = np.repeat(np.arange(table.num_users), table.lengths)[kept]
        pairs = users * np.int64(table.num_items) + table.items[kept]
        behaviors = table.behaviors[kept]
        repeated, had = _repeats(pairs), _repeats(pairs * len(table.schema) + behaviors)
        mostly_had = np.bincount(behaviors, weights=2.0 * had - repeated, minlength=len(table.schema))
        self.again = mostly_had > 0
        return self

    def recommend(
        self, table: SequenceTable, cases: EvaluationCases, k: int, behavior: int | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if behavior is None:
            return super().recommend(table, cases, k)
        if self.again is None or len(self.again) != len(table.schema):
            raise ValueError(
                f"`table`: expected a baseline fitted on the {len(table.schema)} behaviors of this table, found "
                f"{'none' if self.again is None else len(self.again)}; call `fit(table)` first"
            )
        longest = max(int((cases.history_end - cases.history_start).max(initial=0)), k)
        positions, scores = _recent_positions(table, cases, longest)
        items = np.where(positions >= 0, table.items[positions], -1)
        asked = np.broadcast_to(behavior, len(cases))
        later = _had(table, cases, asked, items) != self.again[asked][:, None]
        # Items of the first part keep their scores; those of the second lie below all of them.
        scores = np.where(later, scores - longest - 1, scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(items, order, 1).astype(np.int32), np.take_along_axis(scores, order, 1)


def _repeats(keys: np.ndarray) -> np.ndarray:
    """Which keys stand earlier in the array as well."""
    repeated = np.ones(len(keys), dtype=bool)
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated


def _had(table: SequenceTable, cases: EvaluationCases, asked: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Which `(num_cases, k)` items have had the behavior asked of their case in its history."""
    rows, positions = _history(cases)
    of_asked = table.behaviors[positions] == asked[rows]
    pairs = rows[of_asked] * np.int64(table.num_items) + table.items[positions[of_asked]]
    return np.isin(np.arange(len(cases))[:, None] * np.int64(table.num_items) + items, pairs) & (items >= 0)


def _history(cases: EvaluationCases) -> tuple[np.ndarray, np.ndarray]:
    """Case and position of every interaction in the histories, the newest of each case first."""
    rows, positions = flat_ranges(cases.history_start, cases.history_end)
    return rows, cases.history_start[rows] + cases.history_end[rows] - 1 - positions


def _recent_positions(table: SequenceTable, cases: EvaluationCases, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Last position of each of the k most recent distinct items, -1 beyond, and scores; both `(num_cases, k)`."""
    check_length(k)
    rows, position = _history(cases)
    age = cases.history_end[rows] - position
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


__all__ = ["RecencyBaseline", "RecencyByBehaviorBaseline"]
