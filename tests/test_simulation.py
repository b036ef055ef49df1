import numpy as np
import polars as pl
import pytest

from mbgen_hf.baselines.popularity import PopularityBaseline
from mbgen_hf.baselines.recency import RecencyBaseline
from mbgen_hf.evaluation.metrics import mean_metrics, ranking_metrics
from mbgen_hf.evaluation.protocols import EvaluationCases, leave_one_out_cases, task_cases
from mbgen_hf.simulation import CART, CART_MEMORY, DEPARTMENTS, PURCHASE, simulate_shop


@pytest.fixture(scope="module")
def shop():
    return simulate_shop()


@pytest.fixture(scope="module")
def target_cases(shop):
    table = shop.table()
    return table, task_cases(leave_one_out_cases(table, "test"), "target", shop.schema)


def test_simulated_shop_is_the_same_under_a_seed_and_another_under_another():
    first, again, other = simulate_shop(50, 30, seed=3), simulate_shop(50, 30, seed=3), simulate_shop(50, 30, seed=4)
    assert first.log.equals(again.log)
    np.testing.assert_array_equal(first.complements, again.complements)
    assert not first.log.equals(other.log)


def test_simulated_log_has_the_promised_size_and_columns(shop):
    assert shop.log.schema == {
        "user_id": pl.Int64,
        "item_id": pl.String,
        "behavior": pl.Int8,
        "timestamp": pl.Int64,
    }
    lengths = shop.log.group_by("user_id").len()["len"]
    assert len(lengths) == 2000 and lengths.min() == 15 and lengths.max() == 25
    assert shop.log["item_id"].value_counts()["count"].min() >= 5
    gaps = shop.log.select(pl.col("timestamp").diff().over("user_id"))["timestamp"].drop_nulls()
    assert gaps.min() > 0
    np.testing.assert_array_equal(shop.table().item_ids, shop.item_ids)


def test_simulated_items_are_named_by_their_department(shop):
    assert sorted(shop.department_names) == sorted(DEPARTMENTS)
    named = [item.rsplit("-", 1)[0] for item in shop.item_ids.tolist()]
    assert named == [shop.department_names[d] for d in shop.departments]


@pytest.mark.parametrize("num_items", [12, 13, 30, 300])
def test_complements_are_one_cycle_through_the_catalog(num_items):
    shop = simulate_shop(5, num_items)
    seen, item = [], 0
    for _ in range(num_items):
        seen.append(item)
        item = shop.complements[item]
    assert item == 0 and sorted(seen) == list(range(num_items))
    assert np.all(shop.departments[shop.complements] != shop.departments)


def test_tastes_and_popularity_are_distributions(shop):
    np.testing.assert_allclose(shop.tastes.sum(axis=1), 1)
    np.testing.assert_allclose(np.bincount(shop.departments, weights=shop.popularity), 1)


def _reference_probabilities(shop, items, behaviors, user):
    """The three habits, written out for one history."""
    joint = np.zeros((3, shop.num_items))
    carts = []
    for age in range(1, min(CART_MEMORY, len(items)) + 1):
        later = range(len(items) - age + 1, len(items))
        bought = any(items[p] == items[-age] and behaviors[p] == PURCHASE for p in later)
        if behaviors[-age] == CART and not bought:
            carts.append(items[-age])
    checkout = shop.checkout if carts else 0.0
    for cart in carts:
        joint[PURCHASE, cart] += checkout / len(carts)
    for behavior in range(3):
        for item in range(shop.num_items):
            share = (1 - shop.follow) * shop.tastes[user, shop.departments[item]] * shop.popularity[item]
            share += shop.follow * (item == shop.complements[items[-1]])
            joint[behavior, item] += (1 - checkout) * shop.behavior_shares[behavior] * share
    return joint


