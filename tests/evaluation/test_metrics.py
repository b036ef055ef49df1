import doctest
import itertools
import math

import numpy as np
import pytest

from mbgen_hf.evaluation import metrics
from mbgen_hf.evaluation.metrics import joint_ids, mean_metrics, metrics_report, ranking_metrics


def reference_metrics(row, targets, k):
    """The definitions for one list in its given order."""
    wanted = {target for target in targets if target >= 0}
    found, gain = set(), 0.0
    for rank, item in enumerate(row[:k], start=1):
        if item in wanted and item not in found:
            found.add(item)
            gain += 1 / math.log2(1 + rank)
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(wanted)) + 1))
    return {"hr": float(bool(found)), "recall": len(found) / len(wanted), "ndcg": gain / ideal}


def reference_with_ties(row, scores, targets, k):
    """Mean over every order of each group of equal scores, one by one."""
    groups = [list(group) for _, group in itertools.groupby(range(len(row)), key=lambda place: scores[place])]
    totals, count = {"hr": 0.0, "recall": 0.0, "ndcg": 0.0}, 0
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        shuffled = [row[place] for order in orders for place in order]
        for name, value in reference_metrics(shuffled, targets, k).items():
            totals[name] += value
        count += 1
    return {name: total / count for name, total in totals.items()}


def test_metrics_docstring_examples():
    result = doctest.testmod(metrics)
    assert result.attempted >= 4 and result.failed == 0


