"""Exact search against the ranking of a beam as wide as the catalog, and against scores that fool a beam."""

import pytest
import torch
from test_request_catalog import NUM_ITEMS, USERS, answers, assert_answers, expected

from mbgen_hf.models import constrained_generation


KINDS = ["mbgen", "gamer"]


def exact(model, encoded, results: int, **options):
    return model.generate(**encoded, exact=True, num_return_sequences=results, return_dict_in_generate=True, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("results", [1, 5, 130])
def test_the_answer_is_the_exhaustive_ranking_with_a_proof(kind, batch, results, monkeypatch):
    monkeypatch.setattr(constrained_generation, "EXACT_BATCH", batch)
    model, encoded, ranked = answers(kind)
    output = exact(model, encoded, results, num_beams=1)
    assert_answers(output, ranked, results)
    assert (output.exact_gap == 0).all()
    last = output.sequences_scores.view(USERS, -1)[:, -1]
    assert ((output.exact_bound <= last) | (output.exact_bound == -torch.inf)).all()
    if results == 1 and batch == 1:
        every = sum(len(set(map(tuple, model.item_codes[:, :d].tolist()))) for d in range(3))
        assert (output.expanded_prefixes < every * len(model.config.behaviors)).all(), "nothing was pruned"


@pytest.mark.parametrize("kind", KINDS)
def test_sets_prompts_and_normalisation_work_with_it(kind):
    model, encoded, ranked = answers(kind)
    sets = {"candidates": [[1, 2, 3, 4, 5], [], list(range(20))], "exclude": [2, 7]}
    assert_answers(exact(model, encoded, 12, **sets), expected(ranked, **sets), 12)
    for options in ({"behavior": "buy"}, {"normalize_over": "catalog"}, {"prompt": ["buy", "<a_0>"]}):
        wide = model.generate(
            **encoded, **options, num_beams=120, num_return_sequences=9, return_dict_in_generate=True
        )
        found = exact(model, encoded, 9, **options)
        assert found.item_indices.tolist() == wide.item_indices.tolist()
        torch.testing.assert_close(found.sequences_scores, wide.sequences_scores, atol=2e-5, rtol=2e-6)
    code = model.item_codes[0].tolist()
    whole = exact(model, encoded, 5, prompt=["buy", f"<a_{code[0]}>", f"<b_{code[1]}>"])
    assert 0 in whole.item_indices[0].tolist() and (whole.exact_gap == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_a_narrow_beam_misses(kind, monkeypatch):
    # The best first code leads to bad items only: a beam of one follows it, exact search does not stay there.
    model, encoded, _ = answers(kind)
    original = type(model).next_log_probs

    def misleading(self, hidden_states, slot, context, over_vocabulary=True):
        log_probs = original(self, hidden_states, slot, context, over_vocabulary) * 0.1
        if slot == 2:
            log_probs = log_probs - 2
            log_probs[..., 0] += 1.5
        elif slot > 2:
            first = (context.ids[..., 1] == self.config.token_space.code_offsets[0])[..., None]
            log_probs = log_probs - 5.0 * first
        return log_probs

    monkeypatch.setattr(type(model), "next_log_probs", misleading)
    options = {"behavior": "buy", "return_dict_in_generate": True}
    wide = model.generate(**encoded, **options, num_beams=30)
    assert (model.item_codes[wide.item_indices[:, 0], 0] != 0).all()
    assert (model.item_codes[model.generate(**encoded, **options, num_beams=1).item_indices[:, 0], 0] == 0).all()
    found = exact(model, encoded, 1, behavior="buy")
    assert found.item_indices.tolist() == wide.item_indices.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_kept_and_the_gap_is_honest(kind, monkeypatch):
    monkeypatch.setattr(constrained_generation, "EXACT_BATCH", 2)
    model, encoded, ranked = answers(kind)
    for budget in (1, 4, 9, 20):
        output = exact(model, encoded, 3, num_beams=1, node_budget=budget)
        assert (output.expanded_prefixes <= budget).all()
        scores = output.sequences_scores.view(USERS, 3)
        for user in range(USERS):
            truth = ranked[user][2][2]
            # The third best item is no better than the third best found by more than the gap.
            if scores[user, 2] == -torch.inf:
                assert output.exact_gap[user] == torch.inf
            else:
                assert truth <= scores[user, 2] + output.exact_gap[user] + 1e-4
            best_missed = max(
                (score for b, i, score in ranked[user]
                 if (b, i) not in zip(output.behavior_indices[user].tolist(), output.item_indices[user].tolist(),
                                      strict=True)),
            )  # fmt: skip
            assert best_missed <= max(output.exact_bound[user], scores[user, 2]) + 1e-4
    assert (output.exact_gap[output.expanded_prefixes < budget] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact": True, "do_sample": True}, "`exact`: expected a plain search"),
        ({"exact": True, "output_scores": True}, "`exact`: expected a plain search"),
        ({"node_budget": 5}, "`node_budget`: expected a positive number together with `exact`, found 5"),
        ({"exact": True, "node_budget": 0}, "`node_budget`: expected a positive number"),
        ({"exact": True, "behavior_sampling": True}, "`behavior_sampling`: expected either this or `exact`"),
        ({"behavior": "buy", "behavior_sampling": True}, "expected a request that leaves the behavior open"),
        ({"behavior_sampling": True, "use_cache": False}, "`behavior_sampling`: expected a plain search"),
    ],
)
def test_contradicting_requests_are_refused(options, message):
    model, encoded, _ = answers("mbgen")
    with pytest.raises(ValueError, match=message):
        model.generate(**encoded, **options)
    assert NUM_ITEMS == model.config.num_items
