"""Reads the attention of a model where it is about to write the first code of the next item.

That is the position of the behavior token asked for: in GAMER the last of the row, in MBGen the second of the decoder,
whose cross-attention reads the history. Everything is in eager attention, the only one that makes its weights.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward

from mbgen_hf.data.batches import user_tokens
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases
from mbgen_hf.models.history_copying import CopyChoice
from mbgen_hf.models.token_space import BEHAVIOR_SLOT, TokenSpace
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


@dataclass(frozen=True)
class Observation:
    """Where one layer looks, case by case. Interactions are counted back from the latest, in column 0.

    Args:
        name: of the layer.
        mass: `(num_cases, num_heads, longest_history)` attention to each interaction.
        special: `(num_cases, num_heads)` attention to BOS, EOS and user tokens.
        prompt: `(num_cases, num_heads)` attention to the behavior token asked for.
        slots: `(num_cases, 1 + m)` mean over the heads of the attention to behavior tokens of the history, and to each
            of its code levels.
        visible: `(num_cases, longest_history)` number of visible tokens of each interaction.
        visible_slots: `(num_cases, 1 + m)` the same for each role.
        visible_special, visible_prompt: `(num_cases,)` number of visible tokens that count there.
        sees: `(num_cases,)` bool, whether the layer sees anything at all.
    """

    name: str
    mass: np.ndarray
    special: np.ndarray
    prompt: np.ndarray
    slots: np.ndarray
    visible: np.ndarray
    visible_slots: np.ndarray
    visible_special: np.ndarray
    visible_prompt: np.ndarray
    sees: np.ndarray

    @classmethod
    def of_rows(cls, rows: np.ndarray, parts: list["Observation"]) -> "Observation":
        """Join batches; `rows` gives the row of each of their cases, one batch after the other."""
        longest = max(part.mass.shape[2] for part in parts)
        back = np.argsort(rows)
        fields = {}
        for field in dataclasses.fields(cls)[1:]:
            values = [getattr(part, field.name) for part in parts]
            if field.name in ("mass", "visible"):
                values = [np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, longest - v.shape[-1])]) for v in values]
            fields[field.name] = np.concatenate(values)[back]
        return cls(parts[0].name, **fields)


@dataclass(frozen=True)
class _Keys:
    """What stands at the keys of an attention layer, each `(batch_size, num_keys)`.

    Args:
        ago: how many interactions ago, from 1; 0 for tokens of none, -1 for the behavior token asked for.
        roles: 0 for behavior tokens, 1 + j for code level j, -1 for others.
    """

    ago: torch.Tensor
    roles: torch.Tensor

    @classmethod
    def of(cls, ids: torch.LongTensor, space: TokenSpace, with_prompt: bool) -> "_Keys":
        slots = space.slots(ids)
        number = (slots == BEHAVIOR_SLOT).cumsum(dim=1)
        ago = torch.where(slots >= BEHAVIOR_SLOT, number[:, -1:] - number + 1, 0)
        roles = slots - BEHAVIOR_SLOT
        if with_prompt:
            # The prompt would be the latest interaction.
            ago, roles = torch.where(ago > 0, ago - 1, 0), roles.clone()
            ago[:, -1], roles[:, -1] = -1, -1
        return cls(ago, roles)

    def observe(
        self,
        name: str,
        weights: torch.Tensor,
        visible: torch.Tensor,
        longest: int,
        levels: int,
        sees: torch.Tensor | None = None,
    ):
        """The `Observation` of `(batch_size, num_heads, num_keys)` weights, `visible` as a mask of the keys."""
        heads = weights.shape[1]
        weights = weights.double()

        def summed(values: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
            # Place -1 is collected in front and cut off.
            empty = values.new_zeros(*values.shape[:-1], size + 1)
            return empty.scatter_add_(-1, (places + 1).expand_as(values), values)[..., 1:]

        # The prompt, other tokens, then interactions from the latest on.
        by_place = summed(weights, (self.ago + 1)[:, None].expand(-1, heads, -1), longest + 2)
        counted = visible.double()
        places = summed(counted, self.ago + 1, longest + 2)
        slots = summed(weights.mean(1), self.roles, levels + 1)
        fields = {
            "mass": by_place[..., 2:],
            "special": by_place[..., 1],
            "prompt": by_place[..., 0],
            "slots": slots,
            "visible": places[:, 2:],
            "visible_slots": summed(counted, self.roles, levels + 1),
            "visible_special": places[:, 1],
            "visible_prompt": places[:, 0],
            "sees": visible.any(1) if sees is None else sees,
        }
        return Observation(name, **{field: values.cpu().numpy() for field, values in fields.items()})


def observe_attention(
    model: PreTrainedModel,
    tokenizer: InteractionTokenizer,
    table: SequenceTable,
    cases: EvaluationCases,
    batch_size: int = 64,
) -> tuple[list[Observation], np.ndarray | None]:
    """Where every layer looks in every case, and the probability of copying.

    GAMER: self-attention and cross-level attention of each layer. MBGen: the decoder's cross-attention. With a copying
    head also the distribution it copies from, over interactions; only their last codes stand for them there.

    Args:
        model: a `GamerForCausalLM` or an `MBGenForConditionalGeneration`.
        tokenizer: its tokenizer.
        table: the table that `cases` point into.
        cases: the questions; the behavior of each is asked for.
        batch_size: histories per pass.

    Returns:
        The observations, in the order of the layers, and `(num_cases,)` probabilities of copying, `None` without a
        copying head.

    Raises:
        ValueError: no cases.
    """
    if len(cases) == 0:
        raise ValueError("`cases`: expected at least one, found none")
    users = user_tokens(table, tokenizer)
    session_wise = getattr(model.config, "session_wise_attention", False)
    read = _read_encoder_decoder if model.config.is_encoder_decoder else _read_decoder
    order = np.argsort(cases.history_end - cases.history_start, kind="stable")
    batches: list[list[Observation]] = []
    gates: list[np.ndarray] = []
    with _eager(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = cases.select(order[start : start + batch_size])
            encoded = tokenizer.encode_interactions(
                table.items,
                table.behaviors,
                chosen.history_start,
                chosen.history_end,
                None if users is None else users[chosen.users],
                sessions=table.session_ids if session_wise else None,
            )
            inputs = {name: torch.from_numpy(values).to(model.device) for name, values in encoded.items()}
            prompt = torch.from_numpy(chosen.behavior.astype(np.int64))[:, None].to(model.device)
            longest = int((chosen.history_end - chosen.history_start).max())
            with _copying(model) as choices:
                seen = read(model, inputs, prompt + model.config.token_space.behavior_offset, longest)
            if choices:
                seen.append(_observe_copying(choices[-1], longest, model.config.token_space.num_code_levels))
                gates.append(choices[-1].log_copy[:, -1].exp().double().cpu().numpy())
            batches.append(seen)
    observations = [Observation.of_rows(order, list(layer)) for layer in zip(*batches, strict=True)]
    return observations, np.concatenate(gates)[np.argsort(order)] if gates else None


def _read_decoder(model, inputs: dict, prompt: torch.LongTensor, longest: int) -> list[Observation]:
    """The layers of GAMER: history and prompt are one row, whose last position is read."""
    config, sessions = model.config, {name: inputs[name] for name in ("session_ids",) if name in inputs}
    row, _ = model._generation_inputs(inputs["input_ids"], inputs["attention_mask"], prompt, sessions)
    if "session_ids" in row:
        row["session_ids"] = row["session_ids"][:, : row["input_ids"].shape[1]]
    with _recorded() as recorded:
        model(**row, use_cache=False, logits_to_keep=1)
    keys = _Keys.of(row["input_ids"], config.token_space, with_prompt=True)
    crossed = sorted(config.cross_level_layers)
    levels = config.token_space.num_code_levels
    observations = []
    for layer in range(config.num_hidden_layers):
        weights, visible = recorded[layer]
        observations.append(keys.observe(f"self-attention {layer + 1}", weights, visible, longest, levels))
        if layer in crossed:
            weights, visible = recorded[config.num_hidden_layers + crossed.index(layer)]
            # A token with nothing to see has its own key, and a result of zero.
            sees = ~visible[:, -1]
            observations.append(keys.observe(f"cross-level {layer + 1}", weights, visible, longest, levels, sees))
    return observations


def _read_encoder_decoder(model, inputs: dict, prompt: torch.LongTensor, longest: int) -> list[Observation]:
    """The decoder layers of MBGen, which read the history by cross-attention."""
    space = model.config.token_space
    inputs, _ = model._generation_inputs(inputs["input_ids"], inputs["attention_mask"], prompt, {})
    output = model(**inputs | {"use_cache": False}, output_attentions=True)
    keys = _Keys.of(inputs["input_ids"], space, with_prompt=False)
    visible = inputs["attention_mask"].bool()
    return [
        keys.observe(f"cross-attention {layer + 1}", weights[:, :, -1], visible, longest, space.num_code_levels)
        for layer, weights in enumerate(output.cross_attentions)
    ]


def _observe_copying(choice: CopyChoice, longest: int, levels: int) -> Observation:
    weights = choice.log_weights[:, -1].exp()
    visible = choice.log_weights[:, -1] > -torch.inf
    place = torch.arange(weights.shape[1], device=weights.device)
    ago = torch.where(visible, visible.sum(1, keepdim=True) - place, 0)
    keys = _Keys(ago, torch.where(visible, levels, -1))
    return keys.observe("copying", weights[:, None], visible, longest, levels)


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """The model in eager attention and evaluation mode, and as it was afterwards."""
    implementation, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        model.train(training)


@contextmanager
def _recorded() -> Iterator[dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Weights and visible keys of the last position of Qwen3's eager attention layers, by their place in the cache.

    `output_attentions` would leave out cross-level attention, which no output of Qwen3 has a name for.
    """
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(module, query, key, value, attention_mask, **kwargs):
        output, weights = eager_attention_forward(module, query, key, value, attention_mask, **kwargs)
        mask = torch.zeros_like(weights[:, :1]) if attention_mask is None else attention_mask
        visible = (mask[:, 0, -1] == 0).expand(len(weights), -1)
        found[module.layer_idx] = weights[:, :, -1], visible
        return output, weights

    ALL_ATTENTION_FUNCTIONS["eager"] = record
    try:
        yield found
    finally:
        del ALL_ATTENTION_FUNCTIONS["eager"]


@contextmanager
def _copying(model: PreTrainedModel) -> Iterator[list[CopyChoice]]:
    """What the copying head, if there is one, chooses in the passes made meanwhile."""
    choices: list[CopyChoice] = []

    def keep(module, arguments, choice: CopyChoice) -> None:
        choices.append(choice)

    if model.copying is None:
        yield choices
        return
    handle = model.copying.register_forward_hook(keep)
    try:
        yield choices
    finally:
        handle.remove()


__all__ = ["Observation", "observe_attention"]
