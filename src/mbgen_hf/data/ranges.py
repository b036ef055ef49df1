"""Many ranges of positions at once, without a loop over them."""

import numpy as np


def flat_ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write out the ranges `[start, end)` one after the other.

    Args:
        starts: `(num_ranges,)` first position of each range.
        ends: `(num_ranges,)` position after the last one; a range that ends before it starts is empty.

    Returns:
        The number of the range each position belongs to and the positions, both `(total,)` `int64`.

    Example:
        >>> import numpy as np
        >>> rows, positions = flat_ranges(np.array([4, 9]), np.array([6, 12]))
        >>> rows.tolist(), positions.tolist()
        ([0, 0, 1, 1, 1], [4, 5, 9, 10, 11])
    """
    lengths = np.maximum(np.asarray(ends, dtype=np.int64) - starts, 0)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


__all__ = ["flat_ranges"]
