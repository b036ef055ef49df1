import pytest
import torch
from model_fixtures import HISTORIES, random_codes, tiny_model, tokenizer_of
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList

from mbgen_hf.models.logits_processors import BehaviorConstraint, CatalogConstraint


@torch.no_grad()
def exhaustive(model, encoded, behavior: int, normalize: bool = False) -> torch.Tensor:
    """Log-probability of every item given history and behavior, `(batch_size, num_items)`, by brute force."""
    space, codes = model.config.token_space, model.item_codes.long()
    tokens = codes + torch.tensor(space.code_offsets)
    scores = []
    for row in range(len(encoded["input_ids"])):
        ids = encoded["input_ids"][row : row + 1].expand(len(codes), -1)
        mask = encoded["attention_mask"][row : row + 1].expand(len(codes), -1)
        start = torch.tensor([[1, behavior]]).expand(len(codes), -1)
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.cat([start, tokens], dim=1)).logits
        logits = logits[:, 1:-1]
        if normalize:
            # At each step only what continues some item with the same earlier codes counts.
            for level in range(codes.shape[1]):
                same = (codes[:, None, :level] == codes[None, :, :level]).all(-1)
                allowed = torch.zeros(len(codes), logits.shape[-1], dtype=torch.bool)
                for item in range(len(codes)):
                    allowed[item, tokens[same[item], level]] = True
                logits[:, level] = logits[:, level].masked_fill(~allowed, -torch.inf)
        steps = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        scores.append(steps.sum(1))
    return torch.stack(scores)


