import numpy as np
import pytest

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.calibration import calibration
from mbgen_hf.evaluation.evaluator import Recommendations
from mbgen_hf.evaluation.protocols import EvaluationCases


def table_of(rows: list[list[int]], num_items: int) -> SequenceTable:
    items = np.concatenate(rows).astype(np.int32)
    return SequenceTable(
        schema=BehaviorSchema.from_names(["view", "buy"]),
        user_ids=np.arange(len(rows)),
        item_ids=np.arange(num_items),
        offsets=np.cumsum([0, *map(len, rows)]),
        items=items,
        behaviors=np.ones(len(items), dtype=np.int8),
        timestamps=np.arange(len(items)),
    )


def cases_of(table: SequenceTable, targets: list[list[int]]) -> EvaluationCases:
    users = np.arange(table.num_users)
    targets = np.array(targets, dtype=np.int32)
    return EvaluationCases(users, table.offsets[:-1], table.offsets[1:], targets, np.ones(len(users), dtype=np.int8))


def test_calibration_by_hand() -> None:
    table = table_of([[0, 1, 1], [2]], 6)
    cases = cases_of(table, [[1, -1], [5, 4]])
    items = np.array([[1, 3, 0], [4, 2, -1]], dtype=np.int32)
    scores = np.log(np.array([[0.5, 0.2, 0.05], [0.4, 0.3, 1.0]]))
    answers = Recommendations(items, np.ones_like(items), scores)
    report = calibration(table, cases, answers, edges=np.array([0.0, 0.1, 0.45, 1.0]))
    assert report.history_items == 1.5 and report.listed_history_items == 1.5
    assert report.history_mass == pytest.approx((0.5 + 0.05 + 0.3) / 2) and report.history_share == 0.5
    assert report.new_mass == pytest.approx((0.2 + 0.4) / 2) and report.new_share == 0.5
    assert report.history.counts.tolist() == [1, 1, 1] and report.new.counts.tolist() == [0, 2, 0]
    np.testing.assert_allclose(report.history.predicted, [0.05, 0.3, 0.5])
    np.testing.assert_allclose(report.history.observed, [0, 0, 1])
    np.testing.assert_allclose(report.new.observed, [np.nan, 0.5, np.nan])
    assert report.history.error == pytest.approx((0.05 + 0.3 + 0.5) / 3)


def test_lists_drawn_from_their_own_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(8), size=20_000)
    order = np.argsort(-chances, axis=1)
    targets = (rng.random((len(chances), 1)) > chances.cumsum(1)).sum(1)
    table = table_of([[0, 1, 2]] * len(chances), 8)
    answers = Recommendations(
        order.astype(np.int32), np.ones_like(order, dtype=np.int8), np.log(np.take_along_axis(chances, order, 1))
    )
    report = calibration(table, cases_of(table, targets[:, None].tolist()), answers)
    assert report.history.error < 0.01 and report.new.error < 0.01
    assert report.history_mass == pytest.approx(report.history_share, abs=0.01)
    overconfident = Recommendations(answers.items, answers.behaviors, answers.scores / 2)
    assert calibration(table, cases_of(table, targets[:, None].tolist()), overconfident).history.error > 0.1


def test_no_cases_are_refused() -> None:
    table = table_of([[0]], 2)
    empty = Recommendations(np.empty((0, 3), np.int32), np.empty((0, 3), np.int8), np.empty((0, 3)))
    with pytest.raises(ValueError, match="expected one list for each of some cases, found 0 lists"):
        calibration(table, cases_of(table, [[1]]), empty)
