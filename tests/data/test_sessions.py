from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.filters import keep_users_with_sessions
from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import (
    SessionRule,
    record_session_rule,
    recorded_session_rule,
    session_counts,
    session_starts,
    users_with_sessions,
    with_sessions,
)


def timed_table(*rows: list[int]) -> SequenceTable:
    """A table from the times of each user; every interaction has an item of its own."""
    times = np.array([time for row in rows for time in row], dtype=np.int64)
    return SequenceTable(
        schema=BehaviorSchema(("view", "buy"), (0, 1), "buy"),
        user_ids=np.arange(len(rows)),
        item_ids=np.arange(100, 100 + len(times)),
        offsets=np.cumsum([0, *map(len, rows)]),
        items=np.arange(len(times), dtype=np.int32),
        behaviors=np.zeros(len(times), dtype=np.int8),
        timestamps=times,
    )


def local(zone: str, *times: str) -> list[int]:
    return [int(datetime.fromisoformat(time).replace(tzinfo=ZoneInfo(zone)).timestamp()) for time in times]


def random_rows(seed: int, scale: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    starts = rng.integers(1.4e9, 1.6e9, 40)
    return [(start + np.cumsum(rng.integers(0, scale, rng.integers(1, 30)))).tolist() for start in starts]


def sessions_by_loop(rows: list[list[int]], new_session) -> list[int]:
    ids = []
    for row in rows:
        number = 0
        for index, time in enumerate(row):
            number += index > 0 and new_session(row[index - 1], time)
            ids.append(number)
    return ids


def test_gap_starts_a_session_only_where_it_is_exceeded() -> None:
    table = with_sessions(timed_table([0, 1800, 3601, 3601], [3602, 5403]), SessionRule("gap", 1800))
    assert table.session_ids.tolist() == [0, 0, 1, 1, 0, 1] and table.session_ids.dtype == np.int32


@pytest.mark.parametrize("gap", [1, 600, 1800])
def test_gap_matches_a_loop(gap: int) -> None:
    rows = random_rows(gap, 1500)
    found = with_sessions(timed_table(*rows), SessionRule("gap", gap)).session_ids
    assert found.tolist() == sessions_by_loop(rows, lambda before, time: time - before > gap)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_day_matches_a_loop_with_the_standard_librarys_zones(zone: str) -> None:
    rows = random_rows(5, 40_000)
    found = with_sessions(timed_table(*rows), SessionRule("day", timezone=zone)).session_ids

    def day(time: int):
        return datetime.fromtimestamp(time, ZoneInfo(zone)).date()

    assert found.tolist() == sessions_by_loop(rows, lambda before, time: day(before) != day(time))


def test_days_end_at_local_midnight_in_both_halves_of_the_year() -> None:
    zone = "Europe/Berlin"
    row = local(zone, "2024-03-30T23:59:59", "2024-03-31T00:00:00", "2024-03-31T23:59:59", "2024-04-01T00:00:00")
    row += local(zone, "2024-10-27T00:00:00", "2024-10-27T23:59:59", "2024-10-28T00:00:00")
    assert row[2] - row[1] == 23 * 3600 - 1 and row[5] - row[4] == 25 * 3600 - 1
    table = with_sessions(timed_table(row), SessionRule("day", timezone=zone))
    assert table.session_ids.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert with_sessions(table, SessionRule("day")).session_ids.tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_a_clock_that_goes_back_over_midnight_does_not_split_the_day() -> None:
    # St John's, 2010-11-07: at 00:01 the clock went back to 23:01 of the day before.
    zone = "America/St_Johns"
    first = local(zone, "2010-11-07T00:00:30")[0]
    row = [first - 7200, first, first + 600, first + 7200]
    assert [datetime.fromtimestamp(time, ZoneInfo(zone)).day for time in row] == [6, 7, 6, 7]
    assert with_sessions(timed_table(row), SessionRule("day", timezone=zone)).session_ids.tolist() == [0, 1, 1, 1]


def test_given_sessions_are_counted_from_zero_and_must_not_interleave() -> None:
    table = replace(timed_table([1, 2, 3], [4, 5]), session_ids=np.array([3, 3, 7, 7, 8]))
    assert with_sessions(table, SessionRule("given")).session_ids.tolist() == [0, 0, 1, 0, 1]
    with pytest.raises(ValueError, match="`table`: expected session_ids that never fall .* found interleaved"):
        with_sessions(replace(table, session_ids=np.array([0, 1, 0, 0, 1])), SessionRule("given"))
    with pytest.raises(ValueError, match="`table`: expected session_ids, found none"):
        with_sessions(timed_table([1]), SessionRule("given"))


def test_times_that_fall_are_refused() -> None:
    for kind in ("gap", "day"):
        with pytest.raises(ValueError, match="`table`: expected timestamps in ascending order"):
            with_sessions(timed_table([5, 4], [1]), SessionRule(kind))


def test_starts_and_counts_agree_with_the_ids() -> None:
    table = with_sessions(timed_table([0, 10, 5000], [7], [1, 9000, 20_000, 20_001]), SessionRule())
    assert session_starts(table).tolist() == [0, 2, 3, 4, 5, 6]
    assert session_counts(table).tolist() == [2, 1, 3]
    assert users_with_sessions(table).tolist() == [False, False, True]
    assert users_with_sessions(table, 2).tolist() == [True, False, True]


def test_dropped_users_take_their_items_along_and_are_reported() -> None:
    table = with_sessions(timed_table([0, 10, 5000], [7], [1, 9000, 20_000, 20_001]), SessionRule())
    table = replace(table, items=np.array([5, 0, 0, 6, 5, 3, 3, 1], dtype=np.int32))
    smaller, step = keep_users_with_sessions(table, 2)
    assert smaller.user_ids.tolist() == [0, 2] and smaller.offsets.tolist() == [0, 3, 7]
    assert smaller.item_ids[smaller.items].tolist() == table.item_ids[[5, 0, 0, 5, 3, 3, 1]].tolist()
    assert smaller.item_ids.tolist() == [100, 101, 103, 105] and smaller.session_ids.tolist() == [0, 0, 1, 0, 1, 2, 2]
    assert step.to_dict() == {
        "name": "users with at least 2 sessions", "rows_before": 8, "rows_after": 7, "users_before": 3,
        "users_after": 2, "items_before": 8, "items_after": 4,
    }  # fmt: skip
    with pytest.raises(
        ValueError, match="`min_sessions`: expected users with at least 4 sessions, found none among 3"
    ):
        keep_users_with_sessions(table, 4)
    with pytest.raises(ValueError, match="`min_sessions`: expected a non-negative integer, found -1"):
        keep_users_with_sessions(table, -1)


def test_rules_are_read_as_they_are_written() -> None:
    for text in ("gap:1800", "gap:60", "day:Asia/Shanghai", "day:UTC", "given"):
        assert str(SessionRule.parse(text)) == text
    for text in ("gap", "gap:", "gap:x", "gap:-5", "gap:1.5", "day", "day:", "given:1", "week:UTC", "", "gap:²"):
        with pytest.raises(ValueError, match="`sessions`: expected gap:SECONDS, day:ZONE or given, found"):
            SessionRule.parse(text)
    for arguments, name in (
        ({"kind": "week"}, "kind"),
        ({"gap_seconds": 0}, "gap_seconds"),
        ({"gap_seconds": 1.5}, "gap_seconds"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`: expected"):
            SessionRule(**arguments)
    for zone in ("Mars/Olympus", "", None):
        with pytest.raises(ValueError, match="`timezone`: expected an IANA zone such as 'Asia/Shanghai', found"):
            SessionRule("day", timezone=zone)


def test_the_rule_is_recorded_beside_the_schema(tmp_path) -> None:
    table = timed_table([0, 10, 5000])
    table.save(tmp_path)
    assert recorded_session_rule(tmp_path) is None
    record_session_rule(tmp_path, SessionRule("day", timezone="Asia/Shanghai"))
    assert recorded_session_rule(tmp_path) == SessionRule("day", timezone="Asia/Shanghai")
    assert SequenceTable.load(tmp_path).schema == table.schema


def test_flat_ranges_writes_ranges_out() -> None:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 50, 200)
    ends = starts + rng.integers(-2, 6, 200)
    rows, positions = flat_ranges(starts, ends)
    expected = [(row, p) for row, (a, b) in enumerate(zip(starts, ends, strict=True)) for p in range(a, b)]
    assert list(zip(rows.tolist(), positions.tolist(), strict=True)) == expected
