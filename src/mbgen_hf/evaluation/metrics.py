"""Ranking metrics over recommendation lists: HR@K, Recall@K and NDCG@K (GAMER section 4.1.3, MBGen section 4.1.3).

With `TOP` the first K entries of a list and `T` the distinct targets of a case::

    HR@K     = 1 if TOP and T share an item, else 0
    Recall@K = |TOP & T| / |T|
    DCG@K    = sum over i = 1..K of rel_i / log2(1 + i),  rel_i = 1 if the item at rank i is in T, else 0
    NDCG@K   = DCG@K / (the DCG of a list that starts with min(K, |T|) targets)

A list shorter than K has no hits beyond its end. An item named twice counts once, at its first place: the later copy
keeps its rank, and so pushes others down, but is worth nothing.

**Ties.** An order among items of equal score is an accident of the implementation, so it should earn nothing. When
scores are given, items of exactly equal score form a group, and each metric takes its mean over all orders of the
group's places, each order as likely as any other. Only items within the list can take part: a group that the end of
the list cuts off is shared among those that made it in.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def ranking_metrics(
    predicted: np.ndarray, targets: np.ndarray, scores: np.ndarray | None = None, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, np.ndarray]:
    """HR, Recall and NDCG of each case at each cut-off.

    Args:
        predicted: `(num_cases, list_length)` integer item ids, best first, padded with -1; an empty list is all -1.
        targets: `(num_cases, max_targets)` integer item ids in any order, padded with -1, one or more per case.
        scores: `(num_cases, list_length)` scores that never rise along a list; `None` takes the order as it is.
        ks: cut-offs.

    Returns:
        `{"hr@1": (num_cases,) float64, "recall@1": ..., "ndcg@1": ..., "hr@5": ...}`.

    Raises:
        ValueError: shapes or types do not fit, a cut-off is not positive, a case has no target, or scores rise along
            a list or are not numbers.

    Example:
        The second item is the target, at rank 2; where both score the same it is first in half of the orders.

        >>> import numpy as np
        >>> order = ranking_metrics(np.array([[7, 3]]), np.array([[3]]), ks=(1, 2))
        >>> order["hr@1"].tolist(), order["hr@2"].tolist(), order["ndcg@2"].round(4).tolist()
        ([0.0], [1.0], [0.6309])
        >>> tied = ranking_metrics(np.array([[7, 3]]), np.array([[3]]), scores=np.array([[0.2, 0.2]]), ks=(1, 2))
        >>> tied["hr@1"].tolist(), tied["hr@2"].tolist(), tied["ndcg@2"].round(4).tolist()
        ([0.5], [1.0], [0.8155])
    """
    predicted, targets = _item_rows("predicted", predicted), _item_rows("targets", targets)
    if len(predicted) != len(targets):
        raise ValueError(
            f"`predicted`: expected {len(targets)} rows, one per row of `targets`, found {len(predicted)}; "
            "pass an all -1 row where nothing was recommended"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"`ks`: expected positive cut-offs, found {tuple(ks)}; pass for example (1, 5, 10)")
    num_targets = _first_copies(targets).sum(axis=1)
    if np.any(num_targets == 0):
        raise ValueError(
            f"`targets`: expected one or more targets in every row, found {int(np.sum(num_targets == 0))} rows "
            "without; leave these cases out"
        )
    relevant = _relevance(predicted, targets)
    start, end = _tie_groups(predicted, scores)
    metrics = {}
    for k in ks:
        metrics[f"hr@{k}"] = _expected_hit(relevant, start, end, k)
        metrics[f"recall@{k}"] = _expected_gain(relevant, start, end, k, np.ones(k)) / num_targets
        discounts = 1 / np.log2(2 + np.arange(k))
        ideal = np.cumsum(discounts)[np.minimum(num_targets, k) - 1]
        metrics[f"ndcg@{k}"] = _expected_gain(relevant, start, end, k, discounts) / ideal
    return metrics


def joint_ids(items: np.ndarray, behaviors: np.ndarray | int, num_behaviors: int) -> np.ndarray:
    """One integer per (behavior, item) pair, for the behavior-item task where both must match (MBGen section 4.2.3).

    `item * num_behaviors + behavior`, and -1 wherever the item is -1.

    Args:
        items: item ids padded with -1, any shape.
        behaviors: class labels, broadcast against `items`; what stands beside a padded item is ignored.
        num_behaviors: number of behaviors.

    Raises:
        ValueError: a behavior beside an item is not in `0..num_behaviors - 1`.

    Example:
        >>> import numpy as np
        >>> joint_ids(np.array([[4, 9, -1]]), np.array([[2, 0, 0]]), num_behaviors=3).tolist()
        [[14, 27, -1]]
    """
    items, behaviors = np.broadcast_arrays(np.asarray(items, dtype=np.int64), np.asarray(behaviors, dtype=np.int64))
    wrong = (items >= 0) & ((behaviors < 0) | (behaviors >= num_behaviors))
    if np.any(wrong):
        raise ValueError(
            f"`behaviors`: expected class labels in 0..{num_behaviors - 1}, found {int(behaviors[wrong][0])}; "
            "pass the schema's class labels"
        )
    return np.where(items >= 0, items * num_behaviors + behaviors, -1)


def mean_metrics(per_case: Mapping[str, np.ndarray], mask: np.ndarray | None = None) -> dict[str, float]:
    """Mean of each metric over the cases that `mask` picks; not a number where it picks none.

    Args:
        per_case: metric name -> `(num_cases,)` values, as `ranking_metrics` returns.
        mask: `(num_cases,)` bool, or `None` for all.

    Example:
        >>> import numpy as np
        >>> mean_metrics({"hr@1": np.array([1.0, 0.0, 1.0])}, mask=np.array([True, True, False]))
        {'hr@1': 0.5}
    """
    means = {}
    for name, values in per_case.items():
        picked = values if mask is None else values[mask]
        means[name] = float(picked.mean()) if len(picked) else float("nan")
    return means


def metrics_report(
    per_case: Mapping[str, np.ndarray],
    behavior: np.ndarray,
    seen: np.ndarray | None = None,
    behavior_names: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Means over all cases, over the cases of each behavior, and over repeats and new items, each with its count.

    Args:
        per_case: metric name -> `(num_cases,)` values, as `ranking_metrics` returns.
        behavior: `(num_cases,)` class label of each case's held-out behavior.
        seen: `(num_cases,)` bool, or `(num_cases, 1)` as `EvaluationCases.seen_before` gives it for one target: the
            user had touched the target before. A case of several targets can be both: see `split_report`.
        behavior_names: names by class label; by default the labels themselves are used.

    Returns:
        Group name -> `{"n": count, metric: mean}`. Groups: `"overall"`, the mean over cases; `"behavior:<name>"` for
        each behavior held out at least once; `"merged"`, the means per behavior weighted by their counts (the same
        number as `"overall"` because each case has one behavior, listed since the literature does); and with `seen`
        also `"repeat"` and `"new"`. A group without cases holds `{"n": 0}` alone.

    Raises:
        ValueError: arrays that are not one value per case.
    """
    behavior = _case_values("behavior", behavior, per_case)
    groups: dict[str, np.ndarray] = {"overall": np.ones(len(behavior), dtype=bool)}
    for label in np.unique(behavior):
        name = str(label) if behavior_names is None else behavior_names[label]
        groups[f"behavior:{name}"] = behavior == label
    report = {name: _group_report(per_case, mask) for name, mask in groups.items()}
    report["merged"] = _weighted_by_count([report[name] for name in groups if name != "overall"])
    if seen is not None:
        seen = _case_values("seen", seen, per_case).astype(bool)
        report["repeat"] = _group_report(per_case, seen)
        report["new"] = _group_report(per_case, ~seen)
    return report


