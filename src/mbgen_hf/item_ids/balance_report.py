"""How evenly the items are spread over the codes (MBGen table 7)."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class LevelBalance:
    """Items counted by their first codes, up to and including one level.

    Args:
        level: code level, 0-based.
        size: ids of the level.
        unused_codes: ids of the level that no item has.
        cells: number of possible combinations of codes up to this level.
        used_cells: combinations that some item has.
        mean: items per combination.
        variance: population variance of the items per combination, empty ones counted.
        largest: items of the largest combination.
        sharing: items whose combination some other item has too; at the last level, collisions.
        aliased: items left out so far since one of their codes is not below its level's size: their tokens would be
            those of another level.
    """

    level: int
    size: int
    unused_codes: int
    cells: int
    used_cells: int
    mean: float
    variance: float
    largest: int
    sharing: int
    aliased: int


@dataclass(frozen=True)
class BalanceReport:
    """Balance of every level.

    Args:
        num_items: number of items.
        levels: one entry per code level.
    """

    num_items: int
    levels: tuple[LevelBalance, ...]

    @property
    def collisions(self) -> int:
        """Items that share all of their codes with another item."""
        return self.levels[-1].sharing

    @property
    def aliased(self) -> int:
        """Items with a code that is not below its level's size."""
        return self.levels[-1].aliased

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        levels = [asdict(level) for level in self.levels]
        return {
            "num_items": self.num_items, "collisions": self.collisions, "aliased": self.aliased, "levels": levels,
        }  # fmt: skip

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, report: dict) -> "BalanceReport":
        """Read what `to_dict` gave."""
        return cls(report["num_items"], tuple(LevelBalance(**level) for level in report["levels"]))

    def format_table(self) -> str:
        """The report as a table of text."""
        names = ["level", "size", "unused", "cells used", "of", "mean", "variance", "largest", "sharing", "aliased"]
        rows = [
            [
                f"L{level.level + 1}", str(level.size), str(level.unused_codes), str(level.used_cells),
                _short(level.cells), _short(level.mean), _short(level.variance), str(level.largest),
                str(level.sharing), str(level.aliased),
            ]
            for level in self.levels
        ]  # fmt: skip
        widths = [max(len(row[column]) for row in [names, *rows]) for column in range(len(names))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [names, *rows]
        ]
        return f"{self.num_items} items, {self.collisions} collisions\n" + "\n".join(lines)


def balance_report(codes: np.ndarray, code_sizes: Sequence[int]) -> BalanceReport:
    """Count the items of every combination of first codes.

    Args:
        codes: `(num_items, levels)` codes, shared or not.
        code_sizes: ids of each level. Items with a code that is not below its size are left out from that level on,
            and counted as aliased.

    Raises:
        ValueError: no items, negative codes, or a number of sizes that does not fit.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or len(codes) == 0 or codes.shape[1] != len(code_sizes):
        raise ValueError(f"`codes`: expected shape (num_items, {len(code_sizes)}), found {codes.shape}")
    if codes.min() < 0:
        raise ValueError(f"`codes`: expected 0 or more, found {codes.min()}")
    levels = []
    cells = np.zeros(len(codes), dtype=np.int64)
    inside = np.ones(len(codes), dtype=bool)
    for level, size in enumerate(code_sizes):
        inside &= codes[:, level] < size
        # Cells are renumbered at each level, so that the key fits 64 bits for any number of levels.
        keys = np.where(inside, cells * size + codes[:, level], -1)
        cells = np.unique(keys, return_inverse=True)[1].reshape(-1)
        counts = np.bincount(cells[inside]) if inside.any() else np.zeros(1, dtype=np.int64)
        levels.append(
            _level(level, size, math.prod(code_sizes[: level + 1]), counts, codes[inside, level], len(codes))
        )
    return BalanceReport(len(codes), tuple(levels))


def _level(level: int, size: int, cells: int, counts: np.ndarray, codes: np.ndarray, num_items: int) -> LevelBalance:
    inside = int(counts.sum())
    # Whole numbers until the last division: most cells are empty, and their number may exceed any array.
    squares = sum(int(count) ** 2 for count in counts.tolist())
    return LevelBalance(
        level=level,
        size=size,
        unused_codes=size - len(np.unique(codes)),
        cells=cells,
        used_cells=int((counts > 0).sum()),
        mean=inside / cells,
        variance=(squares * cells - inside**2) / cells**2,
        largest=int(counts.max()),
        sharing=int(counts[counts > 1].sum()),
        aliased=num_items - inside,
    )


def _short(value: float) -> str:
    return f"{value:.6g}" if value < 1e6 else f"{value:.3e}"


__all__ = ["BalanceReport", "LevelBalance", "balance_report"]
