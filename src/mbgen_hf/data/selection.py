"""Which part of a log is looked at: a window of days, a sample of the users."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from mbgen_hf.data.filters import FilterStep
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import SessionRule, local_days


EPOCH = date(1970, 1, 1)
WINDOW_FORM = re.compile(r"(?P<days>[0-9]{1,6})(@(?P<first>[0-9]{4}-[0-9]{2}-[0-9]{2}))?(:(?P<zone>.+))?")


@dataclass(frozen=True)
class TimeWindow:
    """Whole calendar days, one after the other.

    Args:
        days: how many.
        first_day: the first of them; without it they are the last days the log holds.
        timezone: IANA name of the zone whose midnights count.

    Raises:
        ValueError: not a positive number of days, or an unknown zone.
    """

    days: int
    first_day: date | None = None
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        if isinstance(self.days, bool) or not isinstance(self.days, int) or self.days < 1:
            raise ValueError(f"`days`: expected a positive number of days, found {self.days!r}")
        SessionRule("day", timezone=self.timezone)  # knows which zones there are

    @classmethod
    def parse(cls, text: str) -> "TimeWindow":
        """Read `DAYS[@FIRST][:ZONE]`; `str(window)` writes the same.

        Raises:
            ValueError: another text.

        Example:
            >>> TimeWindow.parse("7@2014-09-01:Asia/Shanghai").first_day, str(TimeWindow.parse("7"))
            (datetime.date(2014, 9, 1), '7:UTC')
        """
        found = WINDOW_FORM.fullmatch(text)
        try:
            first = date.fromisoformat(found["first"]) if found and found["first"] else None
        except ValueError:
            found = None
        if not found:
            raise ValueError(f"`window`: expected DAYS[@FIRST-DAY][:ZONE] such as 7@2014-09-01:UTC, found {text!r}")
        return cls(int(found["days"]), first, found["zone"] or "UTC")

    def __str__(self) -> str:
        return f"{self.days}{f'@{self.first_day}' if self.first_day else ''}:{self.timezone}"

    def first(self, last_of_log: int) -> int:
        """The first day, counted from 1970, where the log ends with the given day."""
        return last_of_log - self.days + 1 if self.first_day is None else (self.first_day - EPOCH).days

    def describe(self, first: int) -> str:
        """The window as a report names it."""
        start = EPOCH + timedelta(first)
        return f"{start} to {start + timedelta(self.days - 1)} ({self.timezone})"

    def nothing_in_it(self, first_of_log: int, last_of_log: int) -> ValueError:
        """The error for a log of other days; the caller raises it."""
        found = f"{EPOCH + timedelta(first_of_log)} to {EPOCH + timedelta(last_of_log)}"
        return ValueError(f"`window`: expected days the log holds, found {self} in a log from {found}")


@dataclass(frozen=True)
class UserSample:
    """A share of the users, each chosen by a hash of its id and the seed: the same ones whoever else is in the log.

    Args:
        fraction: how likely a user is kept; above 0, at most 1.
        seed: another seed is another sample.

    Raises:
        ValueError: a fraction or seed out of range.
    """

    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        fraction, seed = self.fraction, self.seed
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise ValueError(f"`sample_users`: expected a fraction above 0 and at most 1, found {fraction!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"`sample_seed`: expected a non-negative integer, found {seed!r}")

    def of(self, user_ids: Iterable[int | str]) -> np.ndarray:
        """`(num_users,)` bool: the user is in the sample.

        Raises:
            ValueError: none is.
        """
        digests = bytearray()
        for user in user_ids:
            digests += hashlib.blake2b(f"{self.seed} {user}".encode(), digest_size=8).digest()
        kept = np.frombuffer(digests, dtype=">u8") / 2.0**64 < self.fraction
        if not kept.any():
            expected = "`sample_users`: expected users to be left"
            raise ValueError(f"{expected}, found none of {len(kept)} at {self.fraction}; None keeps all users")
        return kept

    def describe(self) -> str:
        """The sample as a report names it."""
        return f"a sample of {self.fraction:.0%} of the users, seed {self.seed}"


@dataclass(frozen=True)
class Selection:
    """A part of a log: first the window, then the sample of the users who have something in it."""

    window: TimeWindow | None = None
    sample: UserSample | None = None

    def __bool__(self) -> bool:
        return self.window is not None or self.sample is not None


def keep_window(table: SequenceTable, window: TimeWindow) -> tuple[SequenceTable, FilterStep]:
    """The interactions of a window.

    Returns:
        The smaller table, and the sizes before and after.

    Raises:
        ValueError: nothing lies in the window.
    """
    days = local_days(table.timestamps, window.timezone)
    first = window.first(int(days.max()))
    kept = (days >= first) & (days < first + window.days)
    if not kept.any():
        raise window.nothing_in_it(int(days.min()), int(days.max()))
    smaller = table.select(kept)
    return smaller, FilterStep.between(window.describe(first), table, smaller)


def sample_users(table: SequenceTable, fraction: float, seed: int = 0) -> tuple[SequenceTable, FilterStep]:
    """The interactions of a `UserSample`.

    Returns:
        The smaller table, and the sizes before and after.

    Raises:
        ValueError: a fraction or seed out of range, or no user is left.
    """
    sample = UserSample(fraction, seed)
    smaller = table.select(np.repeat(sample.of(table.user_ids.tolist()), table.lengths))
    return smaller, FilterStep.between(sample.describe(), table, smaller)


__all__ = ["Selection", "TimeWindow", "UserSample", "keep_window", "sample_users"]
