import numpy as np
import pytest

from mbgen_hf.baselines.recency import RecencyBaseline
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.metrics import mean_metrics, ranking_metrics
from mbgen_hf.evaluation.protocols import leave_one_out_cases, session_wise_cases
from mbgen_hf.evaluation.recency_analysis import recency_curve
from mbgen_hf.evaluation.robustness import without_low_levels, without_targets


BUY, PLAY, VIEW, CART = range(4)
SCHEMA = BehaviorSchema(("buy", "play", "view", "cart"), (2, 0, 0, 1), "buy")


def make_table(rows) -> SequenceTable:
    """A table from one list of (session, item, behavior) per user."""
    triples = np.array([triple for row in rows for triple in row])
    return SequenceTable(
        schema=SCHEMA,
        user_ids=np.arange(len(rows)),
        item_ids=np.arange(12),
        offsets=np.cumsum([0] + [len(row) for row in rows]),
        items=triples[:, 1].astype(np.int32),
        behaviors=triples[:, 2].astype(np.int8),
        timestamps=np.arange(len(triples)),
        session_ids=triples[:, 0].astype(np.int32),
    )


@pytest.fixture
def table() -> SequenceTable:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        length = rng.integers(3, 40)
        sessions = np.cumsum(rng.random(length) < 0.3)
        columns = (sessions - sessions[0], rng.integers(0, 12, length), rng.choice(4, length, p=[0.1, 0.3, 0.4, 0.2]))
        rows.append(list(zip(*(column.tolist() for column in columns), strict=True)))
    return make_table(rows)


def history(table, cases, case) -> list[tuple]:
    part = slice(cases.history_start[case], cases.history_end[case])
    return list(
        zip(table.timestamps[part].tolist(), table.items[part].tolist(), table.behaviors[part].tolist(), strict=True)
    )


@pytest.mark.parametrize("share", [0, 0.25, 0.29, 0.5, 0.75, 1])
def test_low_levels_lose_their_share_and_nothing_else_goes(table, share):
    cases = session_wise_cases(table, "test", max_history=15)
    reduced, new = without_low_levels(table, cases, share, seed=4)
    assert len(new) == len(cases) == reduced.num_users and reduced.num_items == table.num_items
    for case in range(len(cases)):
        before, after = history(table, cases, case), history(reduced, new, case)
        assert after == [row for row in before if row in after]
        for behavior in range(4):
            counts = [sum(row[2] == behavior for row in rows) for rows in (before, after)]
            gone = round(share * 100) * counts[0] // 100 if behavior in (PLAY, VIEW) else 0
            assert counts[0] - counts[1] == gone
    np.testing.assert_array_equal(new.targets, cases.targets)
    np.testing.assert_array_equal(new.behavior, cases.behavior)
    np.testing.assert_array_equal(reduced.user_ids[new.users], table.user_ids[cases.users])


def test_low_levels_are_drawn_by_seed_alike_for_all_cases_of_a_history(table):
    cases = session_wise_cases(table, "test")
    first, new = without_low_levels(table, cases, 0.5, seed=1)
    np.testing.assert_array_equal(first.timestamps, without_low_levels(table, cases, 0.5, seed=1)[0].timestamps)
    assert not np.array_equal(first.timestamps, without_low_levels(table, cases, 0.5, seed=2)[0].timestamps)
    order = np.random.default_rng(0).permutation(len(cases))[:20]
    some, few = without_low_levels(table, cases.select(order), 0.5, seed=1)
    assert [history(some, few, i) for i in range(20)] == [history(first, new, i) for i in order]
    shared = np.flatnonzero(np.diff(cases.users) == 0)
    assert len(shared) and all(history(first, new, i) == history(first, new, i + 1) for i in shared)


def test_targets_are_dropped_from_their_own_histories_alone(table):
    cases = session_wise_cases(table, "test", max_history=20)
    reduced, new = without_targets(table, cases)
    changed = 0
    for case in range(len(cases)):
        before, after = history(table, cases, case), history(reduced, new, case)
        assert after == [row for row in before if row[1] not in cases.targets[case]]
        changed += before != after
    assert 0 < changed < len(cases) and not new.seen_before(reduced).any()
    items, _ = RecencyBaseline().recommend(reduced, new, 12)
    assert ranking_metrics(items, new.targets, ks=(12,))["hr@12"].max() == 0


