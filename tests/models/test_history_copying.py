"""The copying head against the mixture written out item by item, in both models."""

import math

import pytest
import torch
from model_fixtures import HISTORIES, gamer_tokenizer, tiny_gamer, tiny_model, tokenizer_of

from mbgen_hf.models.history_copying import distance_bucket, masked_logsumexp
from mbgen_hf.models.interactions import Interactions, happened_with_items


KINDS = ["mbgen", "gamer"]
BUY = {"mbgen": 6, "gamer": 7}


def copying_model(kind: str, **changes):
    """A tiny model with a copying head whose biases are not zero, and its tokenizer."""
    make = tiny_model if kind == "mbgen" else tiny_gamer
    model = make(**{"copy_from_history": True, "copy_dim": 16, "copy_item_behaviors": True, **changes})
    torch.manual_seed(5)
    with torch.no_grad():
        model.copying.distance_bias.normal_()
        if model.copying.happened_bias is not None:
            model.copying.happened_bias.weight.normal_(std=0.3)
            model.copying.happened_bias.bias.normal_()
        model.copying.gate.bias.fill_(0.3)
    return model, tokenizer_of(model) if kind == "mbgen" else gamer_tokenizer(model)


def encode(model, tokenizer, histories=HISTORIES):
    users = [1, 2, 3][: len(histories)] if tokenizer.token_space.num_user_tokens else None
    return tokenizer.encode_history(histories, user_id=users)


def states_of(kind: str, model, ids: torch.Tensor, decoder_ids: torch.Tensor):
    """Final states `(history, behavior token)` and generated log-probabilities after the decoder's tokens."""
    if kind == "gamer":
        row = torch.cat([ids, decoder_ids[1:]])[None]
        states = model.model(input_ids=row).last_hidden_state[0]
        return states, states[len(ids)], model.lm_head(states[len(ids) :]).log_softmax(-1)
    encoded = model.encoder(input_ids=ids[None]).last_hidden_state
    states = model.decoder(input_ids=decoder_ids[None], encoder_hidden_states=encoded).last_hidden_state[0]
    return encoded[0], states[1], model.lm_head(states[1:] * model.model_dim**-0.5).log_softmax(-1)


@torch.no_grad()
def mixture(kind: str, model, tokenizer, history, user) -> torch.Tensor:
    """Log-probability of every item after a history and `buy`: gate, attention and codes written out."""
    space, head = model.config.token_space, model.copying
    ids = tokenizer.encode_history([history], user_id=user)["input_ids"][0]
    items = [int(item.split("-")[1]) for _, item in history]
    offset = int(ids[0] == 1 or ids[0] >= space.user_offset)
    width = 1 + space.num_code_levels
    scores = []
    for item, codes in enumerate(model.item_codes.tolist()):
        tokens = [code + start for code, start in zip(codes, space.code_offsets, strict=True)]
        states, asked, generated = states_of(kind, model, ids, torch.tensor([1, BUY[kind], *tokens]))
        gate = torch.sigmoid(head.gate(asked)).item()
        query = head.query(asked)
        weights = []
        for place in range(len(history)):
            key = head.key(states[offset + place * width + space.num_code_levels])
            ago = len(history) - place
            score = query @ key / 4 + head.distance_bias[ago]
            if head.happened_bias is not None:
                happened = {
                    behavior for (behavior, _), item in zip(history, items, strict=True) if item == items[place]
                }
                labels = [model.config.behaviors.index(behavior) for behavior in happened]
                score = score + head.happened_bias(asked)[labels].sum()
            weights.append(math.exp(score))
        copied = sum(w for w, i in zip(weights, items, strict=True) if i == item) / sum(weights)
        written = math.exp(sum(generated[level, token] for level, token in enumerate(tokens)))
        scores.append(math.log((1 - gate) * written + gate * copied))
    return torch.tensor(scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[3, 4, 5], [30], [6, 7]])
