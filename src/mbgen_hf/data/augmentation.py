"""Sequential augmentation: copies of a sequence with some of its weaker behaviors left out (GAMER section 3.3).

Copy number `i` of `x` drops, of each behavior `b` below the highest level, the share `r_i / L_b` of the user's
training interactions with that behavior, chosen at random, and keeps the order of the rest. `L_b` counts the levels
from 1 for the lowest; behaviors of one level share it. The number dropped is `floor(share * count)`, by exact
arithmetic, so it is known before anything is drawn: which copies there are and how long they are is the same in every
epoch.

A draw follows from seed, epoch, copy number and the position of each interaction alone. It is the same whether copies
are made all at once or one by one, in whatever batch, order or process.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable


Ratios = Literal["paper", "official"]
RATIOS: tuple[Ratios, ...] = ("paper", "official")
MINIMUM_LENGTH = 2
"""A shorter copy holds nothing to predict from something."""


@dataclass(frozen=True)
class Augmentation:
    """How many copies, and how much each of them drops.

    Args:
        copies: `x`, the number of copies of each user's sequence beside the sequence itself.
        ratios: `"paper"` takes `r_i = i / (x + 1)`, `"official"` (released code) `r_i = i / x`, whose last copy drops
            every interaction of the lowest level.
        seed: of the draws.

    Raises:
        ValueError: a negative number of copies or seed, or unknown ratios.
    """

    copies: int = 4
    ratios: Ratios = "paper"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("copies", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}`: expected a non-negative integer, found {value!r}")
        if self.ratios not in RATIOS:
            raise ValueError(f"`ratios`: expected one of {list(RATIOS)}, found {self.ratios!r}")

    @property
    def denominator(self) -> int:
        """Of every ratio; its numerator is the copy number."""
        return max(self.copies + (self.ratios == "paper"), 1)


@dataclass(frozen=True)
class AugmentedCopies:
    """Copies of training parts, as positions into the table they come from.

    Args:
        users: `(num_copies,)` row of each copy's user in the table.
        numbers: `(num_copies,)` copy number, from 1; 0 is the sequence itself.
        offsets: `(num_copies + 1,)` where each copy begins in `positions`.
        positions: `(total,)` positions of the interactions kept, ascending within a copy.
    """

    users: np.ndarray
    numbers: np.ndarray
    offsets: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """`(num_copies,)` number of interactions of each copy."""
        return np.diff(self.offsets)


def copy_numbers(
    table: SequenceTable, training_end: np.ndarray, augmentation: Augmentation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The copies to make: all but those of fewer than two interactions, the same in every epoch.

    Args:
        table: the sequences.
        training_end: `(num_users,)` position after each user's last training interaction.
        augmentation: how many copies, and how much they drop.

    Returns:
        Users, copy numbers from 1 and lengths, each `(num_copies,)`, in order of copy number and user.
    """
    rows, positions = flat_ranges(table.offsets[:-1], training_end)
    num_behaviors = len(table.schema)
    groups = rows * num_behaviors + table.behaviors[positions]
    counts = np.bincount(groups, minlength=table.num_users * num_behaviors).reshape(-1, num_behaviors)
    users = np.tile(np.arange(table.num_users), augmentation.copies)
    numbers = np.repeat(np.arange(1, augmentation.copies + 1), table.num_users)
    dropped = _dropped_counts(counts[users], numbers, table.schema, augmentation)
    lengths = (counts[users] - dropped).sum(axis=1)
    made = lengths >= MINIMUM_LENGTH
    return users[made], numbers[made], lengths[made]


def draw_copies(
    table: SequenceTable,
    training_end: np.ndarray,
    users: np.ndarray,
    numbers: np.ndarray,
    augmentation: Augmentation,
    epoch: int = 0,
    max_length: int | None = None,
) -> AugmentedCopies:
    """Draw the asked copies for one epoch; short ones are returned as they are.

    Args:
        table: the sequences.
        training_end: `(num_users,)` position after each user's last training interaction.
        users: `(num_copies,)` rows of the table.
        numbers: `(num_copies,)` copy number of each, 0 (the sequence itself) to `augmentation.copies`.
        augmentation: how much each copy drops.
        epoch: another epoch is another draw.
        max_length: keep only the latest interactions of each copy, cut **after** the draw as the released code does.

    Raises:
        ValueError: a user or copy number that does not exist, or a length or epoch out of range.
    """
    users, numbers = np.asarray(users, dtype=np.int64), np.asarray(numbers, dtype=np.int64)
    _check_draw(table, users, numbers, augmentation, epoch, max_length)
    rows, positions = flat_ranges(table.offsets[users], np.asarray(training_end)[users])
    num_behaviors = len(table.schema)
    groups = rows * num_behaviors + table.behaviors[positions]
    counts = np.bincount(groups, minlength=len(users) * num_behaviors).reshape(-1, num_behaviors)
    dropped = _dropped_counts(counts, numbers, table.schema, augmentation)
    keys = random_keys([augmentation.seed, epoch], numbers[rows], positions)
    kept = ~first_of_groups(groups, keys, dropped.ravel())
    lengths = np.bincount(rows[kept], minlength=len(users))
    copies = AugmentedCopies(users, numbers, _offsets(lengths), positions[kept])
    return copies if max_length is None else _latest(copies, max_length)


