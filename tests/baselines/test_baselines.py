from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from shared_files import shared_path

from mbgen_hf.baselines.popularity import PopularityBaseline
from mbgen_hf.baselines.recency import RecencyBaseline, RecencyByBehaviorBaseline
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.evaluator import baseline_answers
from mbgen_hf.evaluation.metrics import joint_ids, mean_metrics, ranking_metrics
from mbgen_hf.evaluation.protocols import leave_one_out_cases, task_cases, training_end
from mbgen_hf.simulation import simulate_shop


VIEW, CART, BUY = range(3)
SCHEMA = BehaviorSchema(("view", "cart", "buy"), (0, 1, 2), "buy")
BASELINES = [
    RecencyBaseline,
    RecencyByBehaviorBaseline,
    PopularityBaseline,
    lambda: PopularityBaseline(behavior_specific=True),
]


def make_table(rows):
    """A table from one list of (item, behavior) per user."""
    pairs = np.array([pair for row in rows for pair in row])
    return SequenceTable(
        schema=SCHEMA,
        user_ids=np.arange(len(rows)),
        item_ids=np.arange(pairs[:, 0].max() + 1),
        offsets=np.cumsum([0] + [len(row) for row in rows]),
        items=pairs[:, 0].astype(np.int32),
        behaviors=pairs[:, 1].astype(np.int8),
        timestamps=np.arange(len(pairs)),
    )


@pytest.fixture
def table():
    return make_table(
        [
            [(2, CART), (0, VIEW), (2, BUY), (1, VIEW), (0, VIEW), (3, BUY)],
            [(2, CART), (2, BUY), (2, VIEW), (5, BUY), (4, VIEW)],
        ]
    )


def test_recency_lists_the_last_distinct_items_by_hand(table):
    cases = leave_one_out_cases(table, "test")
    items, scores = RecencyBaseline().fit(table).recommend(table, cases, 4)
    np.testing.assert_array_equal(items, [[0, 1, 2, -1], [5, 2, -1, -1]])
    np.testing.assert_array_equal(scores, [[-1, -2, -3, -np.inf], [-1, -2, -np.inf, -np.inf]])
    assert items.dtype == np.int32
    short, _ = RecencyBaseline().recommend(table, leave_one_out_cases(table, "test", max_history=2), 1)
    np.testing.assert_array_equal(short, [[0], [5]])


def test_recency_matches_a_loop_on_a_simulated_log():
    table = simulate_shop(80, 24, seed=5, min_length=3).table()
    cases = leave_one_out_cases(table, "test", max_history=9)
    cases = replace(cases, history_start=np.where(np.arange(80) % 7 == 0, cases.history_end, cases.history_start))
    items, scores = RecencyBaseline().recommend(table, cases, 6)
    for row in range(80):
        history = table.items[cases.history_start[row] : cases.history_end[row]][::-1].tolist()
        expected = list(dict.fromkeys(history))[:6]
        assert items[row].tolist() == expected + [-1] * (6 - len(expected))
        assert scores[row, : len(expected)].tolist() == [-1.0 - history.index(item) for item in expected]


def test_recency_by_behavior_puts_first_what_has_not_had_the_behavior(table):
    cases = leave_one_out_cases(table, "test")
    baseline = RecencyByBehaviorBaseline().fit(table)
    assert not baseline.again.any()
    items, scores = baseline.recommend(table, cases, 4, behavior=BUY)
    np.testing.assert_array_equal(items, [[0, 1, 2, -1], [2, 5, -1, -1]][:1] + [[5, 2, -1, -1]])
    items, scores = baseline.recommend(table, cases, 4, behavior=np.array([VIEW, CART]))
    np.testing.assert_array_equal(items, [[2, 0, 1, -1], [5, 2, -1, -1]])
    assert (np.diff(scores[:, :2], axis=1) < 0).all()
    plain, _ = RecencyBaseline().recommend(table, cases, 4)
    np.testing.assert_array_equal(baseline.recommend(table, cases, 4)[0], plain)


def test_recency_by_behavior_follows_a_shop_where_things_are_bought_again():
    groceries = make_table([[(0, BUY), (1, VIEW), (0, BUY), (1, VIEW), (0, BUY), (2, VIEW), (3, BUY), (3, BUY)]] * 2)
    baseline = RecencyByBehaviorBaseline().fit(groceries)
    assert baseline.again.tolist() == [True, False, True]
    items, _ = baseline.recommend(groceries, leave_one_out_cases(groceries, "test"), 4, behavior=BUY)
    assert items.tolist() == [[3, 0, 2, 1]] * 2


