import numpy as np
import pytest

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases, leave_one_out_cases, task_cases, training_end
from mbgen_hf.simulation import simulate_shop


SCHEMA = BehaviorSchema(("view", "buy"), (0, 1), "buy")


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
    return make_table([[(3, 0), (1, 0), (2, 1), (3, 1)], [(0, 0), (1, 1), (4, 0)]])


def test_leave_one_out_test_case_is_the_last_interaction(table):
    cases = leave_one_out_cases(table, "test")
    assert len(cases) == 2
    np.testing.assert_array_equal(cases.users, [0, 1])
    np.testing.assert_array_equal(cases.history_start, [0, 4])
    np.testing.assert_array_equal(cases.history_end, [3, 6])
    np.testing.assert_array_equal(cases.targets, [[3], [4]])
    np.testing.assert_array_equal(cases.behavior, [1, 0])
    assert cases.targets.dtype == np.int32 and cases.behavior.dtype == np.int8


def test_leave_one_out_validation_case_is_the_second_last_interaction(table):
    cases = leave_one_out_cases(table)
    np.testing.assert_array_equal(cases.history_end, [2, 5])
    np.testing.assert_array_equal(cases.targets, [[2], [1]])
    np.testing.assert_array_equal(cases.history_end, training_end(table))


def test_leave_one_out_cuts_the_history_to_its_end(table):
    cases = leave_one_out_cases(table, "test", max_history=2)
    np.testing.assert_array_equal(cases.history_start, [1, 4])
    np.testing.assert_array_equal(cases.history_end, [3, 6])


def test_seen_before_reads_the_history_before_the_cut(table):
    cases = leave_one_out_cases(table, "test", max_history=1)
    np.testing.assert_array_equal(cases.seen_before(table), [[True], [False]])


def test_seen_before_ignores_padding_the_future_and_other_users(table):
    cases = EvaluationCases(
        users=np.array([0, 1, 1]),
        history_start=np.array([0, 4, 4]),
        history_end=np.array([2, 5, 7]),
        targets=np.array([[3, 2, -1], [0, 1, 3], [4, -1, -1]]),
        behavior=np.zeros(3, dtype=np.int8),
    )
    expected = [[True, False, False], [True, False, False], [True, False, False]]
    np.testing.assert_array_equal(cases.seen_before(table), expected)


def test_seen_before_matches_a_loop_on_a_simulated_log():
    table = simulate_shop(60, 30, seed=2, min_length=3).table()
    rng = np.random.default_rng(0)
    cases = leave_one_out_cases(table, "test", max_history=4)
    cases = EvaluationCases(
        cases.users, cases.history_start, cases.history_end, rng.integers(-1, 30, (60, 5)), cases.behavior
    )
    expected = np.zeros((60, 5), dtype=bool)
    for row in range(60):
        past = set(table.items[table.offsets[cases.users[row]] : cases.history_end[row]].tolist())
        expected[row] = [target in past for target in cases.targets[row].tolist()]
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(cases.seen_before(table), expected)


def test_select_takes_masks_and_indices(table):
    cases = leave_one_out_cases(table, "test")
    assert cases.select(np.array([False, True])).users.tolist() == [1]
    assert cases.select(np.array([1, 0, 1])).targets.tolist() == [[4], [3], [4]]
    assert len(cases.select(np.zeros(2, dtype=bool))) == 0


def test_task_cases_keeps_target_behavior_only_for_the_target_task(table):
    cases = leave_one_out_cases(table, "test")
    assert task_cases(cases, "target", SCHEMA).users.tolist() == [0]
    assert len(task_cases(cases, "behavior", SCHEMA)) == 2
    assert len(task_cases(cases, "behavior_item", SCHEMA)) == 2


def test_users_with_fewer_than_three_interactions_are_named():
    table = make_table([[(0, 0), (1, 0)], [(0, 0), (1, 1), (2, 0)], [(0, 0)]])
    for call in (leave_one_out_cases, training_end):
        with pytest.raises(ValueError, match="found 2 of 3 users with fewer; filter"):
            call(table)


def test_protocol_arguments_are_checked(table):
    with pytest.raises(ValueError, match="`split`"):
        leave_one_out_cases(table, "train")
    with pytest.raises(ValueError, match="`max_history`"):
        leave_one_out_cases(table, "test", max_history=0)
    cases = leave_one_out_cases(table, "test")
    with pytest.raises(ValueError, match="`task`"):
        task_cases(cases, "purchase", SCHEMA)
    with pytest.raises(ValueError, match="`history_end`"):
        EvaluationCases(cases.users, cases.history_start, cases.history_end[:1], cases.targets, cases.behavior)
    with pytest.raises(ValueError, match="`targets`"):
        EvaluationCases(cases.users, cases.history_start, cases.history_end, cases.targets[:, 0], cases.behavior)