@pytest.mark.parametrize("informed", [True, False])
def test_scores_are_those_of_the_mixture_item_by_item(kind, sizes, informed):
    model, tokenizer = copying_model(kind, code_sizes=sizes, copy_item_behaviors=informed)
    history = [*HISTORIES[0], ("click", "item-03"), ("buy", "item-05"), ("cart", "item-03")]
    encoded = encode(model, tokenizer, [history])
    output = model.generate(
        **encoded, behavior="buy", num_beams=30, num_return_sequences=30, return_dict_in_generate=True
    )
    expected = mixture(kind, model, tokenizer, history, [1] if kind == "mbgen" else None)
    given_behavior = output.sequences_scores - expected[output.item_indices[0]]
    torch.testing.assert_close(given_behavior, torch.zeros(30), atol=2e-5, rtol=0)
    assert sorted(output.item_indices[0].tolist()) == list(range(30))
    # The mixture must matter: items of the history are among the first.
    assert set(output.item_indices[0, :3].tolist()) & {3, 5, 7, 11}


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_sum_to_one_and_give_the_loss(kind):
    model, tokenizer = copying_model(kind)
    inputs, labels = training_batch(kind, model, tokenizer)
    logits = model(**inputs).logits
    output = model(**inputs, labels=labels)
    present = inputs["attention_mask"].bool() if kind == "gamer" else torch.ones_like(labels, dtype=torch.bool)
    torch.testing.assert_close(logits.exp().sum(-1)[present], torch.ones(int(present.sum())))
    if kind == "gamer":
        labels = labels.masked_fill(
            model._has_no_predecessor(inputs["input_ids"], inputs["attention_mask"], None), -100
        )
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels >= 0
    expected = -logits.gather(2, labels.clamp(min=0)[..., None])[..., 0][counted].mean()
    torch.testing.assert_close(output.loss, expected)
    model.train()
    training = model(**inputs, labels=labels if kind == "mbgen" else training_batch(kind, model, tokenizer)[1]).loss
    torch.testing.assert_close(training, expected)
    training.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None)
    assert all(gradients[f"copying.{name}"].abs().max() > 1e-5 for name in ("query.weight", "gate.weight"))


def training_batch(kind: str, model, tokenizer) -> tuple[dict, torch.Tensor]:
    """Histories with a repeated item, a new one and padding, and labels."""
    histories = [[*HISTORIES[0], ("buy", "item-11")], HISTORIES[1], [*HISTORIES[2], ("buy", "item-00")]]
    if kind == "gamer":
        inputs = dict(encode(model, tokenizer, histories))
        return inputs, inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    inputs = dict(encode(model, tokenizer))
    codes = torch.from_numpy(model.config.token_space.item_token_ids(model.item_codes[[11, 2, 0]].numpy()))
    labels = torch.cat([torch.full((3, 1), BUY["mbgen"]), codes, torch.full((3, 1), 2)], dim=1)
    inputs["decoder_input_ids"] = model._shift_right(labels)
    return inputs, labels


