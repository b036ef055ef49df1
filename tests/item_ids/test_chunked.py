import numpy as np
import pytest

from mbgen_hf.item_ids.chunked import chunked_item_ids


@pytest.mark.parametrize(
    ("num_items", "base", "levels"), [(1, 64, None), (64, 64, None), (65, 64, None), (5000, 7, 5)]
)
def test_codes_are_the_digits_of_a_permutation(num_items, base, levels):
    codes, sizes = chunked_item_ids(num_items, base, levels)
    numbers = codes.astype(np.int64) @ (base ** np.arange(codes.shape[1] - 1, -1, -1))
    assert sorted(numbers.tolist()) == list(range(num_items))
    assert sizes[1:] == [base] * (len(sizes) - 1) and sizes[0] == codes[:, 0].max() + 1
    assert levels is None or codes.shape[1] == levels


def test_levels_and_base_follow_from_the_catalog():
    assert chunked_item_ids(64, 64)[0].shape == (64, 1)
    assert chunked_item_ids(65, 64)[0].shape == (65, 2)
    codes, sizes = chunked_item_ids(120, None, 2)
    assert sizes == [11, 11] and codes.max() == 10


def test_levels_are_balanced():
    codes, _ = chunked_item_ids(4096, 16)
    for level in range(3):
        assert set(np.bincount(codes[:, level])) == {256}


def test_the_seed_decides_and_repeats():
    one, two = chunked_item_ids(500, 8, seed=1)[0], chunked_item_ids(500, 8, seed=2)[0]
    assert np.array_equal(one, chunked_item_ids(500, 8, seed=1)[0]) and not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "`num_items`"), ((5, 1), "`base`"), ((100, 4, 3), "at least 4 for 100"), ((5, None), "`num_levels`")],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        chunked_item_ids(*arguments)