def split_report(
    predicted: np.ndarray,
    targets: np.ndarray,
    seen: np.ndarray,
    behavior: np.ndarray,
    scores: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
    behavior_names: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """`metrics_report` of lists, with repeats and new items told apart within a case of several targets.

    `"repeat"` has the metrics with the seen targets alone, over the cases that have some, and `"new"` those with the
    other targets alone. A case of both kinds counts in both groups; with one target per case they share the cases.

    Args:
        predicted: `(num_cases, list_length)`, see `ranking_metrics`, as for `scores` and `ks`.
        targets: `(num_cases, max_targets)` integer item ids, padded with -1, one or more per case.
        seen: `(num_cases, max_targets)` bool, as `EvaluationCases.seen_before` gives it.
        behavior: `(num_cases,)` class label of each case's held-out behavior.
        behavior_names: names by class label; by default the labels themselves are used.

    Raises:
        ValueError: `seen` has not the shape of `targets`, or what `ranking_metrics` and `metrics_report` raise.

    Example:
        Item 7 was touched before and is found at rank 1, item 3 is new and not found.

        >>> import numpy as np
        >>> seen = np.array([[True, False]])
        >>> report = split_report(np.array([[7, 5]]), np.array([[7, 3]]), seen, np.array([0]), ks=(1,))
        >>> [report[group]["recall@1"] for group in ("overall", "repeat", "new")]
        [0.5, 1.0, 0.0]
    """
    predicted, targets, seen = np.asarray(predicted), np.asarray(targets), np.asarray(seen, dtype=bool)
    if seen.shape != targets.shape:
        raise ValueError(f"`seen`: expected the shape of `targets` {targets.shape}, found {seen.shape}")
    per_case = ranking_metrics(predicted, targets, scores, ks)
    report = metrics_report(per_case, behavior, behavior_names=behavior_names)
    for group, part in (("repeat", seen), ("new", ~seen)):
        kept = np.where(part, targets, -1)
        rows = (kept >= 0).any(axis=1)
        kept_scores = None if scores is None else np.asarray(scores)[rows]
        per_case = ranking_metrics(predicted[rows], kept[rows], kept_scores, ks)
        report[group] = _group_report(per_case, np.ones(np.count_nonzero(rows), dtype=bool))
    return report


def _group_report(per_case: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, float]:
    count = int(np.count_nonzero(mask))
    return {"n": count, **(mean_metrics(per_case, mask) if count else {})}


def _weighted_by_count(reports: list[dict[str, float]]) -> dict[str, float]:
    total = sum(report["n"] for report in reports)
    names = [name for name in reports[0] if name != "n"] if reports else []
    return {"n": total, **{name: sum(r["n"] * r[name] for r in reports) / total for name in names}}


def _case_values(name: str, values: np.ndarray, per_case: Mapping[str, np.ndarray]) -> np.ndarray:
    values = np.asarray(values)
    num_cases = len(next(iter(per_case.values()), values))
    if values.shape == (num_cases, 1):
        values = values[:, 0]
    if values.shape != (num_cases,):
        raise ValueError(f"`{name}`: expected shape ({num_cases},), found {values.shape}; pass one value per case")
    return values


def _item_rows(name: str, ids: np.ndarray) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}`: expected a two-dimensional integer array, found {ids.dtype} of shape {ids.shape}; "
            "pass one row per case, padded with -1"
        )
    return np.maximum(ids.astype(np.int64, copy=False), -1)


def _row_keys(ids: np.ndarray, span: int) -> np.ndarray:
    """Each id made unique to its row, so that one flat set operation serves all rows."""
    return np.arange(len(ids))[:, None] * span + ids


def _first_copies(ids: np.ndarray) -> np.ndarray:
    """Bool of the shape of `ids`: an id at its first place in its row, padding excluded."""
    first = np.zeros(ids.size, dtype=bool)
    # The extra 1 keeps -1 of one row apart from the largest id of the row before.
    first[np.unique(_row_keys(ids + 1, ids.max(initial=0) + 2), return_index=True)[1]] = True
    return first.reshape(ids.shape) & (ids >= 0)


def _relevance(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`(num_cases, list_length)` bool: a target, named for the first time in its list."""
    span = max(predicted.max(initial=0), targets.max(initial=0)) + 2
    return np.isin(_row_keys(predicted + 1, span), _row_keys(targets + 1, span)) & _first_copies(predicted)


def _tie_groups(predicted: np.ndarray, scores: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """First place of each place's tie group and the place after its last, both `(num_cases, list_length)`."""
    places = np.broadcast_to(np.arange(predicted.shape[1]), predicted.shape)
    if scores is None or predicted.shape[1] == 0:
        return places, places + 1
    scores = np.asarray(scores)
    if scores.shape != predicted.shape:
        raise ValueError(
            f"`scores`: expected the shape of `predicted` {predicted.shape}, found {scores.shape}; "
            "pass one score per listed item"
        )
    listed = predicted >= 0
    if np.any(np.isnan(scores) & listed):
        raise ValueError("`scores`: expected a number for every listed item, found NaN; pass -inf for the worst score")
    both = listed[:, 1:] & listed[:, :-1]
    if np.any((scores[:, 1:] > scores[:, :-1]) & both):
        raise ValueError(
            "`scores`: expected scores that never rise along a list, found one above its predecessor; "
            "sort each list by score, or pass `scores=None` to take the order as it is"
        )
    breaks = ~((scores[:, 1:] == scores[:, :-1]) & both)
    opens = np.pad(breaks, ((0, 0), (1, 0)), constant_values=True)
    closes = np.pad(breaks, ((0, 0), (0, 1)), constant_values=True)
    start = np.maximum.accumulate(np.where(opens, places, 0), axis=1)
    end = np.where(closes, places + 1, predicted.shape[1])
    return start, np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]


def _expected_gain(
    relevant: np.ndarray, start: np.ndarray, end: np.ndarray, k: int, discounts: np.ndarray
) -> np.ndarray:
    """`(num_cases,)` sum of the discounts of the relevant items within the first k, each the mean over its group."""
    total = np.concatenate([[0.0], np.cumsum(discounts)])
    gain = (total[np.minimum(end, k)] - total[np.minimum(start, k)]) / (end - start)
    return np.where(relevant, gain, 0.0).sum(axis=1)


def _expected_hit(relevant: np.ndarray, start: np.ndarray, end: np.ndarray, k: int) -> np.ndarray:
    """`(num_cases,)` probability of a relevant item within the first k.

    Certain if a group that lies within the first k holds one. Of the group that the cut-off splits, with `size`
    places, `room` of them within the first k and `r` relevant items, the first k miss all r with probability
    `prod over t = 0..r-1 of (size - room - t) / (size - t)`.
    """
    certain = (relevant & (end <= k)).any(axis=1)
    split = (start < k) & (end > k)
    num_relevant = (relevant & split).sum(axis=1)
    size = np.where(split, end - start, 1).max(axis=1, initial=1)
    room = np.where(split, k - start, 0).max(axis=1, initial=0)
    miss = np.ones(len(relevant))
    for drawn in range(int(num_relevant.max(initial=0))):
        left = np.maximum(size - room - drawn, 0) / np.maximum(size - drawn, 1)
        miss = np.where(drawn < num_relevant, miss * left, miss)
    return np.where(certain, 1.0, 1.0 - miss)


__all__ = ["joint_ids", "mean_metrics", "metrics_report", "ranking_metrics", "split_report"]
