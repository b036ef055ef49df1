from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from shared_files import shared_path

from mbgen_hf.baselines.popularity import PopularityBaseline
from mbgen_hf.baselines.recency import RecencyBaseline
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.filters import filter_table, keep_users_with_sessions
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import SessionRule, with_sessions
from mbgen_hf.data.training_examples import training_examples
from mbgen_hf.evaluation.evaluator import Recommendations, score
from mbgen_hf.evaluation.metrics import mean_metrics, metrics_report, ranking_metrics, split_report
from mbgen_hf.evaluation.protocols import (
    leave_one_out_cases,
    session_training_end,
    session_wise_cases,
    task_cases,
    training_end,
)


VIEW, CART, BUY = range(3)
SCHEMA = BehaviorSchema(("view", "cart", "buy"), (0, 1, 1), "buy")


def make_table(rows) -> SequenceTable:
    """A table from one list of (session, item, behavior) per user."""
    triples = np.array([triple for row in rows for triple in row])
    return SequenceTable(
        schema=SCHEMA,
        user_ids=np.arange(len(rows)),
        item_ids=np.arange(triples[:, 1].max() + 1),
        offsets=np.cumsum([0] + [len(row) for row in rows]),
        items=triples[:, 1].astype(np.int32),
        behaviors=triples[:, 2].astype(np.int8),
        timestamps=np.arange(len(triples)),
        session_ids=triples[:, 0].astype(np.int32),
    )


def random_rows(seed: int, num_users: int = 80):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_users):
        length = rng.integers(1, 25)
        sessions = np.cumsum(rng.random(length) < 0.3)
        items, behaviors = rng.integers(0, 9, length), rng.integers(0, 3, length)
        rows.append(list(zip((sessions - sessions[0]).tolist(), items.tolist(), behaviors.tolist(), strict=True)))
    return rows


@pytest.fixture
def table() -> SequenceTable:
    return make_table(
        [
            [
                (0, 4, VIEW),
                (1, 0, VIEW),
                (1, 0, BUY),
                (2, 3, BUY),
                (2, 0, VIEW),
                (2, 1, BUY),
                (2, 3, BUY),
                (2, 2, BUY),
            ],
            [(0, 1, VIEW), (1, 2, BUY)],
            [(0, 2, CART), (0, 2, BUY), (1, 2, VIEW), (2, 2, VIEW), (3, 4, CART)],
        ]
    )


def test_cases_of_the_last_session_by_hand(table):
    cases = session_wise_cases(table, "test")
    assert cases.users.tolist() == [0, 0, 2] and cases.behavior.tolist() == [VIEW, BUY, CART]
    assert cases.targets.tolist() == [[0, -1, -1], [3, 1, 2], [4, -1, -1]]
    assert cases.history_start.tolist() == [0, 0, 10] and cases.history_end.tolist() == [3, 3, 14]
    assert cases.targets.dtype == np.int32 and cases.behavior.dtype == np.int8
    assert session_wise_cases(table, "test", max_history=2).history_start.tolist() == [1, 1, 12]
    assert cases.seen_before(table).tolist() == [[True, False, False], [False] * 3, [False] * 3]


def test_cases_of_the_second_last_session_by_hand(table):
    cases = session_wise_cases(table)
    assert cases.users.tolist() == [0, 0, 2] and cases.behavior.tolist() == [VIEW, BUY, VIEW]
    assert cases.targets.tolist() == [[0], [0], [2]] and cases.history_end.tolist() == [1, 1, 13]


def cases_by_loop(rows, split, max_history):
    start = 0
    for user, row in enumerate(rows):
        sessions = sorted({session for session, _, _ in row})
        if len(sessions) >= 3:
            asked = sessions[-1 if split == "test" else -2]
            end = start + sum(session < asked for session, _, _ in row)
            for behavior in range(3):
                items = [item for session, item, b in row if session == asked and b == behavior]
                if items:
                    yield user, behavior, max(start, end - max_history), end, list(dict.fromkeys(items))
        start += len(row)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("max_history", [1, 6, 100])
