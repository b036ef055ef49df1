"""Training examples: which interaction is predicted from which history, as positions into a sequence table."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mbgen_hf.data.sequence_table import SequenceTable


Window = Literal["last_window", "sliding"]
WINDOWS: tuple[Window, ...] = ("last_window", "sliding")


@dataclass(frozen=True)
class PrefixExamples:
    """One example per predicted interaction: its position, and where the history before it starts.

    Args:
        users: `(num_examples,)` rows of the table.
        starts: `(num_examples,)` first position of the history.
        targets: `(num_examples,)` position of the predicted interaction; the history is `[start, target)`.
    """

    users: np.ndarray
    starts: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> np.ndarray:
        """`(num_examples,)` number of interactions in each history."""
        return self.targets - self.starts


def training_examples(
    table: SequenceTable,
    training_end: np.ndarray,
    window: Window = "last_window",
    max_history: int = 50,
    cold_start: bool = True,
) -> PrefixExamples:
    """Every interaction of the training part, predicted from what came before it (MBGen section 3.3, M15).

    Args:
        table: the sequences.
        training_end: `(num_users,)` position after each user's last training interaction.
        window: `"last_window"` takes the last `max_history` training interactions of each user and all prefixes of
            that window (released code); `"sliding"` predicts every training interaction from up to `max_history`
            before it.
        max_history: longest history, in interactions.
        cold_start: whether a user's very first interaction is predicted from an empty history, which is what serving
            a user without history needs.

    Raises:
        ValueError: an unknown window, or nothing to train on.
    """
    if window not in WINDOWS:
        raise ValueError(f"`window`: expected one of {list(WINDOWS)}, found {window!r}")
    if max_history < 1:
        raise ValueError(f"`max_history`: expected at least 1, found {max_history}")
    first = table.offsets[:-1]
    window_start = np.maximum(first, training_end - max_history) if window == "last_window" else first
    counts = training_end - window_start
    users = np.repeat(np.arange(table.num_users), counts)
    rank = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    targets = window_start[users] + rank
    starts = np.maximum(window_start[users], targets - max_history)
    # An empty history is a cold start only at a user's first interaction, not at the start of a window.
    keep = (targets > starts) | (cold_start & (targets == first[users]))
    if not keep.any():
        raise ValueError("`table`: expected users with interactions to train on, found none before the held-out ones")
    return PrefixExamples(users[keep], starts[keep], targets[keep])


__all__ = ["WINDOWS", "PrefixExamples", "Window", "training_examples"]
