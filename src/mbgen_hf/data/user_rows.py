"""User-level training: one row per user, every token predicted from those before it (GAMER section 3.4)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mbgen_hf.data.augmentation import Augmentation, AugmentedCopies, augmented, copy_numbers, draw_copies
from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable


Draw = Literal["each_epoch", "once"]
DRAWS: tuple[Draw, ...] = ("each_epoch", "once")


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

    @property
    def has_sessions(self) -> bool:
        """Whether the rows know their sessions."""
        return self.sessions is not None

    def draw(self, numbers: np.ndarray, epoch: int = 0) -> "UserRows":
        """The rows of these numbers, the same in every epoch."""
        return self.select(np.asarray(numbers))

    def select(self, numbers: np.ndarray) -> "UserRows":
        """Some of the rows, over the same interactions."""
        return replace(self, starts=self.starts[numbers], ends=self.ends[numbers], loss_from=self.loss_from[numbers])

    def compact(self) -> "UserRows":
        """The same rows over no more than their own interactions."""
        positions = flat_ranges(self.starts, self.ends)[1]
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        return UserRows(
            self.items[positions],
            self.behaviors[positions],
            starts,
            ends,
            self.loss_from - self.starts + starts,
            None if self.sessions is None else self.sessions[positions],
        )

    def __add__(self, other: "UserRows") -> "UserRows":
        """The rows of both, one after the other."""
        if self.items is other.items:
            return replace(
                self,
                starts=np.concatenate([self.starts, other.starts]),
                ends=np.concatenate([self.ends, other.ends]),
                loss_from=np.concatenate([self.loss_from, other.loss_from]),
            )
        shift = len(self.items)
        return UserRows(
            np.concatenate([self.items, other.items]),
            np.concatenate([self.behaviors, other.behaviors]),
            np.concatenate([self.starts, other.starts + shift]),
            np.concatenate([self.ends, other.ends + shift]),
            np.concatenate([self.loss_from, other.loss_from + shift]),
            None if self.sessions is None else np.concatenate([self.sessions, other.sessions]),
        )


class TrainingRows:
    """One row per user with its latest training interactions, one per augmented copy, then rows of the caller's.

    Which copies there are, and their lengths, never change. What they hold is drawn when they are asked for, anew in
    every epoch, or once for all: then the copies lie in memory and are those of epoch 0 throughout.

    Args:
        table: the sequences.
        training_end: `(num_users,)` position after each user's last training interaction.
        max_interactions: longest row; copies are cut after interactions were dropped from them (G21).
        augmentation: how many copies, and how much they drop; none by default.
        others: rows numbered after the training rows, such as those of the validation split.
        augmentation_draw: `"each_epoch"` or `"once"`.

    Attributes:
        num_training: number of training rows.
        lengths: `(num_rows,)` number of interactions in each row, the others included.

    Raises:
        ValueError: a row length below 2, an unknown draw, or no user with a training interaction.
    """

    def __init__(
        self,
        table: SequenceTable,
        training_end: np.ndarray,
        max_interactions: int = 101,
        augmentation: Augmentation | None = None,
        others: UserRows | None = None,
        augmentation_draw: Draw = "each_epoch",
    ):
        if augmentation_draw not in DRAWS:
            raise ValueError(f"`augmentation_draw`: expected one of {list(DRAWS)}, found {augmentation_draw!r}")
        if max_interactions < 2:
            raise ValueError(f"`max_interactions`: expected at least 2, found {max_interactions}")
        starts = np.maximum(table.offsets[:-1], training_end - max_interactions)
        some = training_end > starts
        if not some.any():
            raise ValueError("`table`: expected users to train on, found no interaction before the held-out ones")
        starts, ends = starts[some], np.asarray(training_end)[some]
        self.table, self.training_end, self.max_interactions = table, training_end, max_interactions
        self.augmentation = augmentation or Augmentation(copies=0)
        self._users, self._numbers, copied = copy_numbers(table, training_end, self.augmentation)
        self._drawn = None
        if augmentation_draw == "once":
            self._drawn = self._rows_of(augmented(table, training_end, self.augmentation, 0, max_interactions))
        self._whole = UserRows(table.items, table.behaviors, starts, ends, starts, table.session_ids)
        self._others = self._whole.select(np.arange(0)) if others is None else others
        self.num_training = len(self._whole) + len(copied)
        copied = np.minimum(copied, max_interactions)
        self.lengths = np.concatenate([self._whole.lengths, copied, self._others.lengths])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def has_sessions(self) -> bool:
        """Whether the rows know their sessions."""
        return self.table.session_ids is not None

    def draw(self, numbers: np.ndarray, epoch: int = 0) -> UserRows:
        """The rows of these numbers, in their order, as they are in an epoch."""
        numbers = np.asarray(numbers)
        is_whole, is_other = numbers < len(self._whole), numbers >= self.num_training
        is_copy = ~(is_whole | is_other)
        rows = self._whole.select(numbers[is_whole]) + self._others.select(numbers[is_other] - self.num_training)
        if is_copy.any():
            # What is joined with the copies is a batch of rows, not the whole log behind them.
            rows = rows.compact() + self._copies(numbers[is_copy] - len(self._whole), epoch)
        places = np.concatenate([np.flatnonzero(kind) for kind in (is_whole, is_other, is_copy)])
        return rows.select(np.argsort(places))

    def _copies(self, numbers: np.ndarray, epoch: int) -> UserRows:
        if self._drawn is not None:
            return self._drawn.select(numbers).compact()
        copies = draw_copies(
            self.table,
            self.training_end,
            self._users[numbers],
            self._numbers[numbers],
            self.augmentation,
            epoch,
            self.max_interactions,
        )
        return self._rows_of(copies)

    def _rows_of(self, copies: AugmentedCopies) -> UserRows:
        table, kept, begin = self.table, copies.positions, copies.offsets[:-1]
        sessions = None if table.session_ids is None else table.session_ids[kept]
        return UserRows(table.items[kept], table.behaviors[kept], begin, copies.offsets[1:], begin, sessions)


def held_out_rows(table: SequenceTable, history_start: np.ndarray, held_out: np.ndarray) -> UserRows:
    """Rows whose loss counts the held-out interaction alone, predicted from its history.

    Args:
        table: the sequences.
        history_start: `(num_rows,)` first position of each history.
        held_out: `(num_rows,)` position of the interaction that follows it.
    """
    return UserRows(table.items, table.behaviors, history_start, held_out + 1, held_out, table.session_ids)


__all__ = ["DRAWS", "Draw", "TrainingRows", "UserRows", "held_out_rows"]
