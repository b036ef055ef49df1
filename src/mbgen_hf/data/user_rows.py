"""User-level training: one row per user, every token predicted from those before it (GAMER section 3.4)."""

from dataclasses import dataclass

import numpy as np

from mbgen_hf.data.augmentation import Augmentation, augmented
from mbgen_hf.data.sequence_table import SequenceTable


@dataclass(frozen=True)
class UserRows:
    """Rows of interactions, as slices of flat arrays of their own.

    Args:
        items: `(num_interactions,)` catalog indices.
        behaviors: `(num_interactions,)` class labels.
        starts, ends: `(num_rows,)` slice of each row.
        loss_from: `(num_rows,)` first position of each row whose tokens count in the loss.
        sessions: `(num_interactions,)` session numbers, or `None`.
    """

    items: np.ndarray
    behaviors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    loss_from: np.ndarray
    sessions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """`(num_rows,)` number of interactions in each row."""
        return self.ends - self.starts

    def __add__(self, other: "UserRows") -> "UserRows":
        """The rows of both, one after the other."""
        shift = len(self.items)
        return UserRows(
            np.concatenate([self.items, other.items]),
            np.concatenate([self.behaviors, other.behaviors]),
            np.concatenate([self.starts, other.starts + shift]),
            np.concatenate([self.ends, other.ends + shift]),
            np.concatenate([self.loss_from, other.loss_from + shift]),
            None if self.sessions is None else np.concatenate([self.sessions, other.sessions]),
        )


def training_rows(
    table: SequenceTable,
    training_end: np.ndarray,
    max_interactions: int = 101,
    augmentation: Augmentation | None = None,
) -> UserRows:
    """One row per user with its latest training interactions, and one per augmented copy.

    Args:
        table: the sequences.
        training_end: `(num_users,)` position after each user's last training interaction.
        max_interactions: longest row; copies are cut after interactions were dropped from them (G21).
        augmentation: how many copies, and how much they drop; none by default. Copies are drawn once.

    Raises:
        ValueError: a row length below 2, or no user with a training interaction.
    """
    if max_interactions < 2:
        raise ValueError(f"`max_interactions`: expected at least 2, found {max_interactions}")
    starts = np.maximum(table.offsets[:-1], training_end - max_interactions)
    some = training_end > starts
    if not some.any():
        raise ValueError("`table`: expected users with interactions to train on, found none before the held-out ones")
    rows = UserRows(table.items, table.behaviors, starts[some], training_end[some], starts[some], table.session_ids)
    if augmentation is None or augmentation.copies == 0:
        return rows
    copies = augmented(table, training_end, augmentation, max_length=max_interactions)
    begin, kept = copies.offsets[:-1], copies.positions
    sessions = None if table.session_ids is None else table.session_ids[kept]
    return rows + UserRows(table.items[kept], table.behaviors[kept], begin, copies.offsets[1:], begin, sessions)


def held_out_rows(table: SequenceTable, history_start: np.ndarray, held_out: np.ndarray) -> UserRows:
    """Rows whose loss counts the held-out interaction alone, predicted from its history.

    Args:
        table: the sequences.
        history_start: `(num_rows,)` first position of each history.
        held_out: `(num_rows,)` position of the interaction that follows it.
    """
    return UserRows(table.items, table.behaviors, history_start, held_out + 1, held_out, table.session_ids)


__all__ = ["UserRows", "held_out_rows", "training_rows"]
