"""What every baseline offers: learn from the training part of a table, then rank items for evaluation cases."""

from abc import ABC, abstractmethod
from typing import Self

import numpy as np

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases, training_end


class Baseline(ABC):
    """A recommender without a neural network, for the reports that stand beside a model's.

    Lists hold each item (or pair) once, best first. Shorter ones are padded with item -1, behavior -1 and score
    `-inf`; nothing is filled in to reach `k`. Items the user already knows are not taken out, since repeats count.
    """

    name: str
    """Short name used in reports."""

    @abstractmethod
    def fit(self, table: SequenceTable) -> Self:
        """Learn from each user's training part: everything before the validation interaction, nothing after."""

    @abstractmethod
    def recommend(
        self, table: SequenceTable, cases: EvaluationCases, k: int, behavior: int | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank items for each case, from its history alone.

        Args:
            table: the table that `cases` point into.
            cases: evaluation cases; `targets` and `behavior` of them are never read.
            k: length of the lists.
            behavior: class label of the asked behavior, for all cases or `(num_cases,)`; `None` asks for any.

        Returns:
            Items `(num_cases, k)` `int32` and their scores `(num_cases, k)` `float64`.
        """

    @abstractmethod
    def recommend_pairs(
        self, table: SequenceTable, cases: EvaluationCases, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rank (behavior, item) pairs for each case, for the behavior-item task.

        Returns:
            Items `(num_cases, k)` `int32`, behaviors `(num_cases, k)` `int8` and scores `(num_cases, k)` `float64`.
        """


def training_mask(table: SequenceTable) -> np.ndarray:
    """`(num_interactions,)` bool: the interaction lies before its user's validation interaction."""
    return np.arange(table.num_interactions) < np.repeat(training_end(table), table.lengths)


def check_length(k: int) -> None:
    """Raises `ValueError` unless `k` is a usable list length."""
    if k < 1:
        raise ValueError(f"`k`: expected 1 or more, found {k}; ask for at least one recommendation")


__all__ = ["Baseline", "check_length", "training_mask"]
