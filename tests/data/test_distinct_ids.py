import numpy as np
import polars as pl
import pytest

from mbgen_hf.data.distinct_ids import count_distinct, dense_ranks


RNG = np.random.default_rng(0)
COLUMNS = {
    "narrow": RNG.integers(-50, 50, 300).tolist(),
    "wide": RNG.integers(-(2**62), 2**62, 300).tolist() * 2,
    "extremes": [2**63 - 1, -(2**63), 0, 2**63 - 1],
    "strings": [f"u{value}" for value in RNG.integers(0, 40, 300)],
    "one": [7],
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("chunks", [1, 3])
def test_ranks_and_counts_agree_with_numpy(name: str, chunks: int) -> None:
    values = COLUMNS[name]
    ids = pl.concat([pl.Series(part) for part in np.array_split(np.array(values), min(chunks, len(values)))])
    ranks, distinct = dense_ranks(ids)
    expected, inverse = np.unique(np.array(values), return_inverse=True)
    assert distinct.to_list() == expected.tolist() and ranks.tolist() == inverse.tolist()
    assert ranks.dtype == np.int32 and count_distinct(ids) == len(expected)


def test_small_integer_types_do_not_overflow() -> None:
    ids = pl.Series([-128, 127, -128], dtype=pl.Int8)
    assert dense_ranks(ids)[0].tolist() == [0, 1, 0] and count_distinct(ids) == 2