def test_recency_by_behavior_matches_a_loop_on_a_simulated_log():
    table = simulate_shop(80, 24, seed=6, min_length=3).table()
    cases = leave_one_out_cases(table, "test", max_history=9)
    baseline = RecencyByBehaviorBaseline().fit(table)
    items, scores = baseline.recommend(table, cases, 6, behavior=cases.behavior)
    for row in range(80):
        part = slice(cases.history_start[row], cases.history_end[row])
        recent = list(dict.fromkeys(table.items[part][::-1].tolist()))
        had = set(table.items[part][table.behaviors[part] == cases.behavior[row]].tolist())
        again = baseline.again[cases.behavior[row]]
        expected = sorted(recent, key=lambda item: (item in had) != again)[:6]
        assert items[row].tolist() == expected + [-1] * (6 - len(expected))
        assert (np.diff(scores[row, : len(expected)]) < 0).all()


def test_baselines_leave_out_all_that_was_seen():
    table = simulate_shop(80, 24, seed=6, min_length=3).table()
    cases = leave_one_out_cases(table, "test", max_history=4)
    for make in BASELINES:
        baseline = make().fit(table)
        for asked in (cases.behavior, None):
            found = baseline_answers(baseline, table, cases, 10, asked, exclude_seen=True)
            for row, user in enumerate(cases.users):
                past = set(table.items[table.offsets[user] : cases.history_end[row]].tolist())
                listed = found.items[row][found.items[row] >= 0].tolist()
                assert not past & set(listed)
                if baseline.name == "popularity":
                    plain = baseline_answers(baseline, table, cases, 400, asked)
                    unseen = [item for item in plain.items[row].tolist() if item >= 0 and item not in past]
                    assert listed == unseen[:10]


def test_recency_pairs_items_with_the_usual_follow_up(table):
    # In the training parts item 2 is bought after the cart twice and viewed after the purchase once; no item is
    # touched again after a view, so a view is repeated.
    baseline = RecencyBaseline().fit(table)
    np.testing.assert_array_equal(baseline.follow_up, [VIEW, BUY, VIEW])
    items, behaviors, scores = baseline.recommend_pairs(table, leave_one_out_cases(table, "test"), 3)
    np.testing.assert_array_equal(items, [[0, 1, 2], [5, 2, -1]])
    np.testing.assert_array_equal(behaviors, [[VIEW, VIEW, VIEW], [VIEW, VIEW, -1]])
    np.testing.assert_array_equal(scores, [[-1, -2, -3], [-1, -2, -np.inf]])


def test_popularity_counts_the_training_parts_by_hand(table):
    baseline = PopularityBaseline().fit(table)
    cases = leave_one_out_cases(table, "test")
    items, scores = baseline.recommend(table, cases, 4)
    # Items 3, 4 and 5 occur in the held-out interactions alone.
    np.testing.assert_array_equal(items, [[2, 0, 1, -1]] * 2)
    np.testing.assert_array_equal(scores, [[5, 1, 1, -np.inf]] * 2)
    np.testing.assert_array_equal(baseline.recommend(table, cases, 4, behavior=BUY)[0], items)


def test_behavior_specific_popularity_counts_the_asked_behavior(table):
    baseline = PopularityBaseline(behavior_specific=True).fit(table)
    cases = leave_one_out_cases(table, "test")
    items, scores = baseline.recommend(table, cases, 3, behavior=np.array([BUY, VIEW]))
    np.testing.assert_array_equal(items, [[2, -1, -1], [0, 1, 2]])
    np.testing.assert_array_equal(scores, [[2, -np.inf, -np.inf], [1, 1, 1]])
    np.testing.assert_array_equal(baseline.recommend(table, cases, 3)[0], [[2, 0, 1]] * 2)
    with pytest.raises(ValueError, match="`behavior`: expected class labels in 0..2"):
        baseline.recommend(table, cases, 3, behavior=3)


def test_popularity_ranks_pairs_by_their_own_counts(table):
    items, behaviors, scores = (
        PopularityBaseline().fit(table).recommend_pairs(table, leave_one_out_cases(table, "test"), 9)
    )
    assert list(zip(items[0].tolist(), behaviors[0].tolist(), scores[0].tolist(), strict=True))[:6] == [
        (2, CART, 2),
        (2, BUY, 2),
        (0, VIEW, 1),
        (1, VIEW, 1),
        (2, VIEW, 1),
        (-1, -1, -np.inf),
    ]


@pytest.mark.parametrize("make", BASELINES)
def test_baselines_list_each_item_and_pair_once(make):
    table = simulate_shop(100, 30, seed=6).table()
    cases = leave_one_out_cases(table, "validation")
    baseline = make().fit(table)
    items, scores = baseline.recommend(table, cases, 40, behavior=2)
    pairs = baseline.recommend_pairs(table, cases, 40)
    for listed, ranks in ((items, scores), (joint_ids(pairs[0], pairs[1], 3), pairs[2])):
        assert listed.shape == ranks.shape == (100, 40)
        for row in listed.tolist():
            kept = [item for item in row if item >= 0]
            assert kept and len(set(kept)) == len(kept) and row == kept + [-1] * (40 - len(kept))
        assert np.all(ranks[:, 1:] <= ranks[:, :-1]) and np.all(np.isneginf(ranks) == (listed < 0))


