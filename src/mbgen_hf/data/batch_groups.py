"""Groups and distinct ids of rows that come in batches, without keeping the rows."""

from collections.abc import Sequence

import numpy as np
import polars as pl


MERGED_AT_ONCE = 1 << 20
"""Groups of batches that are merged together, at least."""
MAX_SPARSENESS = 8
SMALL_RANGE = 1 << 24
"""Ids are looked up in an array up to so many possible ones, or `MAX_SPARSENESS` per row; each takes 4 bytes."""
UNSEEN, UNDATED = -(2**31), -(2**31) + 1


class Groups:
    """Groups of batches, merged whenever as many have come in as there are: time stays linear in what comes in.

    Args:
        keys: columns that tell groups apart.
        merge: expressions that make one group of several.
    """

    def __init__(self, keys: Sequence[str], merge: Sequence[pl.Expr]):
        self.keys, self._merge = list(keys), list(merge)
        self._parts: list[pl.DataFrame] = []
        self._pending, self._limit = 0, MERGED_AT_ONCE

    def add(self, groups: pl.DataFrame) -> None:
        """Add a frame of `keys` and the columns that `merge` reads, no group twice."""
        self._parts.append(groups)
        self._pending += groups.height
        if self._pending > self._limit:
            self._limit = max(MERGED_AT_ONCE, self.merged().height)

    def merged(self) -> pl.DataFrame:
        """One row for each group of what was added so far, which is one frame at least."""
        if len(self._parts) > 1:
            self._parts = [pl.concat(self._parts).group_by(self.keys).agg(self._merge)]
        self._pending = 0
        return self._parts[0]


class LastDays:
    """The distinct ids of a column and, where rows are dated, the last day each was seen on.

    Integers of a narrow range are looked up in an array, which takes a tenth of the time of grouping.

    Args:
        name: the column of ids.
        dated: whether rows have a `day`; it may be null.
    """

    def __init__(self, name: str, dated: bool):
        self._name, self._dated = name, dated
        self._groups = Groups([name], [pl.col("day").max()] if dated else [])
        self._narrow, self._rows = True, 0
        self._low, self._last = 0, np.empty(0, dtype=np.int32)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows without null ids."""
        if rows.is_empty():
            return
        ids = rows[self._name]
        self._rows += rows.height
        if self._narrow and not self._reach(ids):
            if len(self._last):
                self._groups.add(self._seen())
            self._narrow, self._last = False, np.empty(0, dtype=np.int32)
        if not self._narrow:
            self._groups.add(rows.group_by(self._name).agg([pl.col("day").max()] if self._dated else []))
        elif self._dated:
            np.maximum.at(self._last, ids.to_numpy() - self._low, rows["day"].fill_null(UNDATED).to_numpy())
        else:
            self._last[ids.to_numpy() - self._low] = UNDATED

    def merged(self) -> pl.DataFrame:
        """One row for each id, with its `day` where rows are dated."""
        return self._seen() if self._narrow else self._groups.merged()

    def _reach(self, ids: pl.Series) -> bool:
        """Make the array reach over these ids; `False` where it would be too long, or they are no integers."""
        if not ids.dtype.is_integer():
            return False
        low, high = int(ids.min()), int(ids.max())
        if len(self._last):
            low, high = min(low, self._low), max(high, self._low + len(self._last) - 1)
        if high - low >= max(SMALL_RANGE, MAX_SPARSENESS * self._rows):
            return False
        if high - low >= len(self._last):
            before = self._low - low
            longer = np.full(max(high - low + 1, len(self._last) * 3 // 2), UNSEEN, dtype=np.int32)
            longer[before : before + len(self._last)] = self._last
            self._low, self._last = low, longer
        return True

    def _seen(self) -> pl.DataFrame:
        places = np.flatnonzero(self._last != UNSEEN)
        frame = pl.DataFrame({self._name: places + self._low})
        if not self._dated:
            return frame
        day = pl.Series("day", self._last[places], dtype=pl.Int32)
        return frame.with_columns(pl.when(day != UNDATED).then(day).alias("day"))


__all__ = ["Groups", "LastDays"]
