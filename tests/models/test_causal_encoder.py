"""MBGen with a causal encoder: one pass over a user's interactions equals one pass for each of their prefixes."""

import pytest
import torch
from model_fixtures import HISTORIES, tiny_model

from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


@pytest.fixture(params=[False, True], ids=["plain", "copying"])
def model(request):
    return tiny_model(causal_encoder=True, copy_from_history=request.param)


def tokenizer_of(model) -> InteractionTokenizer:
    config = model.config
    return InteractionTokenizer(
        behaviors=config.behaviors,
        code_sizes=config.code_sizes,
        num_user_tokens=config.num_user_tokens,
        history_prefix="<bos>",
        history_suffix=None,
        item_codes=model.item_codes.numpy(),
        item_ids=[f"item-{i:02d}" for i in range(config.num_items)],
    )


def rows_and_examples(model, with_users: bool):
    """One batch of whole rows, and the same predictions as `(history, labels)` one by one."""
    tokenizer, width = tokenizer_of(model), model.config.token_space.num_code_levels + 1
    users = list(range(len(HISTORIES))) if with_users else [None] * len(HISTORIES)
    given = {"user_id": users} if with_users else {}
    whole = tokenizer.encode_history([history[:-1] for history in HISTORIES], **given)
    most, before = max(map(len, HISTORIES)), 1 + with_users
    labels = torch.full((len(HISTORIES), most, width + 1), -100)
    lengths = torch.full((len(HISTORIES), most), before)
    examples = []
    for row, (history, user) in enumerate(zip(HISTORIES, users, strict=True)):
        ids = tokenizer.encode_history(history)["input_ids"][0, 1:].view(-1, width)
        for place, tokens in enumerate(ids):
            labels[row, place] = torch.cat([tokens, tokens.new_tensor([2])])
            lengths[row, place] = before + place * width
            prefix = tokenizer.encode_history([history[:place]], user_id=None if user is None else [user])
            examples.append((prefix, labels[row, place][None]))
    return {**whole, "labels": labels, "history_lengths": lengths}, examples


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("with_users", [True, False])
def test_loss_and_gradients_are_those_of_prefix_by_prefix(model, attention, with_users):
    model.set_attn_implementation(attention)
    batch, examples = rows_and_examples(model, with_users)
    loss = model(**batch).loss
    loss.backward()
    mine = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = torch.stack([model(**prefix, labels=labels).loss for prefix, labels in examples]).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: n + text)


def test_logits_have_the_shape_of_the_labels_and_training_makes_none(model):
    batch, examples = rows_and_examples(model, with_users=True)
    logits = model(**batch).logits
    assert logits.shape == (*batch["labels"].shape, model.config.vocab_size)
    alone = model(**examples[2][0], labels=examples[2][1]).logits
    torch.testing.assert_close(logits[0, 2], alone[0], atol=1e-5, rtol=1e-5)
    assert model.train()(**batch).logits is None


def test_generation_scores_what_training_saw(model):
    batch, _ = rows_and_examples(model, with_users=True)
    history = tokenizer_of(model).encode_history([HISTORIES[0][:-1]], user_id=[0], padding_side="left")
    log_probs = model(**batch).logits[0, len(HISTORIES[0]) - 1].log_softmax(-1)
    wanted = batch["labels"][0, len(HISTORIES[0]) - 1]
    output = model.generate(
        **history, num_beams=90, num_return_sequences=90, return_dict_in_generate=True, prompt=["<bos>"]
    )
    found = (output.sequences[:, 1:] == wanted[:-1]).all(1).nonzero()
    assert len(found) == 1
    expected = log_probs[range(len(wanted) - 1), wanted[:-1]].sum()
    torch.testing.assert_close(output.sequences_scores[found[0, 0]], expected, atol=1e-4, rtol=1e-4)


def test_a_cold_start_begins_with_bos_as_in_training(model):
    anonymous, examples = rows_and_examples(model, with_users=False)
    asked = {"behavior": "buy", "num_beams": 5, "num_return_sequences": 5, "return_dict_in_generate": True}
    empty = model.generate(**examples[0][0], **asked)
    assert examples[0][0]["input_ids"].tolist() == [[model.config.bos_token_id]]
    none = model.generate(**asked)
    assert torch.equal(none.item_indices, empty.item_indices)
    torch.testing.assert_close(none.sequences_scores, empty.sequences_scores)


def test_later_interactions_change_no_earlier_state_and_earlier_ones_do(model):
    batch, _ = rows_and_examples(model, with_users=True)
    ids, changed = batch["input_ids"], batch["input_ids"].clone()
    changed[0, 6] = model.config.token_space.behavior_offset + 2
    before, after = model.encoder(ids)[0][0], model.encoder(changed)[0][0]
    assert torch.equal(before[:6], after[:6]) and (before[6:] != after[6:]).any(-1).all()
    both_ways = tiny_model()
    assert not torch.equal(both_ways.encoder(ids)[0][0][:6], both_ways.encoder(changed)[0][0][:6])


def test_it_survives_saving(tmp_path, model):
    batch, _ = rows_and_examples(model, with_users=True)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.causal_encoder
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)


def test_rows_need_a_causal_encoder_and_labels(model):
    batch, _ = rows_and_examples(model, with_users=True)
    with pytest.raises(ValueError, match="expected a causal encoder and labels"):
        tiny_model()(**batch)
    with pytest.raises(ValueError, match="expected a causal encoder and labels"):
        model(**{name: value for name, value in batch.items() if name != "labels"})


def test_rows_announced_as_whole_give_the_same(model):
    """Without gradients nothing looks at the data, as on a GPU."""
    rows, _ = rows_and_examples(model, with_users=True)
    with torch.no_grad():
        expected, found = (model(**rows, whole_rows=whole).loss for whole in (False, True))
    torch.testing.assert_close(found, expected)
