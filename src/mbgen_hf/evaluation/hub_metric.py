"""The ranking metrics as an `evaluate.Metric`, for those whose evaluation loop is built on that library.

Needs the `evaluate` extra. The class is used directly and reads nothing from the Hub::

    metric = RecommendationMetric()
    metric.add_batch(predictions=[[3, 7, 1]], references=[[7]])
    metric.compute(ks=(1, 5, 10))
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from mbgen_hf.evaluation.metrics import mean_metrics, ranking_metrics


_DESCRIPTION = "HR@K, Recall@K and NDCG@K of ranked item lists against the whole catalog."
_INPUTS = """
Args:
    predictions: one list of item ids per case, best first; lists may differ in length, -1 is padding.
    references: one list of target item ids per case, in any order.
    ks: cut-offs, by default 1, 5 and 10.
    scores: optionally one list of scores per case beside `predictions`, so that ties count by expected rank.
        Accepted by a `compute` that gets all its inputs at once, not after `add` or `add_batch`.
Returns:
    metric name, such as "ndcg@10" -> mean over cases.
"""
_CITATION = ""


class RecommendationMetric(evaluate.Metric):
    """Mean HR@K, Recall@K and NDCG@K over all cases added; see `mbgen_hf.evaluation.metrics` for the formulas."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[int]],
        references: Sequence[Sequence[int]],
        ks: Sequence[int] = (1, 5, 10),
        scores: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        predicted = _padded(predictions, -1, np.int64)
        padded_scores = None if scores is None else _padded(scores, -np.inf, np.float64)
        return mean_metrics(ranking_metrics(predicted, _padded(references, -1, np.int64), padded_scores, ks))


def _padded(rows: Sequence[Sequence[float]], filler: float, dtype: type) -> np.ndarray:
    padded = np.full((len(rows), max((len(row) for row in rows), default=0)), filler, dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


__all__ = ["RecommendationMetric"]
