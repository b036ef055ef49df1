"""Sessions: where one visit of a user ends and the next begins (GAMER section 3.2)."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from mbgen_hf.data.sequence_table import SCHEMA_FILE, SequenceTable


SessionKind = Literal["gap", "day", "given"]
SESSION_KINDS: tuple[SessionKind, ...] = ("gap", "day", "given")
SESSIONS_KEY = "sessions"
MINIMUM_SESSIONS = 3
"""Training, validation and test session of each user (GAMER section 4.1.1)."""


@dataclass(frozen=True)
class SessionRule:
    """How interactions are cut into sessions.

    Args:
        kind: `"gap"` starts a session after a time without interactions, `"day"` with each calendar day, `"given"`
            keeps the sessions that the log names.
        gap_seconds: for `"gap"`: a session starts where **more** than this has passed since the interaction before.
        timezone: for `"day"`: IANA name of the zone whose midnights count.

    Raises:
        ValueError: an unknown kind or zone, or a gap that is not a positive integer.
    """

    kind: SessionKind = "gap"
    gap_seconds: int = 1800
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        if self.kind not in SESSION_KINDS:
            raise ValueError(f"`kind`: expected one of {list(SESSION_KINDS)}, found {self.kind!r}")
        if isinstance(self.gap_seconds, bool) or not isinstance(self.gap_seconds, int) or self.gap_seconds < 1:
            raise ValueError(f"`gap_seconds`: expected a positive number of seconds, found {self.gap_seconds!r}")
        try:
            known = isinstance(self.timezone, str) and self.timezone
            local_days(np.zeros(1, dtype=np.int64), self.timezone if known else "UTC")
        except pl.exceptions.PolarsError:
            known = False
        if not known:
            raise ValueError(f"`timezone`: expected an IANA zone such as 'Asia/Shanghai', found {self.timezone!r}")

    @classmethod
    def parse(cls, text: str) -> "SessionRule":
        """Read `gap:SECONDS`, `day:ZONE` or `given`; `str(rule)` writes the same.

        Raises:
            ValueError: another text.

        Example:
            >>> SessionRule.parse("gap:900").gap_seconds, str(SessionRule.parse("day:Asia/Shanghai"))
            (900, 'day:Asia/Shanghai')
        """
        kind, colon, value = text.partition(":")
        if text == "given":
            return cls("given")
        if kind == "gap" and value.isascii() and value.isdecimal():
            return cls("gap", gap_seconds=int(value))
        if kind == "day" and value:
            return cls("day", timezone=value)
        raise ValueError(f"`sessions`: expected gap:SECONDS, day:ZONE or given, found {text!r}")

    def __str__(self) -> str:
        return {"gap": f"gap:{self.gap_seconds}", "day": f"day:{self.timezone}", "given": "given"}[self.kind]


def with_sessions(table: SequenceTable, rule: SessionRule) -> SequenceTable:
    """The table with `session_ids` by a rule, counted from 0 within each user.

    A day is a day of the local calendar, whatever its length. Where a change of the clock goes back over midnight,
    the day that has begun goes on.

    Raises:
        ValueError: times that fall within a user's row, or, for `"given"`, no session ids or interleaved ones.
    """
    if rule.kind == "given":
        return replace(table, session_ids=_numbered(table, session_starts(table)))
    users = np.repeat(np.arange(table.num_users, dtype=np.int64), table.lengths)
    same_user = users[1:] == users[:-1]
    elapsed = np.diff(table.timestamps)
    if np.any(same_user & (elapsed < 0)):
        raise ValueError("`table`: expected timestamps in ascending order within each user, found one that falls")
    if rule.kind == "gap":
        changed = elapsed > rule.gap_seconds
    else:
        days = local_days(table.timestamps, rule.timezone)
        # Counted per user, so that the running maximum does not reach from one user into the next.
        changed = np.diff(np.maximum.accumulate(users * np.int64(2**32) + days)) > 0
    starts = np.flatnonzero(np.concatenate([[True], changed | ~same_user])[: table.num_interactions])
    return replace(table, session_ids=_numbered(table, starts))


def session_starts(table: SequenceTable) -> np.ndarray:
    """`(num_sessions,)` first position of every session, users in order.

    Raises:
        ValueError: the table has no session ids, or a user's sessions are not one after the other.
    """
    ids = table.session_ids
    if ids is None:
        raise ValueError(
            "`table`: expected session_ids, found none; prepare the log with --columns ...,session_id=COLUMN or "
            "--sessions gap:1800"
        )
    users = np.repeat(np.arange(table.num_users), table.lengths)
    same_user = users[1:] == users[:-1]
    if np.any(same_user & (np.diff(ids) < 0)):
        raise ValueError(
            "`table`: expected session_ids that never fall within a user, found interleaved sessions; "
            "cut sessions by a gap or by the day instead"
        )
    opens = np.ones(table.num_interactions, dtype=bool)
    opens[1:] = ~same_user | (ids[1:] != ids[:-1])
    return np.flatnonzero(opens)


def session_counts(table: SequenceTable) -> np.ndarray:
    """`(num_users,)` number of sessions of each user; raises what `session_starts` raises."""
    return np.diff(np.searchsorted(session_starts(table), table.offsets))


def users_with_sessions(table: SequenceTable, minimum: int = MINIMUM_SESSIONS) -> np.ndarray:
    """`(num_users,)` bool: the user has at least `minimum` sessions; raises what `session_starts` raises."""
    return session_counts(table) >= minimum


def session_from_end(table: SequenceTable, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of each user's `number`-th last session (1 is the last).

    Returns:
        Two arrays `(num_users,)` of positions; of no meaning for a user of fewer sessions.

    Raises:
        ValueError: what `session_starts` raises.
    """
    bounds = np.append(session_starts(table), table.num_interactions)
    session = np.maximum(np.searchsorted(bounds, table.offsets[1:]) - number, 0)
    return bounds[session], bounds[session + 1]