@pytest.mark.parametrize("make", BASELINES)
def test_marked_held_out_interactions_change_nothing_a_baseline_learns(make):
    table = simulate_shop(100, 30, seed=7).table()
    end = training_end(table)
    items, behaviors = table.items.copy(), table.behaviors.copy()
    # One marked item and behavior in every held-out place: were any of them counted, it would top every list.
    for held_out in (end, end + 1):
        items[held_out], behaviors[held_out] = 29, CART
    marked = replace(table, items=items, behaviors=behaviors)
    cases = leave_one_out_cases(table, "validation")
    clean, planted = make().fit(table), make().fit(marked)
    for call in (
        lambda b: b.recommend(table, cases, 10, behavior=CART),
        lambda b: b.recommend_pairs(table, cases, 10),
    ):
        for expected, found in zip(call(clean), call(planted), strict=True):
            np.testing.assert_array_equal(expected, found)
    other = replace(cases, targets=np.full_like(cases.targets, 29), behavior=np.full_like(cases.behavior, CART))
    np.testing.assert_array_equal(clean.recommend(marked, other, 10)[0], clean.recommend(table, cases, 10)[0])


@pytest.mark.parametrize("make", BASELINES)
def test_baselines_take_no_cases_at_all(make, table):
    nobody = leave_one_out_cases(table, "test").select(np.zeros(2, dtype=bool))
    items, scores = make().fit(table).recommend(table, nobody, 5, behavior=BUY)
    assert items.shape == scores.shape == (0, 5)


def test_baselines_reject_missing_fits_and_lengths(table):
    cases = leave_one_out_cases(table, "test")
    for call in (RecencyBaseline().recommend_pairs, PopularityBaseline().recommend):
        with pytest.raises(ValueError, match="found none; call `fit"):
            call(table, cases, 5)
    with pytest.raises(ValueError, match="found none; call `fit"):
        RecencyByBehaviorBaseline().recommend(table, cases, 5, behavior=BUY)
    other = PopularityBaseline().fit(make_table([[(0, BUY), (1, BUY), (0, BUY)]]))
    with pytest.raises(ValueError, match=r"found \(3, 2\)"):
        other.recommend(table, cases, 5)
    with pytest.raises(ValueError, match="`k`"):
        RecencyBaseline().recommend(table, cases, 0)


@pytest.fixture(scope="module")
def taobao_log(data_dir):
    path = shared_path(data_dir / "taobao_kcore_fav_cart_buy" / "interactions.csv.gz", "real log")
    log = pl.read_csv(path).rename({"user": "user_id", "item": "item_id"})
    labels = {"fav": 0, "cart": 1, "buy": 2}
    return log.with_columns(behavior=pl.col("behavior").replace_strict(labels, return_dtype=pl.Int8))


@pytest.mark.parametrize(
    ("users_before", "users_after", "expected"),
    [(0, 4, (12396, 0.2267, 0.2330, 0.0051)), (5, 3, (12131, 0.2332, 0.2398, 0.0050))],
    ids=["items 5, users 4", "users 5, items 5, users 3"],
)
def test_baselines_on_the_taobao_log(taobao_log, users_before, users_after, expected):
    log = taobao_log.filter(pl.len().over("user_id") >= users_before)
    log = log.filter(pl.len().over("item_id") >= 5).filter(pl.len().over("user_id") >= users_after)
    table = SequenceTable.from_log(log, BehaviorSchema(("fav", "cart", "buy"), (0, 1, 2), "buy"))
    cases = task_cases(leave_one_out_cases(table, "test"), "target", table.schema)
    rates = []
    for baseline in (RecencyBaseline(), PopularityBaseline()):
        items, scores = baseline.fit(table).recommend(table, cases, 10)
        rates.append(mean_metrics(ranking_metrics(items, cases.targets, scores))["hr@10"])
    found = len(cases), rates[0], cases.seen_before(table).mean(), rates[1]
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


def test_recency_pairs_beat_chance_on_the_behavior_item_task():
    shop = simulate_shop()
    table = shop.table()
    cases = leave_one_out_cases(table, "test")
    targets = joint_ids(cases.targets, cases.behavior[:, None], 3)
    rates = {}
    for baseline in (RecencyBaseline(), PopularityBaseline()):
        items, behaviors, scores = baseline.fit(table).recommend_pairs(table, cases, 10)
        rates[baseline.name] = mean_metrics(ranking_metrics(joint_ids(items, behaviors, 3), targets, scores))["hr@10"]
    assert rates["recency"] > 2 * rates["popularity"] > 0