def augmented(
    table: SequenceTable,
    training_end: np.ndarray,
    augmentation: Augmentation,
    epoch: int = 0,
    max_length: int | None = None,
) -> AugmentedCopies:
    """All copies that `copy_numbers` names, drawn at once; arguments as for `draw_copies`."""
    users, numbers, _ = copy_numbers(table, training_end, augmentation)
    return draw_copies(table, training_end, users, numbers, augmentation, epoch, max_length)


def level_ranks(schema: BehaviorSchema) -> np.ndarray:
    """`(num_behaviors,)` `L_b`: the levels that occur, counted from 1 for the lowest; ties share a number."""
    return np.unique(schema.levels, return_inverse=True)[1] + 1


def first_of_groups(groups: np.ndarray, keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Pick from each group its members of the smallest keys, by their upper 32 bits.

    Args:
        groups: `(n,)` group of each member, below 2**32.
        keys: `(n,)` `uint64` random keys.
        sizes: `(num_groups,)` how many of each group to pick.

    Returns:
        `(n,)` bool.
    """
    total = len(groups)
    members = np.flatnonzero(sizes[groups] > 0)
    groups, keys = groups[members], keys[members]
    counts = np.bincount(groups, minlength=len(sizes))
    # One sort of whole integers is many times faster than a sort by two keys; 32 random bits are enough to choose by.
    order = np.argsort((groups.astype(np.uint64) << np.uint64(32)) | (keys >> np.uint64(32)), kind="stable")
    ordered = groups[order]
    rank = np.arange(len(ordered)) - (np.cumsum(counts) - counts)[ordered]
    picked = np.zeros(total, dtype=bool)
    picked[members[order]] = rank < sizes[ordered]
    return picked


def random_keys(seeds: list[int], streams: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """A random `uint64` for every (stream, counter), the same wherever it is asked for (SplitMix64, hashed twice).

    Args:
        seeds: non-negative integers, such as seed and epoch.
        streams: `(n,)` non-negative integers.
        counters: `(n,)` non-negative integers.
    """
    base, step = np.random.SeedSequence(seeds).generate_state(2, np.uint64)
    mixed = _mix(base + np.asarray(counters).astype(np.uint64))
    return _mix(mixed ^ _mix(step + np.asarray(streams).astype(np.uint64)))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014); `uint64` arithmetic wraps around."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _dropped_counts(
    counts: np.ndarray, numbers: np.ndarray, schema: BehaviorSchema, augmentation: Augmentation
) -> np.ndarray:
    """`(num_copies, num_behaviors)` interactions to drop: `floor(number * count / (denominator * L_b))`."""
    ranks = level_ranks(schema)
    dropped = numbers[:, None] * counts // (augmentation.denominator * ranks)
    return np.where(ranks == ranks.max(), 0, dropped)


def _latest(copies: AugmentedCopies, max_length: int) -> AugmentedCopies:
    ends = copies.offsets[1:]
    starts = np.maximum(copies.offsets[:-1], ends - max_length)
    places = flat_ranges(starts, ends)[1]
    return AugmentedCopies(copies.users, copies.numbers, _offsets(ends - starts), copies.positions[places])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _check_draw(table, users, numbers, augmentation: Augmentation, epoch: int, max_length: int | None) -> None:
    if users.shape != numbers.shape or users.ndim != 1:
        raise ValueError(f"`numbers`: expected one per user, shape {users.shape}, found {numbers.shape}")
    if len(users) and not 0 <= users.min() <= users.max() < table.num_users:
        raise ValueError(f"`users`: expected rows in 0..{table.num_users - 1}, found {users.min()}..{users.max()}")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() <= augmentation.copies:
        raise ValueError(
            f"`numbers`: expected copy numbers in 0..{augmentation.copies}, found {numbers.min()}..{numbers.max()}"
        )
    if max_length is not None and max_length < 1:
        raise ValueError(f"`max_length`: expected 1 or more, found {max_length}")
    if epoch < 0:
        raise ValueError(f"`epoch`: expected 0 or more, found {epoch}")


__all__ = [
    "RATIOS",
    "Augmentation",
    "AugmentedCopies",
    "Ratios",
    "augmented",
    "copy_numbers",
    "draw_copies",
    "first_of_groups",
    "level_ranks",
    "random_keys",
]
