"""Distinct ids of a column: how many there are, and the rank of each row's id among them.

Integers of a range that is not much wider than the column is long are looked up in arrays: that takes a fraction of
the time and memory of hashing them. Anything else is hashed.
"""

import numpy as np
import polars as pl


MAX_SPARSENESS = 8
"""Arrays are used up to so many possible ids per row; they take 5 bytes for each possible id."""
SMALL = 1 << 16


def dense_ranks(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Rank the ids of a column without nulls.

    Returns:
        `(n,)` `int32` rank of each id among the distinct ones, and these in ascending order.

    Example:
        >>> ranks, distinct = dense_ranks(pl.Series([7, 3, 7]))
        >>> ranks.tolist(), distinct.to_list()
        ([1, 0, 1], [3, 7])
    """
    if _is_narrow(ids):
        present, places, low = _flags(ids)
        ranks = np.cumsum(present, dtype=np.int32) - np.int32(1)
        return ranks[places], pl.Series(np.flatnonzero(present) + low, dtype=pl.Int64)
    distinct = ids.unique().sort()
    index = pl.DataFrame({"id": distinct}).with_row_index("rank")
    ranks = ids.alias("id").to_frame().join(index, on="id", how="left", maintain_order="left")["rank"]
    return ranks.to_numpy().astype(np.int32), distinct


def count_distinct(ids: pl.Series) -> int:
    """How many different ids a column without nulls holds."""
    if _is_narrow(ids):
        return int(np.count_nonzero(_flags(ids)[0]))
    return ids.n_unique()


def _is_narrow(ids: pl.Series) -> bool:
    if not ids.dtype.is_integer() or ids.is_empty():
        return False
    return int(ids.max()) - int(ids.min()) < MAX_SPARSENESS * len(ids) + SMALL


def _flags(ids: pl.Series) -> tuple[np.ndarray, np.ndarray, int]:
    """Which ids from the lowest on occur, the place of each row's id among them, and the lowest."""
    low = int(ids.min())
    places = ids.cast(pl.Int64).to_numpy() - low
    present = np.zeros(int(ids.max()) - low + 1, dtype=bool)
    present[places] = True
    return present, places, low


__all__ = ["count_distinct", "dense_ranks"]
