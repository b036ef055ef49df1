"""The models of `training.py`: ours from the presets, the stock backbones, and the plain reference."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, Qwen3Config, Qwen3ForCausalLM, SwitchTransformersConfig
from transformers import SwitchTransformersForConditionalGeneration as StockSwitch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersLayerNorm

from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.fused_operations import Dropout, FusedQwen3RMSNorm, FusedSwitchLayerNorm
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.routed_feed_forward import RoutedFeedForward, RoutedGatedFeedForward, Routing
from mbgen_hf.models.token_space import BOS
from mbgen_hf.training.settings import load_settings


BEHAVIORS = ["fav", "cart", "buy"]
# Rows of a batch are what two cores take in about a second, the plain reference with its matrix of logits in 4 GB.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"preset": "small", "code_sizes": [143] * 2, "batch": {"gamer": 64, "mbgen": 256}},
    "paper": {"preset": "paper", "code_sizes": [64] * 3, "batch": {"gamer": 64, "mbgen": 64}},
    "paper-semantic": {"preset": "paper", "code_sizes": [8192] * 4, "batch": {"gamer": 32, "mbgen": 32}},
}
DROPOUT_FIELDS = {"gamer": ("hidden_dropout", "attention_dropout", "expert_dropout"), "mbgen": ("dropout_rate",)}
Batch = dict[str, torch.Tensor]


class PlainFeedForward(RoutedFeedForward):
    """Experts by boolean masks, one after the other."""

    def forward(self, hidden_states: torch.Tensor, routing: Routing) -> torch.Tensor:
        if self.behavior_embedding is not None:
            hidden_states = torch.cat([hidden_states, self.behavior_embedding(routing.behaviors)], dim=-1)
        if not self.routed:
            return self.expert(hidden_states, None)
        slots = routing.slots()
        output = hidden_states.new_zeros(*hidden_states.shape[:-1], self.weights[-1].shape[-2])
        for number in range(self.num_experts):
            mask = slots == number
            output[mask] = self.expert(hidden_states[mask], number)
        return output

    @property
    def weights(self) -> list[torch.Tensor]:
        return [self.wi.weight, self.wo.weight]

    def expert(self, states: torch.Tensor, number: int | None) -> torch.Tensor:
        first, last = (weight if number is None else weight[number] for weight in self.weights)
        return F.linear(self.dropout(self.activation(F.linear(states, first))), last)


class PlainGatedFeedForward(PlainFeedForward):
    """The same for the gated one."""

    @property
    def weights(self) -> list[torch.Tensor]:
        if self.routed:
            return [*self.gate_up_proj.weight.chunk(2, dim=1), self.down_proj.weight]
        return [self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight]

    def expert(self, states: torch.Tensor, number: int | None) -> torch.Tensor:
        gate, up, down = (weight if number is None else weight[number] for weight in self.weights)
        return F.linear(self.dropout(self.activation(F.linear(states, gate)) * F.linear(states, up)), down)


PLAIN_CLASSES: dict[type, type] = {
    RoutedFeedForward: PlainFeedForward,
    RoutedGatedFeedForward: PlainGatedFeedForward,
    FusedQwen3RMSNorm: Qwen3RMSNorm,
    FusedSwitchLayerNorm: SwitchTransformersLayerNorm,
    Dropout: nn.Dropout,
}


def make_plain(model: nn.Module) -> nn.Module:
    """Turn one of our models, weights and all, into the plain reference."""
    model.set_attn_implementation("eager")
    for module in model.modules():
        module.__class__ = PLAIN_CLASSES.get(type(module), type(module))
    return model


def plain_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the whole matrix of logits."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    labels = batch["labels"]
    if isinstance(model, GamerForCausalLM):
        logits, labels = model(**inputs, use_cache=False).logits[:, :-1], labels[:, 1:]
    else:
        logits = model(**inputs, decoder_input_ids=model._shift_right(labels), use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


def our_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of our model, which is told what collators know: whether rows are whole."""
    return model(**batch, whole_rows="sequence_ids" not in batch).loss


def stock_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(**batch).loss


def family(kind: str) -> str:
    """`gamer` or `mbgen`: what `stock-gamer`, `stock-mbgen` and `causal` are compared with."""
    return "mbgen" if kind == "causal" else kind.removeprefix("stock-")


def preset(kind: str, size: str) -> dict[str, Any]:
    """The settings of the preset that a size stands for."""
    return load_settings(f"{family(kind)}-{SIZES[size]['preset']}")


def configuration(
    kind: str, size: str, dropout: float | None = None, code_sizes: list[int] | None = None
) -> PreTrainedConfig:
    """The configuration of the preset.

    Args:
        kind: `gamer`, `mbgen`, `causal` (MBGen with a causal encoder) or one of the first two behind `stock-`.
        size: one of `SIZES`.
        dropout: instead of the preset's.
        code_sizes: instead of the size's.
    """
    fields = {"behaviors": BEHAVIORS, "code_sizes": code_sizes or SIZES[size]["code_sizes"]}
    fields |= preset(kind, size)["model"]
    if dropout is not None:
        fields |= dict.fromkeys(DROPOUT_FIELDS[family(kind)], dropout)
    if family(kind) == "gamer":
        return GamerConfig(**fields)
    return MBGenConfig(**fields, causal_encoder=kind == "causal")


def build(
    kind: str, size: str, dropout: float | None = None, code_sizes: list[int] | None = None, seed: int = 0
) -> nn.Module:
    """One of our models, or with `stock-` in front the backbone it stands on; arguments as for `configuration`."""
    config = configuration(kind, size, dropout, code_sizes)
    torch.manual_seed(seed)
    if kind == "gamer":
        return GamerForCausalLM(config)
    if kind == "stock-gamer":
        names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
        names += " head_dim rope_parameters tie_word_embeddings attention_dropout pad_token_id"
        return Qwen3ForCausalLM(Qwen3Config(**{name: getattr(config, name) for name in names.split()}))
    if kind == "stock-mbgen":
        names = "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads dropout_rate num_experts"
        fields = {name: getattr(config, name) for name in names.split()}
        sparse = {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": config.num_decoder_layers}
        return StockSwitch(SwitchTransformersConfig(**fields, **sparse, decoder_start_token_id=BOS))
    return MBGenForConditionalGeneration(config)


def arithmetic(model: nn.Module, batch: Batch) -> float:
    """FLOP of the weights of a step: six per weight and token that meets it, of one expert where routed.

    Attention's products of tokens with tokens are left out.
    """
    histories, targets, total = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum()), 0.0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        routed = weight is not None and weight.dim() == 3
        other_expert = "expert_" in name and "expert_0" not in name
        if other_expert or not (routed or isinstance(module, nn.Linear)):
            continue
        of_target = name.startswith("decoder.") and not name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        tokens = targets if of_target or name == "lm_head" else histories
        total += 6.0 * (weight[0] if routed else weight).numel() * tokens
    return total