def session_training_end(table: SequenceTable) -> np.ndarray:
    """`(num_users,)` position after the last training interaction: where the validation session begins.

    A user of fewer than three sessions has no training part: the position is the first of the row.

    Raises:
        ValueError: what `session_starts` raises.
    """
    begin, _ = session_from_end(table, 2)
    return np.where(users_with_sessions(table, MINIMUM_SESSIONS), begin, table.offsets[:-1])


def record_session_rule(folder: str | Path, rule: SessionRule) -> None:
    """Note the rule in the `schema.json` of a saved table."""
    path = Path(folder) / SCHEMA_FILE
    schema = json.loads(path.read_text(encoding="utf-8")) | {SESSIONS_KEY: str(rule)}
    path.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


def recorded_session_rule(folder: str | Path) -> SessionRule | None:
    """The rule a prepared folder was cut by, `None` where it was prepared without."""
    text = json.loads((Path(folder) / SCHEMA_FILE).read_text(encoding="utf-8")).get(SESSIONS_KEY)
    return None if text is None else SessionRule.parse(text)


def local_days(timestamps: np.ndarray, timezone: str) -> np.ndarray:
    """`(n,)` `int64` calendar days since 1970 of seconds (UTC), as a clock of the zone shows them."""
    days = pl.DataFrame({"time": timestamps}).select(local_day(pl.col("time"), timezone))
    return days.to_series().cast(pl.Int64).to_numpy()


def local_day(seconds: pl.Expr, timezone: str) -> pl.Expr:
    """`local_days` of a column, as `Int32`."""
    times = pl.from_epoch(seconds, time_unit="s").dt.replace_time_zone("UTC")
    return times.dt.convert_time_zone(timezone).dt.date().cast(pl.Int32)


def _numbered(table: SequenceTable, starts: np.ndarray) -> np.ndarray:
    """`(num_interactions,)` `int32` session numbers, counted from 0 within each user."""
    before_user = np.searchsorted(starts, table.offsets[:-1])
    sessions = np.repeat(np.arange(len(starts)), np.diff(starts, append=table.num_interactions))
    return (sessions - np.repeat(before_user, table.lengths)).astype(np.int32)


__all__ = [
    "MINIMUM_SESSIONS",
    "SESSION_KINDS",
    "SessionKind",
    "SessionRule",
    "local_day",
    "local_days",
    "record_session_rule",
    "recorded_session_rule",
    "session_counts",
    "session_from_end",
    "session_starts",
    "session_training_end",
    "users_with_sessions",
    "with_sessions",
]
