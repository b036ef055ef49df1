"""The shared-history search is stock `generate` with the catalog constraint, only faster."""

import pytest
import torch
from model_fixtures import HISTORIES, gamer_tokenizer, random_codes, tiny_gamer, tiny_model, tokenizer_of
from transformers import GenerationConfig, LogitsProcessorList

from mbgen_hf.models.generation_request import beam_request


LONG = [("click", f"item-{i:02d}") if i % 3 else ("cart", f"item-{i:02d}") for i in range(17)]
RAGGED = [*HISTORIES, [], LONG]


def other_weights(model, seed: int, spread: float = 0.4):
    """Fill every weight, norms and behavior embeddings included, so that nothing hides in an initial zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + spread * noise if weight.ndim == 1 else spread * noise)
    model.tie_weights()
    return model


def make(kind: str, seed: int = 0, spread: float | None = None, **changes):
    """A random model of either kind with its tokenizer."""
    if kind == "mbgen":
        model = other_weights(tiny_model(**changes), seed, spread or 0.25)
        return model, tokenizer_of(model)
    model = other_weights(tiny_gamer(**changes), seed, spread or 0.3)
    return model, gamer_tokenizer(model)


def both(model, **options):
    """The answers of the shared-history search and of stock `generate`."""
    options = {"return_dict_in_generate": True, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "_stock_generate", None)
        fast = model.generate(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "supports_shared_history", False)
        patch.setattr(type(model), "start_decoding", None)
        stock = model.generate(**options)
    return fast, stock


def assert_same(fast, stock):
    assert fast.item_indices.tolist() == stock.item_indices.tolist()
    assert torch.equal(fast.sequences, stock.sequences)
    assert torch.equal(fast.behavior_indices, stock.behavior_indices)
    torch.testing.assert_close(fast.sequences_scores, stock.sequences_scores, atol=1e-5, rtol=2e-6)


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
@pytest.mark.parametrize("sizes", [[30], [6, 7], [3, 4, 5], [2, 3, 2, 4]])
@pytest.mark.parametrize(("prompt", "beams"), [([], 4), (["cart"], 4), (["cart"], 35)])
def test_items_and_scores_are_those_of_stock_beam_search(kind, sizes, prompt, beams):
    model, tokenizer = make(kind, seed=len(sizes), code_sizes=sizes)
    encoded = tokenizer.encode_history(RAGGED, padding_side="left" if prompt else "right")
    fast, stock = both(model, **encoded, prompt=["<bos>", *prompt], num_beams=beams, num_return_sequences=beams)
    assert_same(fast, stock)


LAYERS = [
    ("mbgen", {"routed_encoder_layers": [], "routed_decoder_layers": [1], "injection_decoder_layers": [1]}),
    ("mbgen", {"inject_behavior_tokens": True, "routed_decoder_layers": []}),
    ("mbgen", {"num_decoder_layers": 3, "tie_word_embeddings": False, "num_user_tokens": 0}),
    ("gamer", {"cross_level_layers": [0, 2], "routed_layers": [1], "injection_layers": [3]}),
    ("gamer", {"cross_level_layers": [], "routed_layers": [], "injection_layers": []}),
    ("gamer", {"cross_level_layers": [0, 1, 2, 3], "behavior_levels": [0, 0, 0, 0]}),
    ("gamer", {"tie_word_embeddings": False, "num_key_value_heads": 4, "attention_bias": True}),
    ("gamer", {"attention": "eager", "add_bos_token": False}),
    ("mbgen", {"copy_from_history": True, "copy_dim": 8}),
    ("gamer", {"copy_from_history": True, "copy_dim": 8}),
]


@pytest.mark.parametrize(("kind", "changes"), LAYERS)
@pytest.mark.parametrize("normalize_over", ["vocabulary", "catalog"])
def test_every_layer_variant_decodes_as_stock(kind, changes, normalize_over):
    model, tokenizer = make(kind, seed=5, spread=0.2, **changes)
    encoded = tokenizer.encode_history([history for history in RAGGED if history])
    for prompt in ([], ["buy"]):
        assert_same(
            *both(
                model,
                **encoded,
                prompt=prompt,
                num_beams=7,
                num_return_sequences=5,
                normalize_over=normalize_over,
            )
        )


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_prompts_with_codes_behaviors_per_row_and_cold_starts_decode_as_stock(kind):
    model, tokenizer = make(kind, seed=7)
    encoded = tokenizer.encode_history(RAGGED)
    first = model.item_codes[:, 0].unique().tolist()
    options = {"num_beams": 6, "num_return_sequences": 6}
    assert_same(*both(model, **encoded, prompt=["buy", f"<a_{first[0]}>"], **options))
    code = model.item_codes[3].tolist()
    assert_same(*both(model, **encoded, prompt=["buy", f"<a_{code[0]}>", f"<b_{code[1]}>"], **options))
    assert_same(*both(model, **encoded, behavior=["click", "buy", "cart", "buy", "click"], **options))
    assert_same(*both(model, behavior="buy", **options))
    assert_same(*both(model, behavior=["buy", "click"], **options))
    assert_same(*both(model, **options))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_session_wise_attention_decodes_as_stock(padding_side):
    model, tokenizer = make("gamer", seed=2, session_wise_attention=True)
    histories = [
        {"item_ids": [item for _, item in row], "behaviors": [b for b, _ in row],
         "session_ids": [i // 3 for i in range(len(row))]}
        for row in RAGGED
    ]  # fmt: skip
    encoded = tokenizer.encode_history(histories, with_sessions=True, padding_side=padding_side)
    for prompt in ([], ["buy"], ["buy", f"<a_{int(model.item_codes[0, 0])}>"]):
        assert_same(*both(model, **encoded, prompt=prompt, num_beams=6, num_return_sequences=6))
    assert_same(*both(model, behavior="buy", num_beams=6, num_return_sequences=6))


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_a_row_gets_the_same_answer_alone_and_in_a_batch(kind):
    model, tokenizer = make(kind, seed=3)
    options = {"behavior": "buy", "num_beams": 8, "num_return_sequences": 8, "return_dict_in_generate": True}
    together = model.generate(**tokenizer.encode_history(RAGGED), **options)
    for row, history in enumerate(RAGGED):
        alone = model.generate(**tokenizer.encode_history(history), **options)
        assert torch.equal(alone.item_indices[0], together.item_indices[row])
        torch.testing.assert_close(
            alone.sequences_scores, together.sequences_scores.view(-1, 8)[row], atol=1e-5, rtol=2e-6
        )


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_length_penalty_and_configurations_work_as_in_stock(kind):
    model, tokenizer = make(kind)
    encoded = tokenizer.encode_history(RAGGED)
    assert_same(*both(model, **encoded, behavior="buy", num_beams=4, length_penalty=1.0))
    config = GenerationConfig(num_beams=5, num_return_sequences=3, length_penalty=0.5, early_stopping=True)
    assert_same(*both(model, **encoded, behavior="buy", generation_config=config))
    fast, stock = both(model, **encoded, behavior="buy", return_dict_in_generate=False)
    assert torch.equal(fast, stock), "greedy search"


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"use_cache": False},
        {"output_scores": True},
        {"output_logits": True},
        {"repetition_penalty": 1.5},
        {"logits_processor": LogitsProcessorList([lambda ids, scores: scores])},
        {"stopping_criteria": [lambda ids, scores, **_: torch.zeros(len(ids), dtype=torch.bool)]},
        {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(19))},
        {"generation_config": GenerationConfig(no_repeat_ngram_size=9, num_beams=2)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_search_does_not_know_goes_to_stock_generate(kind, options, monkeypatch):
    model, tokenizer = make(kind)
    monkeypatch.setattr(type(model), "start_decoding", None)
    output = model.generate(
        **tokenizer.encode_history(HISTORIES), behavior="buy", **{"num_beams": 3, **options},
        return_dict_in_generate=True,
    )  # fmt: skip
    assert (output.item_indices >= 0).all()


def test_only_plain_searches_are_beam_requests():
    default = GenerationConfig()
    assert beam_request(None, default, {"num_beams": 4, "num_return_sequences": 5}) is None
    assert beam_request(None, default, {"num_beams": 4, "encoder_outputs": object()}) is None
    assert beam_request(None, GenerationConfig(do_sample=True), {}) is None
    request = beam_request(None, GenerationConfig(num_beams=7), {"do_sample": None, "repetition_penalty": 1.0})
    assert (request.num_beams, request.num_return_sequences, request.length_penalty) == (7, 1, 0.0)


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_a_head_of_its_own_is_asked_for_every_step(kind, monkeypatch):
    model, tokenizer = make(kind)
    original, asked = type(model).next_log_probs, []

    def mixed(self, hidden_states, slot, context, over_vocabulary=True):
        asked.append((slot, tuple(context.ids.shape)))
        assert context.history.hidden_states.shape[:2] == context.history.ids.shape == context.history.mask.shape
        return original(self, hidden_states, slot, context, over_vocabulary) * 0.5

    monkeypatch.setattr(type(model), "next_log_probs", mixed)
    model.generate(**tokenizer.encode_history(RAGGED), num_beams=6)
    behaviors, first = len(model.config.behaviors), model.config.code_sizes[0]
    widths = [min(6, behaviors), min(6, behaviors * first), 6]
    assert asked == [
        (1, (5, 1, 0)),
        *((slot, (5, width, slot - 1)) for slot, width in zip((2, 3, 4), widths, strict=True)),
    ]


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_every_history_is_read_once_and_never_per_beam(kind):
    model, tokenizer = make(kind)
    encoded = tokenizer.encode_history(RAGGED)
    rows = []
    reader = model.encoder if kind == "mbgen" else model.model
    reader.embed_tokens.register_forward_pre_hook(lambda m, args: rows.append(tuple(args[0].shape)))
    model.generate(**encoded, behavior="buy", num_beams=20)
    # The history, then in GAMER two codes for every beam; MBGen has another embedding module in its decoder.
    length = encoded["input_ids"].shape[1]
    assert rows == ([(5, length)] if kind == "mbgen" else [(5, length + 1), (5, 3), (5, 12)])


def test_in_float64_the_two_agree_far_beyond_float32_rounding():
    for kind in ("mbgen", "gamer"):
        model, tokenizer = make(kind, seed=5)
        fast, stock = both(model.double(), **tokenizer.encode_history(RAGGED), num_beams=7, num_return_sequences=7)
        assert fast.item_indices.tolist() == stock.item_indices.tolist()
        torch.testing.assert_close(fast.sequences_scores, stock.sequences_scores, atol=3e-6, rtol=0)


def test_beams_beyond_the_catalog_are_blank():
    model, tokenizer = make("gamer")
    model.set_catalog(random_codes([3, 4, 5], num_items=4))
    fast, stock = both(model, behavior="buy", num_beams=9, num_return_sequences=9)
    assert_same(fast, stock)
    assert (fast.item_indices[0, 4:] == -1).all() and (fast.sequences_scores[4:] == -torch.inf).all()