def test_cases_match_a_loop(split, max_history):
    rows = random_rows(max_history)
    table = make_table(rows)
    cases = session_wise_cases(table, split, max_history)
    expected = list(cases_by_loop(rows, split, max_history))
    targets = [[item for item in row if item >= 0] for row in cases.targets.tolist()]
    columns = (cases.users, cases.behavior, cases.history_start, cases.history_end)
    found = [(*row, items) for row, items in zip(np.stack(columns, 1).tolist(), targets, strict=True)]
    assert found == [tuple(row) for row in expected] and cases.targets.shape[1] == max(map(len, targets)) > 1
    for behavior in range(3):
        alone = session_wise_cases(table, split, max_history, behavior)
        assert alone.users.tolist() == [row[0] for row in expected if row[1] == behavior]
        same = task_cases(cases, "target", replace(SCHEMA, target=SCHEMA.names[behavior]))
        np.testing.assert_array_equal(alone.targets, same.targets[:, : alone.targets.shape[1]])
    assert len(task_cases(cases, "behavior", SCHEMA)) == len(cases)


def test_gaps_in_the_session_numbers_change_nothing(table):
    spread = replace(table, session_ids=table.session_ids * 3 + 5)
    np.testing.assert_array_equal(session_training_end(spread), session_training_end(table))
    np.testing.assert_array_equal(
        session_wise_cases(spread, "test").targets, session_wise_cases(table, "test").targets
    )


def test_the_training_part_ends_before_the_validation_session():
    rows = random_rows(3)
    table = make_table(rows)
    end = session_training_end(table)
    validation = {user: stop for user, _, _, stop, _ in cases_by_loop(rows, "validation", 100)}
    assert end.tolist() == [validation.get(user, table.offsets[user]) for user in range(len(rows))]
    assert len(validation) < len(rows)
    examples = training_examples(table, end, "sliding", 5)
    assert set(examples.users.tolist()) == set(validation) and (examples.targets < end[examples.users]).all()
    # Leaving the users out of the table gives the same training part and the same cases.
    smaller, _ = keep_users_with_sessions(table)
    np.testing.assert_array_equal(end[list(validation)] - table.offsets[list(validation)],
        session_training_end(smaller) - smaller.offsets[:-1])  # fmt: skip
    whole, kept = session_wise_cases(table, "test"), session_wise_cases(smaller, "test")
    np.testing.assert_array_equal(table.user_ids[whole.users], smaller.user_ids[kept.users])
    np.testing.assert_array_equal(np.where(kept.targets < 0, -1, smaller.item_ids[kept.targets]), whole.targets)


@pytest.mark.parametrize("make", [RecencyBaseline, PopularityBaseline])
def test_baselines_learn_nothing_from_held_out_sessions(make):
    table = make_table(random_rows(6))
    end = session_training_end(table)
    held_out = np.arange(table.num_interactions) >= np.repeat(end, table.lengths)
    marked = replace(
        table, items=np.where(held_out, 0, table.items), behaviors=np.where(held_out, BUY, table.behaviors)
    )
    learned = [vars(make().fit(one, session_training_end(one))) for one in (table, marked)]
    for name, values in learned[0].items():
        np.testing.assert_array_equal(values, learned[1][name])
    assert PopularityBaseline().fit(table, end).counts.sum() == (~held_out).sum()


def test_baselines_check_the_end_of_the_training_part(table):
    with pytest.raises(ValueError, match=r"`training_end`: expected shape \(3,\), found \(2,\)"):
        PopularityBaseline().fit(table, np.array([3, 8]))
    with pytest.raises(ValueError, match="`training_end`: expected positions within each user's row"):
        PopularityBaseline().fit(table, np.array([3, 8, 16]))
    longer = make_table([row for row in random_rows(1) if len(row) > 2])
    np.testing.assert_array_equal(
        PopularityBaseline().fit(longer).counts, PopularityBaseline().fit(longer, training_end(longer)).counts
    )


