"""Balanced chunked IDs: a seeded permutation of the items, written in base k (MBGen section 3.2)."""

import numpy as np


def chunked_item_ids(
    num_items: int, base: int | None = 64, num_levels: int | None = None, seed: int = 2024
) -> tuple[np.ndarray, list[int]]:
    """Codes of `num_items` items that need no features and are balanced by construction.

    Args:
        num_items: size of the catalog.
        base: number of codes of a level (the paper's k); `None` takes the smallest that `num_levels` levels allow.
        num_levels: number of code levels m; as many as the catalog needs in this base by default.
        seed: of the permutation.

    Returns:
        `(num_items, m)` `int32` codes, most significant digit first, and the m code sizes: `base`, except that the
        first level holds only the digits that occur.

    Raises:
        ValueError: no items, a base below 2, more items than `base ** num_levels`, or neither of the two.
    """
    if num_items < 1:
        raise ValueError(f"`num_items`: expected at least 1, found {num_items}")
    if base is None:
        base = _smallest_base(num_items, num_levels)
    if base < 2:
        raise ValueError(f"`base`: expected at least 2, found {base}")
    needed = 1
    while base**needed < num_items:
        needed += 1
    if num_levels is None:
        num_levels = needed
    elif num_levels < needed:
        raise ValueError(
            f"`num_levels`: expected at least {needed} for {num_items} items in base {base}, found {num_levels}"
        )
    numbers = np.random.default_rng(seed).permutation(num_items).astype(np.int64)
    powers = base ** np.arange(num_levels - 1, -1, -1, dtype=np.int64)
    codes = (numbers[:, None] // powers % base).astype(np.int32)
    return codes, [int(codes[:, 0].max()) + 1, *[base] * (num_levels - 1)]


def _smallest_base(num_items: int, num_levels: int | None) -> int:
    if num_levels is None or num_levels < 1:
        raise ValueError(f"`num_levels`: expected at least 1 where `base` is left open, found {num_levels}")
    base = 2
    while base**num_levels < num_items:
        base += 1
    return base


__all__ = ["chunked_item_ids"]
