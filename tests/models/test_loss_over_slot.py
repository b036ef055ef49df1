"""`loss_over="slot"`: loss, logits and both ways of generating agree on what probabilities sum to one over."""

import pytest
import torch
from model_fixtures import HISTORIES, gamer_tokenizer, tiny_gamer, tiny_model, tokenizer_of

from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig


def model_and_history(kind: str, **changes):
    model = {"mbgen": tiny_model, "gamer": tiny_gamer}[kind](**changes)
    tokenizer = {"mbgen": tokenizer_of, "gamer": gamer_tokenizer}[kind](model)
    return model, tokenizer.encode_history(HISTORIES[0])


def next_tokens(model, encoded, kind: str):
    """The interaction `[b, c0..]` of item 4 bought, and the log-probabilities of its tokens over the vocabulary."""
    space = model.config.token_space
    codes = torch.tensor([space.behavior_id("buy"), *space.item_token_ids(model.item_codes[4].numpy())])
    if kind == "mbgen":
        inputs = {**encoded, "decoder_input_ids": torch.cat([torch.tensor([1]), codes])[None]}
    else:
        ids = torch.cat([encoded["input_ids"], codes[None]], dim=1)
        inputs = {"input_ids": ids}
    logits = model(**inputs).logits[0]
    return codes, logits[-len(codes) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_probabilities_of_a_slot_sum_to_one(kind):
    plain, encoded = model_and_history(kind)
    model, _ = model_and_history(kind, loss_over="slot")
    model.load_state_dict(plain.state_dict())
    codes, everywhere = next_tokens(plain, encoded, kind)
    _, restricted = next_tokens(model, encoded, kind)
    space = model.config.token_space
    for place in range(len(codes)):
        first, count = space.slot_range(place + 1)
        expected = everywhere[place, first : first + count].log_softmax(-1)
        torch.testing.assert_close(restricted[place, first : first + count], expected, atol=1e-5, rtol=1e-5)
        assert float(restricted[place].exp().sum()) == pytest.approx(1)
    assert not torch.allclose(everywhere.exp(), restricted.exp(), atol=1e-3)


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_loss_is_the_mean_of_these_log_probabilities(kind):
    model, encoded = model_and_history(kind, loss_over="slot")
    codes, log_probs = next_tokens(model, encoded, kind)
    expected = log_probs[range(len(codes)), codes]
    if kind == "mbgen":
        labels = torch.cat([codes, torch.tensor([2])])[None]
        loss, count = model(**encoded, labels=labels).loss, len(codes) + 1  # EOS is certain, and counted.
    else:
        ids = torch.cat([encoded["input_ids"], codes[None]], dim=1)
        labels = ids.clone()
        labels[:, : -len(codes)] = -100
        loss, count = model(input_ids=ids, labels=labels).loss, len(codes)
    torch.testing.assert_close(loss, -expected.sum() / count, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
@pytest.mark.parametrize("stock", [False, True])
def test_generated_items_score_as_in_the_loss(kind, stock):
    model, encoded = model_and_history(kind, loss_over="slot")
    options = {"output_scores": True} if stock else {}  # Scores of every step are what the stock loop is for.
    output = model.generate(
        **encoded, behavior="buy", num_beams=30, num_return_sequences=30, return_dict_in_generate=True, **options
    )
    assert (getattr(output, "scores", None) is not None) == stock
    codes, log_probs = next_tokens(model, encoded, kind)
    place = (output.item_indices[0] == 4).nonzero()[0, 0]
    expected = log_probs[range(1, len(codes)), codes[1:]].sum()
    torch.testing.assert_close(output.sequences_scores[place], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [MBGenConfig, GamerConfig])
def test_contradictions_are_refused(config):
    with pytest.raises(Exception, match="`loss_over`: expected 'vocabulary' or 'slot', found 'items'"):
        config(loss_over="items")
    with pytest.raises(Exception, match="expected 'vocabulary' with a copying head"):
        config(loss_over="slot", copy_from_history=True)
