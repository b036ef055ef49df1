import numpy as np
import pytest

from mbgen_hf.item_ids.unique_digit import FreeDigits, unique_digits, with_room


def test_digits_count_through_every_cell():
    codes = np.random.default_rng(0).integers(0, 4, (200, 2))
    digits = unique_digits(codes, seed=0)
    cells: dict = {}
    for cell, digit in zip(map(tuple, codes.tolist()), digits.tolist(), strict=True):
        cells.setdefault(cell, []).append(digit)
    assert all(sorted(digits) == list(range(len(digits))) for digits in cells.values())


def test_digits_follow_no_order_but_the_seed():
    codes = np.zeros((50, 1), dtype=np.int32)
    one, two = unique_digits(codes, 0), unique_digits(codes, 1)
    assert np.array_equal(one, unique_digits(codes, 0)) and not np.array_equal(one, two)
    assert not np.array_equal(one, np.arange(50))


def test_room_is_a_share_of_the_largest_cell():
    assert [with_room(10, share) for share in (0, 0.1, 0.11, 1)] == [10, 11, 12, 20]
    with pytest.raises(ValueError, match="`spare_fraction`"):
        with_room(10, -0.1)


def test_free_digits_are_given_once_and_lowest_first():
    free = FreeDigits(np.array([[0, 0], [0, 2], [1, 0]]), size=4)
    assert [free.take((0,)) for _ in range(3)] == [1, 3, None]
    assert [free.take((7,)) for _ in range(5)] == [0, 1, 2, 3, None]