def test_an_interaction_copies_only_what_came_before_it():
    model, tokenizer = copying_model("gamer")
    ids = encode(model, tokenizer, HISTORIES[:1])["input_ids"]
    logits = model(input_ids=ids).logits
    width = 1 + model.config.token_space.num_code_levels
    for interaction in range(4):
        changed = ids.clone()
        start = 1 + interaction * width
        changed[0, start + 1] = model.config.token_space.code_offsets[0] + (
            (ids[0, start + 1] - model.config.token_space.code_offsets[0] + 1) % 3
        )
        other = model(input_ids=changed).logits
        torch.testing.assert_close(other[:, : start + 1], logits[:, : start + 1], atol=0, rtol=0)
        if interaction < 3:
            assert (other[:, start + width :] - logits[:, start + width :]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_side_batch_and_cache_make_no_difference(kind, use_cache):
    model, tokenizer = copying_model(kind)
    options = {"num_beams": 30, "num_return_sequences": 30, "return_dict_in_generate": True, "use_cache": use_cache}
    alone = []
    for row, history in enumerate(HISTORIES):
        users = [[1], [2], [3]][row] if kind == "mbgen" else None
        alone.append(model.generate(**tokenizer.encode_history([history], user_id=users), behavior="buy", **options))
    for side in ("left", "right"):
        tokenizer.padding_side = side
        output = model.generate(**encode(model, tokenizer), behavior="buy", **options)
        assert output.item_indices.tolist() == [single.item_indices[0].tolist() for single in alone]
        expected = torch.cat([single.sequences_scores for single in alone])
        torch.testing.assert_close(output.sequences_scores, expected, atol=1e-5, rtol=1e-5)


def test_step_by_step_with_a_cache_equals_the_whole():
    model, tokenizer = copying_model("gamer")
    encoded = encode(model, tokenizer)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    whole, cache, steps = model(input_ids=ids, attention_mask=mask).logits, None, []
    for column in range(ids.shape[1]):
        output = model(
            input_ids=ids[:, column : column + 1],
            attention_mask=mask[:, : column + 1],
            all_input_ids=ids[:, : column + 1],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        steps.append(output.logits)
    present = mask.bool()
    torch.testing.assert_close(torch.cat(steps, dim=1)[present], whole[present], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("session_wise", [False, True])
def test_packed_rows_give_the_loss_of_single_ones(session_wise):
    model, tokenizer = copying_model("gamer", session_wise_attention=session_wise)
    rows = [tokenizer.encode_history([history])["input_ids"] for history in HISTORIES]
    sessions = [torch.tensor([[-1] + [n // 2 for n in range(len(h)) for _ in range(4)]]) for h in HISTORIES]
    session_ids = {"session_ids": torch.cat(sessions, dim=1)} if session_wise else {}
    packed = torch.cat(rows, dim=1)
    numbers = torch.cat([torch.full_like(row, number) for number, row in enumerate(rows)], dim=1)
    output = model(input_ids=packed, labels=packed, sequence_ids=numbers, **session_ids)
    losses, counts = [], []
    for row, session in zip(rows, sessions, strict=True):
        extra = {"session_ids": session} if session_wise else {}
        losses.append(model(input_ids=row, labels=row, **extra).loss)
        counts.append(row.shape[1] - 1)
    expected = (torch.stack(losses) * torch.tensor(counts)).sum() / sum(counts)
    torch.testing.assert_close(output.loss, expected)
    singles = [
        model(input_ids=row, **({"session_ids": session} if session_wise else {})).logits
        for row, session in zip(rows, sessions, strict=True)
    ]
    torch.testing.assert_close(output.logits, torch.cat(singles, dim=1), atol=1e-5, rtol=1e-5)


def test_session_wise_attention_copies_from_earlier_sessions_only():
    model, tokenizer = copying_model("gamer", session_wise_attention=True)
    ids = tokenizer.encode_history([[("click", "item-03"), ("buy", "item-07")]])["input_ids"]
    split = model(input_ids=ids, session_ids=torch.tensor([[-1, 0, 0, 0, 0, 1, 1, 1, 1]])).logits
    joint = model(input_ids=ids, session_ids=torch.tensor([[-1, 0, 0, 0, 0, 0, 0, 0, 0]])).logits
    code = ids[0, 2]
    generated = model.lm_head(
        model.model(input_ids=ids, session_ids=torch.tensor([[-1] + [0] * 8])).last_hidden_state
    ).log_softmax(-1)
    torch.testing.assert_close(joint[0, 5, code], generated[0, 5, code])
    assert split[0, 5, code] > joint[0, 5, code] + 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_keep_the_head(tmp_path, kind):
    model, tokenizer = copying_model(kind)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    inputs, labels = training_batch(kind, model, tokenizer)
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)
    assert (tmp_path / "history_copying.py").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_heads_start_with_scores_of_unit_variance(kind):
    make = tiny_model if kind == "mbgen" else tiny_gamer
    head = make(copy_from_history=True).copying
    assert 0.15 < head.query.weight.std() < 0.2 and head.query.bias.abs().max() == 0
    assert head.distance_bias.abs().max() == 0


def test_the_first_interaction_has_nothing_to_copy():
    model, tokenizer = copying_model("gamer")
    ids = tokenizer.encode_history([[("click", "item-03")]])["input_ids"]
    generated = model.lm_head(model.model(input_ids=ids).last_hidden_state).log_softmax(-1)
    torch.testing.assert_close(model(input_ids=ids).logits, generated)


def test_interactions_are_found_on_either_side_of_padding():
    model, _ = copying_model("gamer")
    row = [4, 8, 11, 15]
    ids = torch.tensor([[0, 0, 1, *row, *row[:2], 0], [1, *row, *row, 0]])
    found = Interactions.of(ids, model.config.token_space)
    assert found.whole.tolist() == [[True, False], [True, True]]
    assert found.codes[0, 0].tolist() == row[1:] and (found.codes[0, 1] == -1).all()
    assert found.last[1].tolist() == [4, 8]


def test_what_happened_with_an_item_is_what_the_query_sees_of_it():
    model, _ = copying_model("gamer")
    one, two = [8, 11, 15], [9, 11, 15]
    ids = torch.tensor([[1, 4, *one, 5, *two, 7, *one, 4, *two]])  # click, favorite, buy, click
    history = Interactions.of(ids, model.config.token_space)
    labels = history.behaviors[0].tolist()
    visible = torch.tensor([[[True, False, False, False], [True, True, True, False], [True] * 4]])
    found = torch.stack(list(happened_with_items(history, visible, len(model.config.behaviors))), dim=-1)
    for query, seen in enumerate(visible[0].tolist()):
        for place, item in enumerate([one, two, one, two]):
            there = {labels[j] for j in range(4) if seen[j] and [one, two, one, two][j] == item}
            assert set(found[0, query, place].nonzero().flatten().tolist()) == there


def test_weighing_by_behaviors_needs_a_head():
    with pytest.raises(Exception, match="`copy_item_behaviors`: expected `copy_from_history` beside it"):
        tiny_gamer(copy_item_behaviors=True)


def test_distances_share_buckets_only_when_far():
    buckets = distance_bucket(torch.arange(1, 300))
    assert buckets[:15].tolist() == list(range(1, 16))
    assert (buckets.diff() >= 0).all() and buckets.max() == 31 and buckets[-1] == 31


def test_masked_logsumexp_has_no_gradient_where_nothing_is_reachable():
    values = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]], requires_grad=True)
    total = masked_logsumexp(values)
    assert total.tolist() == [0.0, -math.inf]
    total[0].backward()
    assert values.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision_stays_double(kind):
    model, tokenizer = copying_model(kind)
    inputs, labels = training_batch(kind, model.double(), tokenizer)
    output = model(**inputs, labels=labels)
    assert output.logits.dtype == output.loss.dtype == torch.float64
