from datetime import date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.selection import TimeWindow, keep_window, sample_users
from mbgen_hf.data.sequence_table import SequenceTable


def table(users: list, times: list[int]) -> SequenceTable:
    frame = pl.DataFrame({"user_id": users, "item_id": range(len(users)), "behavior": 0, "timestamp": times})
    return SequenceTable.from_log(frame, BehaviorSchema.from_names(["view"]))


def seconds(text: str, zone: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai"])
def test_window_holds_whole_days_of_its_zone(zone: str) -> None:
    times = ["2014-09-01T23:59:59", "2014-09-02T00:00:00", "2014-09-03T23:59:59", "2014-09-04T00:00:00"]
    log = table([1, 1, 2, 3], [seconds(time, zone) for time in times])
    kept, step = keep_window(log, TimeWindow(2, date(2014, 9, 2), zone))
    assert kept.item_ids.tolist() == [1, 2] and kept.user_ids.tolist() == [1, 2]
    assert step.name == f"2014-09-02 to 2014-09-03 ({zone})" and (step.rows_before, step.rows_after) == (4, 2)
    last, step = keep_window(log, TimeWindow(2, timezone=zone))
    assert last.item_ids.tolist() == [2, 3] and step.name.startswith("2014-09-03 to 2014-09-04")
    with pytest.raises(ValueError, match="expected days the log holds, found 1@2015-01-01.* from 2014-09-01 to 2014-"):
        keep_window(log, TimeWindow(1, date(2015, 1, 1), zone))


def test_window_is_read_as_it_is_written() -> None:
    for text in ("7:UTC", "7@2014-09-01:Asia/Shanghai"):
        assert str(TimeWindow.parse(text)) == text
    assert TimeWindow.parse("7") == TimeWindow(7)
    for text in ("", "week", "7@2014-13-01", "7@", "-1", "7:"):
        with pytest.raises(ValueError, match=r"`window`: expected DAYS\[@FIRST-DAY\]"):
            TimeWindow.parse(text)
    with pytest.raises(ValueError, match="`timezone`: expected an IANA zone"):
        TimeWindow.parse("7:Mars")
    with pytest.raises(ValueError, match="`days`: expected a positive number of days, found 0"):
        TimeWindow.parse("0")


@pytest.mark.parametrize("ids", [int, "user {}".format])
def test_sample_keeps_whole_users_and_the_same_ones_in_another_log(ids) -> None:
    users = [ids(user) for user in range(4000)]
    log = table(users * 2, list(range(8000)))
    kept, step = sample_users(log, 0.25, seed=3)
    assert kept.lengths.tolist() == [2] * kept.num_users and 900 < kept.num_users < 1100
    assert step.name == "a sample of 25% of the users, seed 3" and step.users_after == kept.num_users
    again, _ = sample_users(table(users[:1000], list(range(1000))), 0.25, seed=3)
    assert set(again.user_ids.tolist()) == set(kept.user_ids.tolist()) & set(users[:1000])
    other, _ = sample_users(log, 0.25, seed=4)
    assert 0.05 < np.isin(other.user_ids, kept.user_ids).mean() < 0.5
    assert sample_users(log, 1.0)[0].num_users == 4000


def test_sample_rejects_bad_arguments() -> None:
    log = table([1, 2], [1, 2])
    for fraction in (0, -0.1, 1.5, True, "half"):
        with pytest.raises(ValueError, match="`sample_users`: expected a fraction above 0 and at most 1"):
            sample_users(log, fraction)
    with pytest.raises(ValueError, match="`sample_seed`: expected a non-negative integer, found -1"):
        sample_users(log, 0.5, -1)
    with pytest.raises(ValueError, match="expected users to be left, found none of 2"):
        sample_users(log, 1e-9)