def ranking(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scores.sort(dim=1, descending=True)


@pytest.mark.parametrize("sizes", [[30], [6, 7], [3, 4, 5], [2, 3, 2, 4]])
@pytest.mark.parametrize("normalize_over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_wide_beam_equals_exhaustive_ranking(sizes, normalize_over, use_cache):
    model = tiny_model(code_sizes=sizes)
    encoded = tokenizer_of(model).encode_history(HISTORIES, user_id=[1, 2, 3])
    output = model.generate(
        **encoded,
        behavior="cart",
        num_beams=30,
        num_return_sequences=30,
        normalize_over=normalize_over,
        use_cache=use_cache,
        return_dict_in_generate=True,
    )
    expected, items = ranking(exhaustive(model, encoded, 5, normalize_over == "catalog"))
    assert output.item_indices.tolist() == items.tolist()
    torch.testing.assert_close(output.sequences_scores.view(3, 30), expected, atol=1e-5, rtol=2e-6)
    assert (output.behavior_indices == 1).all()
    if normalize_over == "catalog":
        torch.testing.assert_close(output.sequences_scores.view(3, 30).exp().sum(1), torch.ones(3))


def test_padding_side_and_batch_make_no_difference(model, tokenizer):
    options = {"behavior": "buy", "num_beams": 8, "num_return_sequences": 5, "return_dict_in_generate": True}
    right = model.generate(**tokenizer.encode_history(HISTORIES), **options)
    left = model.generate(**tokenizer.encode_history(HISTORIES, padding_side="left"), **options)
    assert torch.equal(right.sequences, left.sequences)
    torch.testing.assert_close(right.sequences_scores, left.sequences_scores, atol=1e-4, rtol=1e-5)
    single = model.generate(**tokenizer.encode_history(HISTORIES[1]), **options)
    assert torch.equal(single.sequences, right.sequences[5:10])


def test_the_three_tasks_by_prompt(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES)
    by_name = model.generate(**encoded, prompt=["<bos>", "buy"], num_beams=4)
    assert torch.equal(by_name, model.generate(**encoded, prompt=[1, 6], num_beams=4))
    assert torch.equal(by_name, model.generate(**encoded, prompt=["<bos>", "<buy>"], num_beams=4))
    assert torch.equal(by_name, model.generate(**encoded, prompt=torch.tensor([6]), num_beams=4))
    assert torch.equal(by_name, model.generate(**encoded, behavior="buy", num_beams=4))
    assert torch.equal(by_name, model.generate(**encoded, decoder_input_ids=torch.tensor([[1, 6]] * 3), num_beams=4))
    assert by_name[:, :2].tolist() == [[1, 6]] * 3
    own = model.generate(**encoded, behavior=["click", "cart", "buy"], num_beams=4)
    assert own[:, 1].tolist() == [4, 5, 6] and torch.equal(own[2], by_name[2])


def test_without_a_behavior_in_the_prompt_behavior_and_item_are_ranked_jointly(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES)
    output = model.generate(
        **encoded, prompt=["<bos>"], num_beams=90, num_return_sequences=90, return_dict_in_generate=True
    )
    with torch.no_grad():
        first = model(**encoded, decoder_input_ids=torch.ones(3, 1, dtype=torch.long)).logits[:, 0].log_softmax(-1)
    joint = torch.stack([exhaustive(model, encoded, 4 + b) + first[:, 4 + b, None] for b in range(3)], dim=1)
    expected, order = ranking(joint.view(3, -1))
    assert output.item_indices.tolist() == (order % 30).tolist()
    assert output.behavior_indices.tolist() == (order // 30).tolist()
    torch.testing.assert_close(output.sequences_scores.view(3, 90), expected, atol=1e-5, rtol=2e-6)


def test_a_prompt_may_hold_the_first_codes_of_an_item(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES[:1])
    code = int(model.item_codes[0, 0])
    found = model.generate(
        **encoded, prompt=["buy", f"<a_{code}>"], num_beams=30, num_return_sequences=30, return_dict_in_generate=True
    ).item_indices[0]
    below = (model.item_codes[:, 0] == code).nonzero().flatten().tolist()
    assert sorted(found[found >= 0].tolist()) == below


def test_a_prompt_that_no_item_begins_with_is_refused():
    model = tiny_model()
    model.set_catalog(torch.tensor([[0, 1, 2], [0, 3, 0], [2, 1, 1]]))
    for codes in (["<a_1>"], ["<a_0>", "<b_2>"]):
        with pytest.raises(ValueError, match="`prompt`: expected the first codes of an item, found"):
            model.generate(prompt=["buy", *codes], do_sample=True)
    found = model.generate(prompt=["buy", "<a_0>"], num_beams=2, num_return_sequences=2, return_dict_in_generate=True)
    assert sorted(found.item_indices[0].tolist()) == [0, 1]


def test_cold_start_needs_no_history(model, tokenizer):
    cold = model.generate(behavior="buy", num_beams=6, num_return_sequences=4)
    assert torch.equal(cold, model.generate(**tokenizer.encode_history([]), behavior="buy", num_beams=6,
                                            num_return_sequences=4))  # fmt: skip
    assert model.generate(behavior=["buy", "click"], num_beams=2).shape == (2, 5)
    assert len(set(tokenizer.decode_items(cold))) == 4


def test_fewer_items_than_asked_for_are_marked_and_never_repeated(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES)
    output = model.generate(
        **encoded, behavior="buy", num_beams=50, num_return_sequences=50, return_dict_in_generate=True
    )
    for row in output.item_indices.tolist():
        assert sorted(row[:30]) == list(range(30)) and row[30:] == [-1] * 20
    assert (output.sequences_scores.view(3, 50)[:, 30:] == -torch.inf).all()
    assert (output.sequences.view(3, 50, -1)[:, 30:, 1:] == 0).all()
    assert tokenizer.decode_items(output.sequences)[30:50] == [None] * 20


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"do_sample": True, "num_beams": 4}, {"num_beams": 3}])
def test_every_decoding_mode_stays_in_the_catalog(model, tokenizer, options):
    torch.manual_seed(0)
    output = model.generate(**tokenizer.encode_history(HISTORIES * 20), **options, return_dict_in_generate=True)
    assert (output.item_indices >= 0).all() and (output.behavior_indices >= 0).all()


def test_processors_work_under_stock_generate(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES)
    space = model.config.token_space
    processors = LogitsProcessorList(
        [CatalogConstraint(model.item_trie, space, start=1), BehaviorConstraint(["cart"], space, start=1)]
    )
    ids = GenerationMixin.generate(
        model,
        **encoded,
        logits_processor=processors,
        max_new_tokens=4,
        num_beams=6,
        eos_token_id=None,
        length_penalty=0.0,
    )
    assert torch.equal(ids, model.generate(**encoded, behavior="cart", num_beams=6))


