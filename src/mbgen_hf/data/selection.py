"""Which part of a log is looked at: a window of days, a sample of the users."""

import hashlib
import re
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


def keep_window(table: SequenceTable, window: TimeWindow) -> tuple[SequenceTable, FilterStep]:
    """The interactions of a window.

    Returns:
        The smaller table, and the sizes before and after.

    Raises:
        ValueError: nothing lies in the window.
    """
    days = local_days(table.timestamps, window.timezone)
    first = int(days.max()) - window.days + 1 if window.first_day is None else (window.first_day - EPOCH).days
    kept = (days >= first) & (days < first + window.days)
    if not kept.any():
        found = f"{EPOCH + timedelta(int(days.min()))} to {EPOCH + timedelta(int(days.max()))}"
        raise ValueError(f"`window`: expected days the log holds, found {window} in a log from {found}")
    smaller = table.select(kept)
    start = EPOCH + timedelta(first)
    name = f"{start} to {start + timedelta(window.days - 1)} ({window.timezone})"
    return smaller, FilterStep.between(name, table, smaller)


def sample_users(table: SequenceTable, fraction: float, seed: int = 0) -> tuple[SequenceTable, FilterStep]:
    """A share of the users, each chosen by a hash of its id and the seed: the same ones whoever else is in the log.

    Args:
        table: the sequences.
        fraction: how likely a user is kept; above 0, at most 1.
        seed: another seed is another sample.

    Returns:
        The smaller table, and the sizes before and after.

    Raises:
        ValueError: a fraction or seed out of range, or no user is left.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise ValueError(f"`sample_users`: expected a fraction above 0 and at most 1, found {fraction!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"`sample_seed`: expected a non-negative integer, found {seed!r}")
    kept = _hashes(table.user_ids, seed) < fraction
    if not kept.any():
        raise ValueError(f"`sample_users`: expected users to be left, found none of {table.num_users} at {fraction}")
    smaller = table.select(np.repeat(kept, table.lengths))
    return smaller, FilterStep.between(f"a sample of {fraction:.0%} of the users, seed {seed}", table, smaller)


def _hashes(user_ids: np.ndarray, seed: int) -> np.ndarray:
    """`(num_users,)` a number in [0, 1) for each user, from `blake2b-64` of `"SEED USER"`."""
    digests = (hashlib.blake2b(f"{seed} {user}".encode(), digest_size=8).digest() for user in user_ids.tolist())
    return np.frombuffer(b"".join(digests), dtype=">u8") / 2.0**64


__all__ = ["TimeWindow", "keep_window", "sample_users"]
