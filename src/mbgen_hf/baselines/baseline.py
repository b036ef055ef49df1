"""What every baseline offers: learn from the training part of a table, then rank items for evaluation cases."""

from abc import ABC, abstractmethod
from typing import Self

import numpy as np

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases
from mbgen_hf.evaluation.protocols import training_end as leave_one_out_training_end


class Baseline(ABC):
    """A recommender without a neural network, for the reports that stand beside a model's.

    Lists hold each item (or pair) once, best first. Shorter ones are padded with item -1, behavior -1 and score
    `-inf`; nothing is filled in to reach `k`. Items the user already knows are not taken out, since repeats count.
    """

    name: str
    """Short name used in reports."""

    @abstractmethod
    def fit(self, table: SequenceTable, training_end: np.ndarray | None = None) -> Self:
        """Learn from each user's training part and nothing after.

        Args:
            table: the sequences.
            training_end: `(num_users,)` position after each user's last training interaction, such as
                `session_training_end(table)`; by default the training part ends before the validation interaction of
                leave-one-out.
        """

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


def training_mask(table: SequenceTable, training_end: np.ndarray | None = None) -> np.ndarray:
    """`(num_interactions,)` bool: the interaction lies in its user's training part.

    Args:
        table: the sequences.
        training_end: see `Baseline.fit`.

    Raises:
        ValueError: `training_end` is not one position per user within that user's row.
    """
    end = leave_one_out_training_end(table) if training_end is None else np.asarray(training_end)
    if end.shape != (table.num_users,):
        raise ValueError(f"`training_end`: expected shape ({table.num_users},), found {end.shape}")
    if np.any((end < table.offsets[:-1]) | (end > table.offsets[1:])):
        raise ValueError("`training_end`: expected positions within each user's row, found one outside")
    return np.arange(table.num_interactions) < np.repeat(end, table.lengths)


def check_length(k: int) -> None:
    """Raises `ValueError` unless `k` is a usable list length."""
    if k < 1:
        raise ValueError(f"`k`: expected 1 or more, found {k}; ask for at least one recommendation")


__all__ = ["Baseline", "check_length", "training_mask"]
