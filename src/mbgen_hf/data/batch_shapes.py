"""Batches in a few shapes only, for what is compiled or recorded anew for each."""

import numpy as np

from mbgen_hf.models.token_space import PAD


FEW = 8
"""Lengths that the rows of a batch are padded up to: so many of them at most."""
PADDING = {"input_ids": PAD, "labels": -100, "session_ids": -1, "attention_mask": 0, "sequence_ids": 0}


def few_lengths(lengths: np.ndarray, count: int = FEW) -> np.ndarray:
    """The lengths, so many at most and the longest among them, that add least where each row is padded to the next.

    Round numbers would add a third to a log whose users have eight interactions at the median.

    Args:
        lengths: `(num_rows,)` number of interactions of each row.
        count: how many lengths there may be.

    Returns:
        `(count,)` or fewer, ascending.
    """
    values, numbers = np.unique(lengths, return_counts=True)
    rows = np.cumsum(numbers)
    # For each of the values, the smallest size of all rows up to it where it is the last of so many lengths.
    sizes, before = values * rows, []
    later = np.arange(len(values))[:, None] < np.arange(len(values))
    for _ in range(min(count, len(values)) - 1):
        candidates = np.where(later, sizes[:, None] + values * (rows - rows[:, None]), np.iinfo(np.int64).max)
        before.append(candidates.argmin(axis=0))
        sizes = np.minimum(sizes, candidates.min(axis=0))
    return values[_way_back(before, len(values) - 1)]


def _way_back(before: list[np.ndarray], last: int) -> list[int]:
    chosen = [last]
    for previous in reversed(before):
        if chosen[0] > 0:
            chosen.insert(0, int(previous[chosen[0]]))
    return chosen


def next_length(length: int, lengths: np.ndarray) -> int:
    """The first of `few_lengths` that is no shorter."""
    return int(lengths[np.searchsorted(lengths, length)])


def rounded_rows(count: int, most: int) -> int:
    """At most a fourth more rows, of which there are then four numbers between a power of two and the next."""
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return min(-(-count // step) * step, most)


def widen(batch: dict[str, np.ndarray], columns: int, rows: int = 0) -> dict[str, np.ndarray]:
    """Add columns of padding to the right of `(batch_size, seq_len)` arrays, and rows of it below them."""
    return {
        name: np.pad(values, ((0, rows), (0, columns)), constant_values=PADDING[name])
        for name, values in batch.items()
    }


__all__ = ["FEW", "PADDING", "few_lengths", "next_length", "rounded_rows", "widen"]