def test_single_target_by_hand():
    predicted = np.array([[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8]])
    values = ranking_metrics(predicted, np.array([[5], [7], [9]]), ks=(1, 3))
    assert values["hr@1"].tolist() == [1, 0, 0]
    assert values["hr@3"].tolist() == values["recall@3"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(values["ndcg@3"], [1, 0.5, 0])
    np.testing.assert_allclose(values["ndcg@1"], [1, 0, 0])


def test_several_targets_by_hand():
    values = ranking_metrics(np.array([[1, 2, 3, 4, 5]]), np.array([[2, 5, 9, -1]]), ks=(1, 2, 5))
    log2 = math.log2
    assert [values[f"hr@{k}"][0] for k in (1, 2, 5)] == [0, 1, 1]
    np.testing.assert_allclose([values[f"recall@{k}"][0] for k in (1, 2, 5)], [0, 1 / 3, 2 / 3])
    np.testing.assert_allclose(values["ndcg@2"], (1 / log2(3)) / (1 + 1 / log2(3)))
    np.testing.assert_allclose(values["ndcg@5"], (1 / log2(3) + 1 / log2(6)) / (1 + 1 / log2(3) + 1 / log2(4)))


def test_duplicates_count_once_and_keep_their_rank():
    values = ranking_metrics(np.array([[4, 4, 7], [9, 9, 7]]), np.array([[4, 7], [7, -1]]), ks=(2, 3))
    assert values["recall@2"].tolist() == [0.5, 0]
    np.testing.assert_allclose(values["recall@3"], [1, 1])
    np.testing.assert_allclose(values["ndcg@3"], [(1 + 0.5) / (1 + 1 / math.log2(3)), 0.5])


def test_duplicate_targets_are_one_target():
    once = ranking_metrics(np.array([[4, 7]]), np.array([[7, 3, -1]]), ks=(2,))
    twice = ranking_metrics(np.array([[4, 7]]), np.array([[7, 7, 3]]), ks=(2,))
    assert once == twice


def test_lists_shorter_than_k_and_empty_lists():
    values = ranking_metrics(np.array([[4, -1], [-1, -1]]), np.array([[4, 5], [4, -1]]), ks=(10,))
    assert values["hr@10"].tolist() == [1, 0]
    assert values["recall@10"].tolist() == [0.5, 0]
    np.testing.assert_allclose(values["ndcg@10"], [1 / (1 + 1 / math.log2(3)), 0])
    nothing = ranking_metrics(np.empty((2, 0), dtype=int), np.array([[4], [5]]), np.empty((2, 0)))
    assert all(np.array_equal(column, [0, 0]) for column in nothing.values())
    assert all(len(v) == 0 for v in ranking_metrics(np.empty((0, 3), int), np.empty((0, 1), int)).values())


def test_padding_in_lists_never_matches_padding_in_targets():
    values = ranking_metrics(np.array([[-1, -1, 3], [2, -1, -1]]), np.array([[5, -1], [6, -1]]), ks=(3,))
    assert values["hr@3"].tolist() == [0, 0]


def test_padding_is_in_no_tie_group():
    scores = np.array([[1.0, -np.inf, -np.inf, -np.inf]])
    values = ranking_metrics(np.array([[8, 3, -1, -1]]), np.array([[3]]), scores, ks=(2,))
    assert values["hr@2"].tolist() == [1]


def test_random_lists_match_the_definitions():
    rng = np.random.default_rng(0)
    predicted = rng.integers(-1, 12, (300, 9))
    targets = rng.integers(-1, 12, (300, 4))
    targets[:, 0] = np.abs(targets[:, 0])
    values = ranking_metrics(predicted, targets, ks=(1, 4, 9, 20))
    for row, wanted, index in zip(predicted.tolist(), targets.tolist(), range(300), strict=True):
        for k in (1, 4, 9, 20):
            for name, expected in reference_metrics(row, wanted, k).items():
                assert values[f"{name}@{k}"][index] == pytest.approx(expected, abs=1e-12), (name, k, row, wanted)


def test_ties_match_the_enumeration_of_all_orders():
    rng = np.random.default_rng(1)
    predicted = rng.permuted(np.tile(np.arange(12), (120, 1)), axis=1)[:, :6]
    targets = rng.permuted(np.tile(np.arange(12), (120, 1)), axis=1)[:, :4]
    targets[:, 1:][rng.random((120, 3)) < 0.5] = -1
    scores = -np.sort(rng.integers(0, 3, (120, 6)), axis=1).astype(float)
    values = ranking_metrics(predicted, targets, scores, ks=(1, 2, 3, 5, 8))
    assert np.any((values["hr@2"] > 0) & (values["hr@2"] < 1))
    for index in range(120):
        row = predicted[index].tolist(), scores[index].tolist(), targets[index].tolist()
        for k in (1, 2, 3, 5, 8):
            for name, expected in reference_with_ties(*row, k).items():
                assert values[f"{name}@{k}"][index] == pytest.approx(expected, abs=1e-12), (name, k, row)


def test_distinct_scores_change_nothing():
    rng = np.random.default_rng(2)
    predicted, targets = rng.integers(0, 30, (50, 10)), rng.integers(0, 30, (50, 2))
    plain = ranking_metrics(predicted, targets)
    scored = ranking_metrics(predicted, targets, np.tile(-np.arange(10.0), (50, 1)))
    for name in plain:
        np.testing.assert_array_equal(plain[name], scored[name])


def test_ranking_metrics_rejects_what_it_can_not_judge():
    one = np.array([[1, 2]])
    with pytest.raises(ValueError, match="`targets`: expected one or more targets"):
        ranking_metrics(one, np.array([[-1]]))
    with pytest.raises(ValueError, match="`scores`: expected scores that never rise"):
        ranking_metrics(one, one, np.array([[0.1, 0.2]]))
    with pytest.raises(ValueError, match="`scores`: expected a number"):
        ranking_metrics(one, one, np.array([[0.1, np.nan]]))
    with pytest.raises(ValueError, match="`scores`: expected the shape"):
        ranking_metrics(one, one, np.array([[0.1]]))
    with pytest.raises(ValueError, match="`predicted`: expected 1 rows"):
        ranking_metrics(np.ones((2, 2), dtype=int), one)
    with pytest.raises(ValueError, match="`predicted`: expected a two-dimensional integer array"):
        ranking_metrics(np.array([1.0, 2.0]), one)
    with pytest.raises(ValueError, match="`ks`"):
        ranking_metrics(one, one, ks=(0, 5))


def test_joint_ids_match_only_where_both_match():
    items, behaviors = np.array([[3, 3, 5, -1]]), np.array([[0, 2, 2, 1]])
    target = joint_ids(np.array([[3]]), 2, 3)
    values = ranking_metrics(joint_ids(items, behaviors, 3), target, ks=(1, 2))
    assert values["hr@1"].tolist() == [0] and values["hr@2"].tolist() == [1]
    every = joint_ids(np.arange(7)[:, None], np.arange(3), 3)
    assert len(np.unique(every)) == 21
    with pytest.raises(ValueError, match="`behaviors`: expected class labels in 0..2, found 3"):
        joint_ids(items, np.array([[0, 3, 0, 0]]), 3)


def test_mean_metrics_over_a_mask():
    per_case = {"hr@1": np.array([1.0, 0.0, 0.5])}
    assert mean_metrics(per_case) == {"hr@1": 0.5}
    assert mean_metrics(per_case, np.array([True, False, True])) == {"hr@1": 0.75}
    assert math.isnan(mean_metrics(per_case, np.zeros(3, dtype=bool))["hr@1"])


def test_metrics_report_groups_by_behavior_and_by_repeat():
    per_case = {"hr@1": np.array([1.0, 0.0, 0.5, 1.0])}
    report = metrics_report(
        per_case, np.array([0, 0, 2, 2]), np.array([[True], [False], [True], [True]]), ["view", "cart", "buy"]
    )
    assert report == {
        "overall": {"n": 4, "hr@1": 0.625},
        "behavior:view": {"n": 2, "hr@1": 0.5},
        "behavior:buy": {"n": 2, "hr@1": 0.75},
        "merged": {"n": 4, "hr@1": 0.625},
        "repeat": {"n": 3, "hr@1": pytest.approx(2.5 / 3)},
        "new": {"n": 1, "hr@1": 0.0},
    }


def test_metrics_report_merged_weighs_behaviors_by_their_size():
    values = np.random.default_rng(3).random(50)
    report = metrics_report({"ndcg@5": values}, np.repeat([0, 1, 2], [5, 15, 30]))
    assert report["merged"]["ndcg@5"] == pytest.approx(values.mean())
    assert [name for name in report if name.startswith("behavior:")] == ["behavior:0", "behavior:1", "behavior:2"]


def test_metrics_report_of_empty_groups_and_wrong_shapes():
    per_case = {"hr@1": np.array([1.0])}
    assert metrics_report(per_case, np.array([0]), np.array([True]))["new"] == {"n": 0}
    nothing = metrics_report({"hr@1": np.empty(0)}, np.empty(0, dtype=int))
    assert nothing == {"overall": {"n": 0}, "merged": {"n": 0}}
    with pytest.raises(ValueError, match="`behavior`: expected shape"):
        metrics_report(per_case, np.array([0, 1]))
    with pytest.raises(ValueError, match="`seen`: expected shape"):
        metrics_report(per_case, np.array([0]), np.array([[True, False]]))


def test_hub_metric_gives_the_same_numbers_over_batches(tmp_path):
    pytest.importorskip("evaluate", reason="the `evaluate` extra is not installed")
    from mbgen_hf.evaluation.hub_metric import RecommendationMetric

    rng = np.random.default_rng(4)
    predicted, targets = rng.integers(-1, 9, (7, 6)), rng.integers(0, 9, (7, 2))
    expected = mean_metrics(ranking_metrics(predicted, targets, ks=(1, 3)))
    metric = RecommendationMetric(cache_dir=str(tmp_path))
    for part in (slice(0, 4), slice(4, 7)):
        metric.add_batch(predictions=predicted[part], references=targets[part])
    assert metric.compute(ks=(1, 3)) == pytest.approx(expected)
    ragged = RecommendationMetric(cache_dir=str(tmp_path)).compute(
        predictions=[[3], [1, 2, 3]], references=[[3, 4], [3]], scores=[[0.5], [0.5, 0.5, 0.5]], ks=(1,)
    )
    assert ragged["hr@1"] == pytest.approx((1 + 1 / 3) / 2) and ragged["recall@1"] == pytest.approx((0.5 + 1 / 3) / 2)
