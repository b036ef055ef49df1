"""The popularity baseline: the same list for everyone."""

from typing import Self

import numpy as np

from mbgen_hf.baselines.baseline import Baseline, check_length, training_mask
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases


class PopularityBaseline(Baseline):
    """Items by their number of interactions in the training parts; that number is the score.

    Equal counts are equal scores: pass them to `ranking_metrics`, which counts ties by expected rank. In the list
    itself ties stand in catalog order. An item without an interaction to count is never listed.

    Args:
        behavior_specific: count only interactions of the asked behavior. By default all behaviors count whatever is
            asked, which rests on more data; with `behavior=None` all count in either case.
    """

    name = "popularity"

    def __init__(self, behavior_specific: bool = False) -> None:
        self.behavior_specific = behavior_specific
        self.counts: np.ndarray | None = None

    def fit(self, table: SequenceTable, training_end: np.ndarray | None = None) -> Self:
        """Count `(num_behaviors, num_items)` training interactions."""
        kept = training_mask(table, training_end)
        pairs = table.behaviors[kept].astype(np.int64) * table.num_items + table.items[kept]
        size = len(table.schema) * table.num_items
        self.counts = np.bincount(pairs, minlength=size).reshape(len(table.schema), table.num_items)
        return self

    def recommend(
        self, table: SequenceTable, cases: EvaluationCases, k: int, behavior: int | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        counts = self._fitted_counts(table)
        if behavior is None or not self.behavior_specific:
            items, scores = _top(counts.sum(axis=0), k)
            return np.tile(items, (len(cases), 1)), np.tile(scores, (len(cases), 1))
        asked = np.broadcast_to(np.asarray(behavior), (len(cases),))
        if len(asked) and not 0 <= asked.min() <= asked.max() < len(counts):
            raise ValueError(
                f"`behavior`: expected class labels in 0..{len(counts) - 1}, found {asked.min()}..{asked.max()}; "
                "pass the schema's class labels"
            )
        lists = [_top(row, k) for row in counts]
        return np.stack([items for items, _ in lists])[asked], np.stack([scores for _, scores in lists])[asked]

    def recommend_pairs(
        self, table: SequenceTable, cases: EvaluationCases, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs by their own counts, whatever `behavior_specific` says."""
        pairs, scores = _top(self._fitted_counts(table).ravel(), k)
        items = np.where(pairs >= 0, pairs % table.num_items, -1).astype(np.int32)
        behaviors = np.where(pairs >= 0, pairs // table.num_items, -1).astype(np.int8)
        size = (len(cases), 1)
        return np.tile(items, size), np.tile(behaviors, size), np.tile(scores, size)

    def _fitted_counts(self, table: SequenceTable) -> np.ndarray:
        shape = (len(table.schema), table.num_items)
        if self.counts is None or self.counts.shape != shape:
            raise ValueError(
                f"`table`: expected a baseline fitted on a table of {shape[0]} behaviors and {shape[1]} items, found "
                f"{'none' if self.counts is None else self.counts.shape}; call `fit(table)` first"
            )
        return self.counts


def _top(counts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest counts above zero, `(k,)` `int32` indices padded with -1 and `(k,)` scores padded with `-inf`."""
    check_length(k)
    order = np.argsort(-counts, kind="stable")[:k]
    order = order[counts[order] > 0]
    indices = np.full(k, -1, dtype=np.int32)
    scores = np.full(k, -np.inf)
    indices[: len(order)] = order
    scores[: len(order)] = counts[order]
    return indices, scores


__all__ = ["PopularityBaseline"]
