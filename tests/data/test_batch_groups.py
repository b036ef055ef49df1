import numpy as np
import polars as pl
import pytest

from mbgen_hf.data import batch_groups
from mbgen_hf.data.batch_groups import Groups, LastDays


RANGES = {
    "narrow": lambda rng, at: rng.integers(0, 300, 50),
    "growing": lambda rng, at: rng.integers(0, 20, 50) + 13 * at,
    "falling": lambda rng, at: rng.integers(-20, 20, 50) - 17 * at,
    "wide": lambda rng, at: rng.integers(-(2**62), 2**62, 50),
    "wide_later": lambda rng, at: rng.integers(0, 30 if at < 6 else 10**9, 50),
    "words": lambda rng, at: [f"u{user}" for user in rng.integers(0, 300, 50)],
}


@pytest.mark.parametrize("merged_at_once", [40, 10**6])
@pytest.mark.parametrize("ids", RANGES)
def test_last_days_are_those_of_grouping_all_rows(
    ids: str, merged_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_groups, "MERGED_AT_ONCE", merged_at_once)
    monkeypatch.setattr(batch_groups, "SMALL_RANGE", 500)
    rng = np.random.default_rng(0)
    batches = [
        pl.DataFrame({"id": RANGES[ids](rng, at), "day": rng.integers(-5, 40, 50).astype(np.int32)})
        .with_columns(pl.when(pl.col("day") >= 0).then("day"))
        for at in range(12)
    ]  # fmt: skip
    batches.insert(3, batches[0].head(0))
    dated, undated = LastDays("id", dated=True), LastDays("id", dated=False)
    for batch in batches:
        dated.add(batch)
        undated.add(batch)
    expected = pl.concat(batches).group_by("id").agg(pl.col("day").max()).sort("id")
    assert dated.merged().sort("id").equals(expected) and expected["day"].null_count()
    assert undated.merged().sort("id").equals(expected.select("id"))


def test_nothing_added_is_nothing_seen() -> None:
    assert LastDays("id", dated=True).merged().schema == {"id": pl.Int64, "day": pl.Int32}


def test_a_batch_without_rows_may_have_any_type() -> None:
    for first in (0, 1):
        distinct = LastDays("id", dated=False)
        batches = [pl.DataFrame({"id": ["a", "b", "a"]}), pl.DataFrame(schema={"id": pl.Int64})]
        for batch in (batches[first], batches[1 - first]):
            distinct.add(batch)
        assert distinct.merged().sort("id").rows() == [("a",), ("b",)]


def test_groups_are_merged_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_groups, "MERGED_AT_ONCE", 5)
    groups = Groups(["key"], [pl.col("rows").sum()])
    for at in range(40):
        groups.add(pl.DataFrame({"key": [at % 4, 9], "rows": [1, 1]}))
        assert len(groups._parts) <= 6
    assert groups.merged().sort("key").rows() == [(0, 10), (1, 10), (2, 10), (3, 10), (9, 40)]