def test_an_extra_processor_narrows_the_constraint(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES)
    only = BehaviorConstraint(["click", "cart"], model.config.token_space, start=1)
    output = model.generate(
        **encoded, logits_processor=LogitsProcessorList([only]), num_beams=70, num_return_sequences=70,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert set(output.behavior_indices.flatten().tolist()) == {0, 1, -1}
    with pytest.raises(ValueError, match="`behaviors`: expected at least one behavior"):
        BehaviorConstraint([], model.config.token_space, start=1)


def test_a_generation_config_works_as_keywords_do(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES)
    config = GenerationConfig(num_beams=6, num_return_sequences=3, return_dict_in_generate=True)
    with_config = model.generate(**encoded, behavior="buy", generation_config=config)
    assert torch.equal(
        with_config.sequences, model.generate(**encoded, behavior="buy", num_beams=6, num_return_sequences=3)
    )
    assert with_config.item_indices.shape == (3, 3) and config.max_new_tokens is None


def test_scores_are_plain_sums_with_a_generation_config_too(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES)
    options = {"behavior": "buy", "num_beams": 6, "return_dict_in_generate": True}
    plain = model.generate(**encoded, **options)
    configured = model.generate(**encoded, **options, generation_config=GenerationConfig())
    assert torch.equal(plain.sequences_scores, configured.sequences_scores)


def test_a_model_made_in_inference_mode_generates(tokenizer):
    with torch.inference_mode():
        frozen = tiny_model()
        assert (
            len(set(tokenizer.decode_items(frozen.generate(behavior="buy", num_beams=4, num_return_sequences=4)))) == 4
        )


def test_the_catalog_can_be_replaced_and_follows_the_buffer(tokenizer):
    model = tiny_model()
    before = model.generate(behavior="buy", num_beams=3)
    new = random_codes([3, 4, 5], num_items=4, seed=9)
    model.set_catalog(new)
    assert model.config.num_items == 4
    found = model.generate(behavior="buy", num_beams=10, num_return_sequences=10, return_dict_in_generate=True)
    assert sorted(found.item_indices[0].tolist()) == [-1] * 6 + [0, 1, 2, 3]
    model.item_codes.copy_(new.flip(0))
    flipped = model.generate(behavior="buy", num_beams=4, num_return_sequences=4, return_dict_in_generate=True)
    assert flipped.item_indices[0].tolist() == [3 - item for item in found.item_indices[0, :4].tolist()]
    assert before.shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ["<bos>", "rent"]}, "`prompt`: expected token ids, tokens or one of"),
        ({"behavior": "rent"}, "`behavior`: expected one of"),
        ({"prompt": [1, 6], "behavior": "buy"}, "found both"),
        ({"prompt": [[1, 6], [1, 6]]}, "`prompt`: expected 1 or 3 prompts, found 2"),
        ({"prompt": [[1, 6], [1], [1]]}, "expected prompts of one length"),
        ({"prompt": ["<a_0>"]}, "expected BOS, a behavior, then codes in order"),
        ({"prompt": ["buy", "<b_0>"]}, "expected BOS, a behavior, then codes in order"),
        ({"prompt": ["buy", "<a_0>", "<b_0>", "<c_0>"]}, "at most a behavior and 2 codes"),
        ({"behavior": 2}, "`behavior`: expected a name or a list of names"),
        ({"prompt": [1, 99]}, "expected ids from 0 to"),
        ({"behavior": "buy", "max_new_tokens": 9}, "`max_new_tokens`: expected to be left out"),
        ({"behavior": "buy", "max_length": 4}, "`max_length`: expected to be left out"),
        ({"behavior": "buy", "eos_token_id": 2}, "`eos_token_id`: expected to be left out"),
        ({"normalize_over": "items"}, "`normalize_over`: expected 'vocabulary' or 'catalog'"),
        ({"behavior": "buy", "decoder_input_ids": torch.tensor([[1]])}, "`decoder_input_ids`: expected either"),
    ],
)
def test_bad_requests_are_refused(model, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**tokenizer.encode_history(HISTORIES), **options)
