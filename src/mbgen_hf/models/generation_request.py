"""What a `generate` call asks for: lengths, and whether the shared-history search can answer it."""

import copy
from dataclasses import dataclass

from transformers import CompileConfig, GenerationConfig


# Settings that the shared-history search follows, or that mean nothing to a search of fixed length.
_FOLLOWED = {
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "early_stopping",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "compile_config",
    "disable_compile",
    "transformers_version",
}


@dataclass(frozen=True)
class BeamRequest:
    """A beam search that the shared-history search can answer.

    Args:
        num_beams: beams per user; 1 is greedy search.
        num_return_sequences: results per user.
        length_penalty: a score is divided by the number of generated tokens to this power.
        exact: whether the true best items are asked for instead of those a beam search finds.
        node_budget: prefixes that exact search may expand per user; `None` for as many as it takes.
        behavior_sampling: whether every behavior gets results in proportion to its probability.
        compile_config: how the search is compiled; `None` for not at all.
    """

    num_beams: int
    num_return_sequences: int
    length_penalty: float
    exact: bool = False
    node_budget: int | None = None
    behavior_sampling: bool = False
    compile_config: CompileConfig | dict | None = None


def beam_request(
    generation_config: GenerationConfig | None,
    default_config: GenerationConfig,
    settings: dict,
    exact: bool = False,
    node_budget: int | None = None,
    behavior_sampling: bool = False,
) -> BeamRequest | None:
    """The beam search a call asks for, or `None` where stock `generate` has to answer.

    Stock `generate` answers whatever is asked beyond a plain beam or greedy search: sampling, streamers, further
    processors or stopping criteria, outputs of every step, caches of a chosen kind, penalties, model inputs that are
    not known here.

    Args:
        generation_config: the one passed to `generate`.
        default_config: the model's own, which fills in what is left open.
        settings: keyword arguments, generation settings and model inputs alike.
        exact, node_budget, behavior_sampling: as in `BeamRequest`; with either, more results than beams may be asked
            for.
    """
    config = default_config if generation_config is None else generation_config
    known = vars(GenerationConfig())
    if any(name not in known for name, value in settings.items() if value is not None):
        return None
    asked = {}
    for name in known:
        if name.startswith("_"):
            continue
        value = settings.get(name, getattr(config, name))
        asked[name] = getattr(default_config, name) if value is None else value
    stock = GenerationConfig._get_default_generation_params()
    for name, value in asked.items():
        if name not in _FOLLOWED and value is not None and value is not False and value != stock.get(name):
            return None
    for name in ("num_beams", "num_return_sequences"):
        if asked[name] is not None and asked[name] < 1:
            raise ValueError(f"`{name}`: expected at least 1, found {asked[name]}")
    beams, results = asked["num_beams"] or 1, asked["num_return_sequences"] or 1
    if exact or behavior_sampling:
        beams = max(beams, results)
    if asked["use_cache"] is False or not 1 <= results <= beams:
        return None
    penalty = _length_penalty(generation_config, settings)
    compiled = None if asked["disable_compile"] else asked["compile_config"]
    return BeamRequest(beams, results, penalty, exact, node_budget, behavior_sampling, compiled)


def check_modes(
    request: BeamRequest | None, prompt_len: int, exact: bool, node_budget: int | None, behavior_sampling: bool
) -> None:
    """Refuse modes of the search that the rest of a call contradicts; raises `ValueError`."""
    if node_budget is not None and (not exact or node_budget < 1):
        raise ValueError(f"`node_budget`: expected a positive number together with `exact`, found {node_budget}")
    if behavior_sampling and exact:
        raise ValueError("`behavior_sampling`: expected either this or `exact`, found both")
    if behavior_sampling and prompt_len:
        raise ValueError("`behavior_sampling`: expected a request that leaves the behavior open, found a prompt")
    if exact and request is not None and request.compile_config is not None:
        raise ValueError("`compile_config`: expected none with `exact`, whose steps depend on what they find")
    for name, asked in (("exact", exact), ("behavior_sampling", behavior_sampling)):
        if asked and request is None:
            raise ValueError(
                f"`{name}`: expected a plain search on a model in evaluation mode, found settings that only stock "
                "`generate` follows"
            )


def _length_penalty(generation_config: GenerationConfig | None, settings: dict) -> float:
    """Plain sums unless the caller chose otherwise."""
    given = settings.get("length_penalty")
    if given is None and generation_config is not None:
        given = generation_config.length_penalty
    return 0.0 if given is None else given


def generation_settings(
    generation_config: GenerationConfig | None, kwargs: dict, steps: int, default_beams: int | None
) -> tuple[GenerationConfig | None, dict]:
    """Fix the length, and plain sums as scores unless the caller chose otherwise."""
    for name in ("max_new_tokens", "max_length", "min_new_tokens", "min_length"):
        given = kwargs.pop(name, None)
        if given is not None and (name != "max_new_tokens" or given != steps):
            raise ValueError(f"`{name}`: expected to be left out, an item takes {steps} tokens here, found {given}")
    if kwargs.pop("eos_token_id", None) is not None:
        raise ValueError("`eos_token_id`: expected to be left out, an item has a fixed number of codes")
    if generation_config is None:
        # Greedy search and sampling have no `length_penalty` and would warn.
        plain_sums = {"length_penalty": 0.0} if (kwargs.get("num_beams") or default_beams or 1) > 1 else {}
        # An item has a fixed number of codes: nothing is decided by an end-of-sequence token (M3).
        return None, {**plain_sums, **kwargs, "max_new_tokens": steps, "eos_token_id": None}
    generation_config = copy.deepcopy(generation_config)
    generation_config.max_length = None
    generation_config.max_new_tokens = steps
    beams = kwargs.get("num_beams") or generation_config.num_beams or default_beams or 1
    if generation_config.length_penalty is None and "length_penalty" not in kwargs and beams > 1:
        generation_config.length_penalty = 0.0
    return generation_config, kwargs


__all__ = ["BeamRequest", "beam_request", "check_modes", "generation_settings"]