def test_protocol_arguments_are_checked(table):
    for options, name in (
        ({"split": "train"}, "split"),
        ({"max_history": 0}, "max_history"),
        ({"behavior": 3}, "behavior"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`: expected"):
            session_wise_cases(table, **options)
    for call in (session_wise_cases, session_training_end):
        with pytest.raises(ValueError, match="`table`: expected session_ids, found none"):
            call(replace(table, session_ids=None))
    short = make_table([[(0, 1, VIEW), (1, 0, BUY)]])
    assert len(session_wise_cases(short)) == 0 and session_training_end(short).tolist() == [0]


def test_split_report_scores_seen_and_new_targets_apart():
    rng = np.random.default_rng(0)
    predicted = np.argsort(rng.random((50, 30)), axis=1)[:, :8]
    targets = np.where(rng.random((50, 4)) < 0.4, -1, np.argsort(rng.random((50, 30)), axis=1)[:, :4])
    targets[:, 0] = np.maximum(targets[:, 0], 0)
    scores = -np.sort(rng.integers(0, 3, (50, 8)), axis=1).astype(float)
    seen = (rng.random((50, 4)) < 0.5) & (targets >= 0)
    behavior = rng.integers(0, 3, 50)
    report = split_report(predicted, targets, seen, behavior, scores, ks=(3, 8), behavior_names=SCHEMA.names)
    for group, part in (("repeat", seen), ("new", ~seen & (targets >= 0))):
        rows = [(p, t[m], s) for p, t, s, m in zip(predicted, targets, scores, part, strict=True) if m.any()]
        each = [ranking_metrics(p[None], t[None], s[None], ks=(3, 8)) for p, t, s in rows]
        assert report[group].pop("n") == len(rows)
        assert report[group] == pytest.approx({name: np.mean([m[name] for m in each]) for name in each[0]})
    rest = metrics_report(ranking_metrics(predicted, targets, scores, ks=(3, 8)), behavior, None, SCHEMA.names)
    assert {name: report[name] for name in rest} == rest
    with pytest.raises(ValueError, match="`seen`: expected the shape of `targets`"):
        split_report(predicted, targets, seen[:, :1], behavior)


def test_split_report_of_single_targets_is_metrics_report_to_the_last_bit():
    table = make_table([row for row in random_rows(8, 200) if len(row) > 2])
    cases = leave_one_out_cases(table, "test")
    items, scores = PopularityBaseline().fit(table).recommend(table, cases, 5)
    seen = cases.seen_before(table)
    old = metrics_report(ranking_metrics(items, cases.targets, scores), cases.behavior, seen, SCHEMA.names)
    assert split_report(items, cases.targets, seen, cases.behavior, scores, (1, 5, 10), SCHEMA.names) == old
    answers = Recommendations(items, np.zeros_like(items, dtype=np.int8), scores)
    assert score(table, cases, answers, "behavior", (1, 5, 10)) == old and min(old["new"]["n"], old["repeat"]["n"]) > 0


def test_score_takes_session_wise_cases():
    table = make_table(random_rows(9))
    cases = session_wise_cases(table, "test")
    items, scores = RecencyBaseline().recommend(table, cases, 10)
    report = score(
        table, cases, Recommendations(items, np.full_like(items, BUY, dtype=np.int8), scores), "behavior", (5,)
    )
    # Within ten items the history holds every seen target, and no new one.
    assert report["overall"]["n"] == len(cases) < report["repeat"]["n"] + report["new"]["n"]
    assert report["new"]["recall@5"] == 0 < report["repeat"]["recall@5"]
    sizes = {name: group for name, group in report.items() if name.startswith("behavior:")}
    weighted = sum(group["n"] * group["hr@5"] for group in sizes.values()) / len(cases)
    assert report["merged"]["hr@5"] == pytest.approx(weighted) and sum(g["n"] for g in sizes.values()) == len(cases)


@pytest.mark.parametrize(
    ("name", "behaviors", "rule", "users", "expected"),
    [
        ("taobao_kcore_fav_cart_buy", ("fav", "cart", "buy"), "day:Asia/Shanghai", 22312, (13664, 0.2332)),
        ("ijcai15_kcore", ("fav", "cart", "buy"), "day:Asia/Shanghai", 21810, (19950, 0.2026)),
        ("retailrocket_kcore", ("view", "cart", "buy"), "gap:1800", 769, (197, 0.6447)),
    ],
)
def test_recency_alone_on_real_logs(data_dir, name, behaviors, rule, users, expected):
    """Items of five or more interactions in the whole log (one pass, no minimum for users), then sessions."""
    path = shared_path(data_dir / name / "interactions.csv.gz", "real log")
    labels = {behavior: label for label, behavior in enumerate(behaviors)}
    log = pl.read_csv(path).rename({"user": "user_id", "item": "item_id"})
    log = log.with_columns(pl.col("behavior").replace_strict(labels, return_dtype=pl.Int8))
    table = SequenceTable.from_log(log, BehaviorSchema(behaviors, (0, 1, 2), "buy"))
    table, _ = filter_table(table, min_item_count=5, min_user_interactions=0, item_count_over="all")
    table = with_sessions(table, SessionRule.parse(rule))
    smaller, _ = keep_users_with_sessions(table)
    assert smaller.num_users == users
    for one in (table, smaller):
        cases = task_cases(session_wise_cases(one, "test", max_history=100), "target", one.schema)
        items, scores = RecencyBaseline().recommend(one, cases, 10)
        rate = mean_metrics(ranking_metrics(items, cases.targets, scores))["hr@10"]
        np.testing.assert_allclose((len(cases), rate), expected, atol=5e-5, rtol=0)
