"""The last digit: tells apart the items of a cell, which is all items that share every code before it."""

import math

import numpy as np


def cell_numbers(codes: np.ndarray) -> np.ndarray:
    """`(num_items,)` number of each item's cell; equal rows of `(num_items, levels)` codes share one."""
    if codes.shape[1] == 0:
        return np.zeros(len(codes), dtype=np.int64)
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def unique_digits(codes: np.ndarray, seed: int) -> np.ndarray:
    """Digits 0, 1, ... within every cell, in a random order of its items (MBGen section 3.2).

    Args:
        codes: `(num_items, levels)` codes that items may share.
        seed: of the order.

    Returns:
        `(num_items,)` `int32`; the largest is one less than the largest cell.
    """
    cells = cell_numbers(codes)
    mixed = np.random.default_rng(seed).permutation(len(cells))
    order = mixed[np.argsort(cells[mixed], kind="stable")]
    ordered = cells[order]
    first = np.searchsorted(ordered, ordered)
    digits = np.empty(len(cells), dtype=np.int32)
    digits[order] = np.arange(len(cells)) - first
    return digits


def with_room(largest: int, spare_fraction: float) -> int:
    """Size of a last level whose largest cell holds `largest` items, with room for items to come.

    Raises:
        ValueError: a negative `spare_fraction`.
    """
    if not 0 <= spare_fraction < math.inf:
        raise ValueError(f"`spare_fraction`: expected 0 or more, found {spare_fraction}")
    return largest + math.ceil(spare_fraction * largest)


class FreeDigits:
    """Digits that are still free in each cell, while items are added.

    A cell gives its lowest free digit first: low digits occur in most cells, so a trained model knows their tokens.

    Args:
        codes: `(num_items, m)` codes, the last digit included.
        size: ids of the last level.
    """

    def __init__(self, codes: np.ndarray, size: int):
        self.size = size
        self._taken: dict[tuple[int, ...], set[int]] = {}
        for *cell, digit in codes.tolist():
            self._taken.setdefault(tuple(cell), set()).add(digit)

    def take(self, cell: tuple[int, ...]) -> int | None:
        """The lowest free digit of a cell, which is then taken; `None` if the cell is full."""
        taken = self._taken.setdefault(cell, set())
        if len(taken) >= self.size:
            return None
        digit = next(digit for digit in range(self.size) if digit not in taken)
        taken.add(digit)
        return digit


__all__ = ["FreeDigits", "cell_numbers", "unique_digits", "with_room"]
