from fractions import Fraction

import numpy as np
import pytest

from mbgen_hf.data.augmentation import (
    Augmentation,
    augmented,
    copy_numbers,
    draw_copies,
    first_of_groups,
    level_ranks,
    random_keys,
)
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable


# Class labels are not in order of level, two levels tie, one number is missing: ranks are 3, 1, 2, 2.
SCHEMA = BehaviorSchema(("buy", "view", "cart", "collect"), (4, 0, 2, 2), "buy")


def random_table(seed: int = 0, num_users: int = 60) -> tuple[SequenceTable, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, num_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    table = SequenceTable(
        schema=SCHEMA,
        user_ids=np.arange(num_users),
        item_ids=np.arange(20),
        offsets=offsets,
        items=rng.integers(0, 20, total).astype(np.int32),
        behaviors=rng.choice(4, total, p=[0.1, 0.6, 0.2, 0.1]).astype(np.int8),
        timestamps=np.arange(total),
    )
    return table, offsets[:-1] + rng.integers(0, lengths + 1)


def share(number: int, augmentation: Augmentation, rank: int) -> Fraction:
    denominator = augmentation.copies + 1 if augmentation.ratios == "paper" else augmentation.copies
    return Fraction(number, denominator) / rank


def rows_of(copies) -> list[list[int]]:
    return [part.tolist() for part in np.split(copies.positions, copies.offsets[1:-1])]


def test_levels_are_counted_from_one_and_ties_share_a_number() -> None:
    assert level_ranks(SCHEMA).tolist() == [3, 1, 2, 2]
    assert level_ranks(BehaviorSchema(("a", "b"), (3, 3), "b")).tolist() == [1, 1]


@pytest.mark.parametrize("ratios", ["paper", "official"])
@pytest.mark.parametrize("copies", [1, 2, 4, 5])
def test_each_copy_drops_the_share_of_every_behavior_below_the_highest_level(copies: int, ratios: str) -> None:
    table, end = random_table(copies)
    augmentation = Augmentation(copies, ratios, seed=3)
    found = augmented(table, end, augmentation)
    rows = iter(zip(found.users.tolist(), found.numbers.tolist(), rows_of(found), strict=True))
    skipped = 0
    for number in range(1, copies + 1):
        for user in range(table.num_users):
            own = table.behaviors[table.offsets[user] : end[user]].tolist()
            counts = [own.count(label) for label in range(4)]
            expected = [
                count if label == 0 else count - int(share(number, augmentation, rank) * count)
                for label, (count, rank) in enumerate(zip(counts, [3, 1, 2, 2], strict=True))
            ]
            if sum(expected) < 2:
                skipped += 1
                continue
            row = next(rows)
            assert row[:2] == (user, number)
            assert row[2] == sorted(set(row[2])) and table.offsets[user] <= row[2][0] and row[2][-1] < end[user]
            kept = table.behaviors[row[2]].tolist()
            assert [kept.count(label) for label in range(4)] == expected
    assert next(rows, None) is None and skipped > 0


def test_hand_example() -> None:
    table = SequenceTable(
        SCHEMA, np.arange(1), np.arange(1), np.array([0, 12]), np.zeros(12, np.int32),
        np.array([1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 0, 0], dtype=np.int8), np.arange(12),
    )  # fmt: skip
    # Copies 1 and 2 of 2 drop 1/3 and 2/3 of 6 views, 1/6 and 1/3 of 3 carts and 1 collect, and no purchase.
    assert copy_numbers(table, np.array([12]), Augmentation(2))[2].tolist() == [10, 7]
    # Released code: 1/2 and all of the views, 1/4 and 1/2 of the others.
    assert copy_numbers(table, np.array([12]), Augmentation(2, "official"))[2].tolist() == [9, 5]
    row = rows_of(augmented(table, np.array([12]), Augmentation(2, "official")))[1]
    assert set(range(6)).isdisjoint(row) and {9, 10, 11} <= set(row)


def test_a_schema_of_one_level_drops_nothing() -> None:
    table, end = random_table()
    schema = BehaviorSchema(SCHEMA.names, (1, 1, 1, 1), "buy")
    table = SequenceTable(**{**table.__dict__, "schema": schema})
    found = augmented(table, end, Augmentation(1))
    assert found.lengths.tolist() == [n for n in (end - table.offsets[:-1]).tolist() if n >= 2]


def test_a_draw_does_not_depend_on_the_batch_but_on_seed_epoch_and_copy() -> None:
    table, end = random_table(1)
    augmentation = Augmentation(4, seed=11)
    whole = augmented(table, end, augmentation, epoch=2)
    users, numbers, lengths = copy_numbers(table, end, augmentation)
    np.testing.assert_array_equal(lengths, whole.lengths)
    order = np.random.default_rng(0).permutation(len(users))[:37]
    some = draw_copies(table, end, users[order], numbers[order], augmentation, epoch=2)
    assert rows_of(some) == [rows_of(whole)[index] for index in order]
    np.testing.assert_array_equal(augmented(table, end, augmentation, epoch=2).positions, whole.positions)
    for other in (augmented(table, end, augmentation, epoch=3), augmented(table, end, Augmentation(4, seed=12), 2)):
        np.testing.assert_array_equal(other.lengths, whole.lengths)
        assert (other.positions != whole.positions).mean() > 0.1


def test_copy_zero_is_the_sequence_itself_and_the_cut_comes_after_the_draw() -> None:
    table, end = random_table(2)
    users = np.arange(table.num_users)
    itself = draw_copies(table, end, users, 0 * users, Augmentation(3))
    assert rows_of(itself) == [list(range(a, b)) for a, b in zip(table.offsets[:-1], end, strict=True)]
    whole, cut = (augmented(table, end, Augmentation(3), max_length=length) for length in (None, 5))
    assert rows_of(cut) == [row[-5:] for row in rows_of(whole)] and cut.lengths.max() == 5


def test_every_interaction_is_dropped_as_often_as_any_other() -> None:
    behaviors = np.array([1] * 10 + [0] * 2, dtype=np.int8)
    table = SequenceTable(
        SCHEMA, np.arange(1), np.arange(1), np.array([0, 12]), np.zeros(12, np.int32), behaviors, np.arange(12)
    )
    kept = np.zeros(12)
    for epoch in range(2000):
        kept[draw_copies(table, np.array([12]), [0], [1], Augmentation(1), epoch).positions] += 1
    assert kept[10:].tolist() == [2000, 2000]
    # Mean 1000, standard deviation 22 each.
    assert kept[:10].sum() == 10_000 and np.abs(kept[:10] - 1000).max() < 90


def test_nothing_at_or_after_the_end_of_the_training_part_is_read() -> None:
    table, end = random_table(4)
    before = augmented(table, end, Augmentation(2))
    held_out = np.arange(table.num_interactions) >= np.repeat(end, table.lengths)
    behaviors = np.where(held_out, 3 - table.behaviors, table.behaviors)
    after = augmented(SequenceTable(**{**table.__dict__, "behaviors": behaviors}), end, Augmentation(2))
    np.testing.assert_array_equal(before.positions, after.positions)
    assert not held_out[before.positions].any()


def test_first_of_groups_and_random_keys() -> None:
    groups, keys = np.array([2, 0, 2, 2, 0]), np.array([5, 9, 1, 3, 4], dtype=np.uint64) << np.uint64(32)
    assert first_of_groups(groups, keys, np.array([1, 7, 2])).tolist() == [False, False, True, True, True]
    counters = np.arange(50_000)
    drawn = random_keys([1, 2], counters % 5, counters)
    assert len(np.unique(drawn)) == 50_000 and abs((drawn >> np.uint64(63)).mean() - 0.5) < 0.02
    assert len(np.intersect1d(drawn, random_keys([1, 3], counters % 5, counters))) == 0


def test_wrong_arguments_are_named() -> None:
    table, end = random_table()
    for arguments, name in (({"copies": -1}, "copies"), ({"seed": True}, "seed"), ({"ratios": "mine"}, "ratios")):
        with pytest.raises(ValueError, match=f"`{name}`: expected"):
            Augmentation(**arguments)
    for users, numbers, options, name in (
        ([0], [5], {}, "numbers"),
        ([60], [1], {}, "users"),
        ([0, 1], [1], {}, "numbers"),
        ([0], [1], {"epoch": -1}, "epoch"),
        ([0], [1], {"max_length": 0}, "max_length"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`: expected"):
            draw_copies(table, end, users, numbers, Augmentation(4), **options)
    assert len(augmented(table, end, Augmentation(0))) == 0