def test_oracle_probabilities_match_the_habits_written_out():
    shop = simulate_shop(40, 24, seed=1, checkout=0.5, behavior_shares=(0.2, 0.5, 0.3), min_length=2, max_length=9)
    table = shop.table()
    end = table.offsets[:-1] + np.arange(40) % (table.lengths - 1) + 1
    cases = EvaluationCases(
        users=np.arange(40),
        history_start=table.offsets[:-1],
        history_end=end,
        targets=table.items[end, None],
        behavior=table.behaviors[end],
    )
    joint = shop.oracle_probabilities(table, cases)
    np.testing.assert_allclose(joint.sum(axis=(1, 2)), 1)
    for case in range(40):
        history = slice(cases.history_start[case], cases.history_end[case])
        expected = _reference_probabilities(
            shop, table.items[history].tolist(), table.behaviors[history].tolist(), case
        )
        np.testing.assert_allclose(joint[case], expected, atol=1e-15)
    np.testing.assert_array_equal(shop.oracle_scores(table, cases, 1), joint[:, 1])
    np.testing.assert_array_equal(shop.oracle_scores(table, cases)[7], joint[7, cases.behavior[7]])


def test_log_follows_the_oracle_probabilities(shop):
    """Calibration: what the oracle calls likely happens that often, at every step of the log and not just the last."""
    table = shop.table()
    for step in (1, 2, 5, 14):
        end = table.offsets[:-1] + step
        cases = EvaluationCases(np.arange(2000), table.offsets[:-1], end, table.items[end, None], table.behaviors[end])
        joint = shop.oracle_probabilities(table, cases)
        flat = joint.reshape(2000, -1)
        drawn = table.behaviors[end].astype(int) * table.num_items + table.items[end]
        for low, high in ((0.0, 0.01), (0.01, 0.1), (0.1, 0.2), (0.2, 0.25), (0.25, 0.4)):
            inside = (flat >= low) & (flat < high)
            expected = np.where(inside, flat, 0).sum()
            found = inside[np.arange(2000), drawn].sum()
            assert abs(found - expected) < 4 * np.sqrt(expected) + 1, (step, low, high, found, expected)


def _hit_rate(items, scores, cases):
    return mean_metrics(ranking_metrics(items, cases.targets, scores))["hr@10"]


def test_oracle_leaves_room_above_recency_and_popularity(shop, target_cases):
    table, cases = target_cases
    assert len(cases) >= 0.35 * table.num_users
    scores = shop.oracle_scores(table, cases)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert _hit_rate(best, np.take_along_axis(scores, best, axis=1), cases) > 0.85
    assert 0.25 < _hit_rate(*RecencyBaseline().fit(table).recommend(table, cases, 10), cases) < 0.4
    assert _hit_rate(*PopularityBaseline().fit(table).recommend(table, cases, 10), cases) < 0.15
    assert cases.seen_before(table).mean() < 0.45


def test_oracle_rejects_foreign_items_and_empty_histories(shop, target_cases):
    table, cases = target_cases
    with pytest.raises(ValueError, match="`table`: expected items of this shop"):
        simulate_shop(5, 24).oracle_scores(table, cases)
    empty = EvaluationCases(cases.users, cases.history_end, cases.history_end, cases.targets, cases.behavior)
    with pytest.raises(ValueError, match="`cases`: expected one or more interactions"):
        shop.oracle_scores(table, empty)


def test_write_csv_holds_behavior_names(tmp_path):
    shop = simulate_shop(5, 24)
    shop.write_csv(tmp_path / "log.csv")
    back = pl.read_csv(tmp_path / "log.csv")
    assert back.columns == ["user_id", "item_id", "behavior", "timestamp"]
    assert back["behavior"].to_list() == [shop.schema.names[b] for b in shop.log["behavior"]]
    assert back.drop("behavior").equals(shop.log.drop("behavior"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "`num_users`"),
        ({"num_items": 11}, "`num_items`"),
        ({"min_length": 9, "max_length": 8}, "`min_length`"),
        ({"behavior_shares": (0.5, 0.5, 0.5)}, "`behavior_shares`"),
        ({"checkout": 1.5}, "`checkout`"),
        ({"follow": -0.1}, "`follow`"),
        ({"num_favorites": 13}, "`num_favorites`"),
        ({"favorite_share": 2.0}, "`favorite_share`"),
    ],
)
def test_simulate_shop_rejects_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_shop(**arguments)