def test_reduced_tables_count_their_sessions_from_zero_and_may_be_empty():
    table = make_table(
        [[(0, 1, VIEW), (1, 2, BUY), (2, 3, VIEW), (3, 2, BUY)], [(0, 1, VIEW), (1, 4, PLAY), (2, 1, BUY)]]
    )
    cases = session_wise_cases(table, "test")
    reduced, new = without_low_levels(table, cases, 1)
    assert (
        reduced.items.tolist() == [2] and reduced.session_ids.tolist() == [0] and reduced.offsets.tolist() == [0, 1, 1]
    )
    assert RecencyBaseline().recommend(reduced, new, 2)[0].tolist() == [[2, -1], [-1, -1]]
    reduced, _ = without_targets(table, cases)
    assert reduced.items.tolist() == [1, 3, 4] and reduced.session_ids.tolist() == [0, 1, 0]
    nothing, none = without_low_levels(table, cases.select(np.zeros(2, dtype=bool)), 0.5)
    assert len(none) == nothing.num_users == nothing.num_interactions == 0


def test_share_is_checked(table):
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="`share`: expected a number from 0 to 1, found"):
            without_low_levels(table, leave_one_out_cases(table), share)


def curve_by_loop(table, cases, max_k, drop_latest):
    hits, total = np.zeros(max_k), 0
    for case in range(len(cases)):
        targets = [item for item in cases.targets[case].tolist() if item >= 0]
        rows = history(table, cases, case)
        if drop_latest and rows and rows[-1][1] in targets:
            rows = rows[: -1 if SCHEMA.levels[rows[-1][2]] < SCHEMA.levels[cases.behavior[case]] else None]
        recent = list(dict.fromkeys(item for _, item, _ in reversed(rows)))
        for target in targets:
            total += 1
            if target in recent[:max_k]:
                hits[recent.index(target) :] += 1
    return hits / total


@pytest.mark.parametrize("drop_latest", [False, True])
@pytest.mark.parametrize("max_k", [1, 4, 50])
def test_recency_curve_matches_a_loop(table, max_k, drop_latest):
    for cases in (leave_one_out_cases(table, "test"), session_wise_cases(table, "test", max_history=8)):
        found = recency_curve(table, cases, max_k, drop_latest)
        np.testing.assert_allclose(found, curve_by_loop(table, cases, max_k, drop_latest), rtol=1e-12)
        assert found.shape == (max_k,) and found[-1] > 0
    assert (recency_curve(table, cases, drop_latest=True) <= recency_curve(table, cases)).all()


def test_recency_curve_by_hand_and_its_errors():
    table = make_table(
        [
            [(0, 1, VIEW), (0, 2, VIEW), (1, 1, BUY), (1, 0, VIEW)],  # weaker than a purchase, but of another item
            [(0, 3, VIEW), (0, 2, VIEW), (1, 2, BUY), (1, 0, VIEW)],  # viewed, then bought: dropped
            [(0, 3, BUY), (0, 2, BUY), (1, 2, BUY), (1, 0, VIEW)],  # as strong as a purchase: kept
        ]
    )
    cases = leave_one_out_cases(table)
    assert recency_curve(table, cases, 3).tolist() == pytest.approx([2 / 3, 1, 1])
    assert recency_curve(table, cases, 3, drop_latest=True).tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    with pytest.raises(ValueError, match="`cases`: expected at least one, found none"):
        recency_curve(table, cases.select(np.zeros(3, dtype=bool)))
    with pytest.raises(ValueError, match="`k`: expected 1 or more, found 0"):
        recency_curve(table, cases, 0)


def test_recency_curve_is_the_hit_rate_of_the_recency_baseline(table):
    cases = leave_one_out_cases(table, "test")
    items, scores = RecencyBaseline().recommend(table, cases, 10)
    rates = mean_metrics(ranking_metrics(items, cases.targets, scores, ks=range(1, 11)))
    np.testing.assert_allclose(recency_curve(table, cases, 10), [rates[f"hr@{k}"] for k in range(1, 11)])


def test_a_share_of_a_hundred_is_exact():
    # 0.29 * 100 is 28.999999999999996 in floating point.
    table = make_table([[(0, 1, VIEW)] * 100 + [(1, 2, BUY)]])
    reduced, _ = without_low_levels(table, leave_one_out_cases(table, "test", max_history=100), 0.29)
    assert reduced.num_interactions == 71
