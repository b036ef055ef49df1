"""A compiled search is the same search, as one graph."""

import copy

import pytest
import torch
from model_fixtures import HISTORIES, gamer_tokenizer, tiny_gamer, tiny_model, tokenizer_of
from transformers import CompileConfig, GenerationConfig

from mbgen_hf.models.compiled_search import MOST_SHAPES, CompiledSearch, search


class CountingBackend:
    """Runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return graph.forward

    def __deepcopy__(self, memo):
        return self  # Configurations copy what is in them.

    def __repr__(self):
        return "counting"


def make(kind: str, **changes):
    if kind == "mbgen":
        model = tiny_model(**changes)
        return model.eval(), tokenizer_of(model)
    model = tiny_gamer(**changes)
    return model.eval(), gamer_tokenizer(model)


def check(model, tokenizer, config: CompileConfig, **options):
    """That the compiled answer is the plain one; returns the encoded request."""
    encoded = tokenizer.encode_history([*HISTORIES, []])
    options = {"num_beams": 4, "num_return_sequences": 4, "return_dict_in_generate": True, **options}
    torch._dynamo.reset()
    plain = model.generate(**encoded, **options)
    compiled = model.generate(**encoded, **options, compile_config=config)
    assert plain.item_indices.tolist() == compiled.item_indices.tolist()
    torch.testing.assert_close(plain.sequences_scores, compiled.sequences_scores, atol=1e-5, rtol=2e-6)
    return encoded, options


def test_a_request_is_one_graph_and_the_same_shape_again_is_the_same_graph():
    model, tokenizer = make("mbgen")
    backend = CountingBackend()
    config = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    encoded, options = check(model, tokenizer, config, behavior="buy")
    assert backend.graphs == 1
    again = model.generate(**encoded, **options, compile_config=config)
    assert backend.graphs == 1
    assert again.item_indices.tolist() == model.generate(**encoded, **options).item_indices.tolist()


def test_a_configuration_that_disables_it_wins():
    model, tokenizer = make("mbgen")
    backend = CountingBackend()
    config = GenerationConfig(num_beams=3, compile_config=CompileConfig(backend=backend, mode=None))
    config.disable_compile = True
    model.generate(**tokenizer.encode_history(HISTORIES), generation_config=config)
    assert backend.graphs == 0


def test_exact_search_refuses_it():
    model, tokenizer = make("gamer")
    with pytest.raises(ValueError, match="`compile_config`: expected none with `exact`"):
        model.generate(**tokenizer.encode_history(HISTORIES), exact=True, compile_config=CompileConfig())


def test_what_was_compiled_is_not_copied_with_its_model():
    compiled = CompiledSearch()
    assert compiled.get(None) is search
    first = compiled.get(CompileConfig(mode=None))
    assert compiled.get({"fullgraph": False, "mode": None}) is first
    other = copy.deepcopy(compiled)
    assert isinstance(other, CompiledSearch)
    assert other.get(CompileConfig(mode=None)) is not first


def test_there_is_room_for_many_shapes(monkeypatch):
    limits = []
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda *args: limits.append(recompile_limit()))
    before = recompile_limit()
    CompiledSearch().get(CompileConfig())()
    assert limits == [MOST_SHAPES] and recompile_limit() == before < MOST_SHAPES


def recompile_limit() -> int:
    return torch._dynamo.config.recompile_limit


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
@pytest.mark.parametrize(
    "options", [{"behavior": "buy"}, {}, {"behavior_sampling": True}, {"behavior": "buy", "normalize_over": "catalog"}]
)
@pytest.mark.parametrize("copying", [False, True])
def test_every_mode_is_one_graph(kind, options, copying):
    model, tokenizer = make(kind, copy_from_history=copying)
    backend = CountingBackend()
    check(model, tokenizer, CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None), **options)
    assert backend.graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_inductor_gives_the_same_for_shapes_that_change(kind):
    model, tokenizer = make(kind)
    config = CompileConfig()  # What one gets who asks for no more than compilation.
    check(model, tokenizer, config, behavior="buy")
    longer = tokenizer.encode_history([[*HISTORIES[0], *HISTORIES[0]], *HISTORIES])
    options = {"behavior": "buy", "num_beams": 4, "num_return_sequences": 2, "return_dict_in_generate": True}
    plain, compiled = (model.generate(**longer, **options, **more) for more in ({}, {"compile_config": config}))
    assert plain.item_indices.tolist() == compiled.item_indices.tolist()
    torch.testing.assert_close(plain.sequences_scores, compiled.sequences_scores, atol=1e-5, rtol=2e-6)
