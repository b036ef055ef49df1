import numpy as np
import pytest
import torch

from mbgen_hf.baselines.popularity import PopularityBaseline
from mbgen_hf.baselines.sasrec import SASRecBaseline
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.metrics import ranking_metrics
from mbgen_hf.evaluation.protocols import leave_one_out_cases
from mbgen_hf.simulation import simulate_shop


SMALL = {"dim": 32, "num_layers": 1, "num_epochs": 12, "batch_size": 32, "learning_rate": 5e-3, "max_history": 10}


@pytest.fixture(scope="module")
def table():
    return simulate_shop(num_users=400, num_items=24, seed=1).table()


@pytest.fixture(scope="module")
def fitted(table):
    return SASRecBaseline(**SMALL, device="cpu").fit(table)


def test_it_learns_what_popularity_can_not(table, fitted):
    cases = leave_one_out_cases(table, "test")
    hits = {}
    for baseline in (fitted, PopularityBaseline().fit(table)):
        items, scores = baseline.recommend(table, cases, 3)
        hits[baseline.name] = ranking_metrics(items, cases.targets, scores, (3,))["hr@3"].mean()
    assert hits["sasrec"] > 2 * hits["popularity"]


def test_scores_are_log_probabilities_of_every_item(table, fitted):
    cases = leave_one_out_cases(table, "test").select(np.arange(5))
    items, scores = fitted.recommend(table, cases, 30)
    assert (items[:, 24:] == -1).all() and np.isneginf(scores[:, 24:]).all()
    assert [sorted(row) for row in items[:, :24].tolist()] == [list(range(24))] * 5
    assert np.allclose(np.exp(scores[:, :24]).sum(axis=1), 1, atol=1e-5)


def test_later_items_do_not_change_earlier_states(fitted):
    items = torch.randint(1, 25, (2, 8))
    changed = items.clone()
    changed[:, 5] = items[:, 5] % 24 + 1
    with torch.no_grad():
        one, two = fitted.network(items), fitted.network(changed)
    torch.testing.assert_close(one[:, :5], two[:, :5], atol=1e-6, rtol=0)
    assert (one[:, 5:] - two[:, 5:]).abs().amax() > 1e-3


def test_held_out_interactions_are_never_read(table, fitted):
    changed = SequenceTable(**vars(table) | {"items": table.items.copy()})
    for back in (1, 2):
        changed.items[table.offsets[1:] - back] = 7
    again = SASRecBaseline(**SMALL, device="cpu").fit(changed)
    for one, two in zip(fitted.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_loss_against_all_other_items_is_the_whole_loss(fitted):
    states, targets = torch.randn(20, 32), torch.randint(0, 24, (20,))
    whole = fitted.network.loss(states, targets)
    torch.testing.assert_close(fitted.network.loss(states, targets, torch.arange(24)), whole)
    assert fitted.network.loss(states, targets, torch.arange(12)) < whole


def test_sampled_training_learns_too(table, fitted):
    cases = leave_one_out_cases(table, "test")
    sampled = SASRecBaseline(**SMALL, num_sampled=12, device="cpu").fit(table)
    hits = [
        ranking_metrics(items, cases.targets, scores, (3,))["hr@3"].mean()
        for items, scores in (baseline.recommend(table, cases, 3) for baseline in (fitted, sampled))
    ]
    assert hits[1] > 0.7 * hits[0]


def test_item_embeddings_are_those_of_the_catalog(table, fitted):
    embeddings = fitted.item_embeddings()
    assert embeddings.shape == (24, 32)
    assert np.array_equal(embeddings, fitted.network.items.weight.detach().numpy()[1:])
    still = SASRecBaseline(**SMALL | {"num_epochs": 0}, initial_std=0.001, device="cpu").fit(table)
    assert 0 < np.abs(still.item_embeddings()).max() < 0.01
    with pytest.raises(ValueError, match="`item_embeddings`: expected a fitted baseline"):
        SASRecBaseline().item_embeddings()


def test_bad_calls_are_refused(table, fitted):
    cases = leave_one_out_cases(table, "test")
    with pytest.raises(ValueError, match="call `fit"):
        SASRecBaseline().recommend(table, cases, 5)
    with pytest.raises(ValueError, match="knows no behaviors|which has none"):
        fitted.recommend_pairs(table, cases, 5)
