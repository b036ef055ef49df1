"""The whole search of a request as one function, which `torch.compile` turns into one graph.

Reading the histories, every step, the constraint and the choice of beams are tensor operations of fixed number, so
that a compiled search holds no break and waits for nothing: `compile_config` of `generate` asks for it, as for the
stock caches of fixed size. Its mode "reduce-overhead" makes one CUDA graph of it on GPUs.
"""

import functools
from collections.abc import Callable

import torch
from transformers import CompileConfig, PreTrainedModel

from .behavior_sampling import behavior_aware_search
from .request_catalog import RequestCatalog
from .shared_history_search import Beams, Expansion, beam_search


def read_histories(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    prompt_ids: torch.LongTensor,
    catalog: RequestCatalog,
    over_catalog: bool,
) -> Expansion:
    """What every search goes on from; arguments as in `search`."""
    decoder = model.start_decoding(prompt_len=prompt_ids.shape[1], **inputs)
    return Expansion(model, decoder, catalog, model.config.token_space, over_catalog)


def search(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    prompt_ids: torch.LongTensor,
    catalog: RequestCatalog,
    over_catalog: bool,
    num_beams: int,
    by_behavior: int | None,
) -> Beams:
    """Read the histories once, then search.

    Args:
        model: MBGen or GAMER.
        inputs: what `model.start_decoding` takes.
        prompt_ids: `(num_users, prompt_len)` what is given, from the behavior token on.
        catalog: the items that may be generated.
        over_catalog: whether scores are normalised over what may follow.
        num_beams: beams per user.
        by_behavior: results of behavior-aware sampling; `None` for plain beam search.
    """
    expansion = read_histories(model, inputs, prompt_ids, catalog, over_catalog)
    if by_behavior is not None:
        return behavior_aware_search(expansion, prompt_ids, num_beams, by_behavior)
    return beam_search(expansion, prompt_ids, num_beams)


# Graphs of one function; the library's own limit is 8, which a morning of different histories exceeds.
MOST_SHAPES = 64


def _with_many_shapes(compiled: Callable[..., Beams]) -> Callable[..., Beams]:
    @functools.wraps(search)
    def run(*args) -> Beams:
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return compiled(*args)

    return run


class CompiledSearch:
    """`search`, compiled as asked the last time.

    A new shape of a request (users, history length, beams, sets of another size) is a new graph, as everywhere in
    `torch.compile`, up to `MOST_SHAPES` of them: batches padded to a few lengths keep them few.
    """

    def __init__(self):
        self._key, self._compiled = None, None

    def __reduce__(self):
        # What was compiled can neither be copied nor sent to another process.
        return CompiledSearch, ()

    def get(self, compile_config: CompileConfig | dict | None) -> Callable[..., Beams]:
        """The search as it is, or compiled."""
        if compile_config is None:
            return search
        if isinstance(compile_config, dict):  # As a generation config read from a file has it.
            compile_config = CompileConfig(**compile_config)
        options = compile_config.to_dict()
        if self._key != repr(options):
            self._key, self._compiled = repr(options), _with_many_shapes(torch.compile(search, **options))
        return self._compiled


__all__ = ["MOST_SHAPES", "CompiledSearch", "read_histories", "search"]
