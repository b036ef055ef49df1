import pytest
import torch
from test_request_catalog import USERS, answers

from mbgen_hf.models.behavior_sampling import behavior_quotas


def test_quotas_are_those_of_the_paper_and_always_add_up():
    paper = torch.tensor([[0.3, 0.42, 0.18, 0.1]])
    assert behavior_quotas(paper, 10).tolist() == [[3, 4, 2, 1]]
    assert behavior_quotas(paper, 1).tolist() == [[0, 1, 0, 0]]
    random = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)).pow(4)
    random = random / random.sum(1, keepdim=True)
    for count in (1, 3, 10, 50):
        quotas = behavior_quotas(random, count)
        assert (quotas.sum(1) == count).all() and (quotas >= 0).all()
        assert ((quotas - random * count).abs() < 1).all()


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_every_behavior_gets_its_share_of_its_own_best_items(kind):
    model, encoded, ranked = answers(kind)
    output = model.generate(
        **encoded, behavior_sampling=True, num_beams=30, num_return_sequences=10, return_dict_in_generate=True
    )
    probabilities = output.behavior_probabilities
    torch.testing.assert_close(probabilities.sum(1), torch.ones(USERS))
    shares = behavior_quotas(probabilities, 10)
    scores = output.sequences_scores.view(USERS, 10)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    for user, ranking in enumerate(ranked):
        wanted = {
            (behavior, item)
            for behavior in range(len(model.config.behaviors))
            for _, item, _ in [entry for entry in ranking if entry[0] == behavior][: shares[user, behavior]]
        }
        found = zip(output.behavior_indices[user].tolist(), output.item_indices[user].tolist(), strict=True)
        assert set(found) == wanted
        # The probability of a behavior is that of all its pairs, up to mass on items that do not exist.
        joint = {(behavior, item): score for behavior, item, score in ranking}
        for pair, score in zip(sorted(wanted, key=lambda pair: -joint[pair]), scores[user].tolist(), strict=True):
            assert abs(joint[pair] - score) < 2e-5 * max(1, abs(score))


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_places_that_a_behavior_can_not_fill_go_to_the_others(kind):
    model, encoded, _ = answers(kind)
    options = {"behavior_sampling": True, "num_beams": 12, "return_dict_in_generate": True}
    few = model.generate(**encoded, candidates=[4, 9], num_return_sequences=7, **options)
    for user in range(USERS):
        pairs = list(zip(few.behavior_indices[user].tolist(), few.item_indices[user].tolist(), strict=True))
        known = [pair for pair in pairs if pair[1] >= 0]
        assert len(set(known)) == len(known) == min(7, 2 * len(model.config.behaviors))
        assert all(item in (4, 9) for _, item in known) and pairs[len(known) :] == [(-1, -1)] * (7 - len(known))


def test_the_probabilities_of_behaviors_come_with_every_search_that_predicts_them():
    model, encoded, _ = answers("mbgen")
    options = {"num_beams": 4, "return_dict_in_generate": True}
    start = torch.ones(USERS, 1, dtype=torch.long)
    logits = model(**encoded, decoder_input_ids=start).logits[:, 0, 4:7]
    plain = model.generate(**encoded, **options)
    torch.testing.assert_close(plain.behavior_probabilities, logits.softmax(-1))
    assert torch.equal(model.generate(**encoded, exact=True, **options).behavior_probabilities,
                       plain.behavior_probabilities)  # fmt: skip
    assert "behavior_probabilities" not in model.generate(**encoded, behavior="buy", **options)
