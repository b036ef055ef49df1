"""Position-routed experts and behavior injection, shared by MBGen (section 3.4) and GAMER (equation 5).

A token's expert is its slot. A layer brings its tokens into slot order, the experts are one batched or grouped product
per weight, and the results are put back: no capacity, no router probability.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import SiLUActivation

from .by_hand import fuses_by_hand, product_dtype, runs_by_hand
from .experts_by_hand import Experts, GroupedMatmul
from .fused_operations import Dropout, is_plain, joint_linear, reorder
from .slot_order import Routing, runs_of_one_size


def grouped_matmul(states: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply each group of rows with its own matrix.

    Args:
        states: `(num_tokens, d_in)`, groups one after the other.
        weight: `(num_groups, d_in, d_out)`.
        ends: `(num_groups,)` `int32`, end row of each group.

    Returns:
        `(num_tokens, d_out)`
    """
    # `grouped_mm` is on no autocast list: without the casts it would run in float32.
    dtype = product_dtype(states)
    states = states.to(dtype)
    if fuses_by_hand(states):
        return GroupedMatmul.apply(states, weight.transpose(1, 2), runs_of_one_size(ends))
    weight = weight.to(dtype)
    if states.dtype == torch.float64:
        # The kernel has no float64. Every matrix on every row is slower but exact, and float64 is for checking only.
        group = torch.bucketize(torch.arange(states.shape[0], device=states.device), ends, right=True)
        every = torch.einsum("td,gdo->gto", states, weight)
        return every[group, torch.arange(states.shape[0], device=states.device)]
    if torch.compiler.is_compiling():
        return _grouped_matmul_op(states, weight, ends)
    return F.grouped_mm(states, weight, offs=ends)


# Traced `F.grouped_mm` accepts bfloat16 only (its meta function rejects float32), so the compiled path sees an
# opaque operator with the same kernel inside and its own backward.
@torch.library.custom_op("mbgen_hf::grouped_matmul", mutates_args=())
def _grouped_matmul_op(states: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return F.grouped_mm(states, weight, offs=ends)


@_grouped_matmul_op.register_fake
def _(states: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return states.new_empty(states.shape[0], weight.shape[2])


@torch.library.custom_op("mbgen_hf::grouped_matmul_backward", mutates_args=())
def _grouped_matmul_backward_op(
    grad: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    grad = grad.contiguous()
    return (
        F.grouped_mm(grad, weight.transpose(1, 2), offs=ends),
        F.grouped_mm(states.transpose(0, 1), grad, offs=ends),
    )


@_grouped_matmul_backward_op.register_fake
def _(grad: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor):
    return states.new_empty(states.shape), weight.new_empty(weight.shape)


def _keep_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_matmul_backward(ctx, grad: torch.Tensor):
    return *_grouped_matmul_backward_op(grad, *ctx.saved_tensors), None


_grouped_matmul_op.register_autograd(_grouped_matmul_backward, setup_context=_keep_for_backward)


class RoutedLinear(nn.Module):
    """One bias-free linear map per expert, on tokens in slot order or all of one slot.

    `weight` has shape `(num_experts, out_features, in_features)`: expert e's slice is an `nn.Linear` weight.
    """

    def __init__(self, num_experts: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))

    def forward(self, states: torch.Tensor, ends: torch.Tensor | int | slice) -> torch.Tensor:
        """`(num_tokens, in_features)` with the end of each slot, any shape with the slot of all of them, or
        `(num_slots, num_tokens, in_features)` with a slice of slots."""
        if isinstance(ends, int):
            return F.linear(states, self.weight[ends])
        if isinstance(ends, slice):
            return torch.bmm(states, self.weight[ends].transpose(1, 2))
        return grouped_matmul(states, self.weight.transpose(1, 2), ends)


# Activations whose derivative is written out here; others go the general way.
ACTIVATIONS = {nn.SiLU: "silu", SiLUActivation: "silu", nn.ReLU: "relu"}


class RoutedFeedForward(nn.Module):
    """Feed-forward with one expert per slot, optionally fed with the behavior of each token.

    Args:
        d_model: width of the hidden states.
        d_ff: inner width.
        num_experts: number of slots, or 1 for a dense layer.
        num_behaviors: number of behaviors, for the injected embedding.
        injection_dim: width of the injected embedding; 0 for none.
        activation: the non-linearity.
        dropout: dropout on the inner activations.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        num_behaviors: int,
        injection_dim: int,
        activation: Callable[[torch.Tensor], torch.Tensor],
        dropout: float,
    ):
        super().__init__()
        self.num_experts = num_experts
        if injection_dim:
            self.behavior_embedding = nn.Embedding(num_behaviors + 1, injection_dim)
        else:
            self.behavior_embedding = None
        self.activation = activation
        self.dropout = Dropout(dropout)
        self._add_weights(d_model + injection_dim, d_ff, d_model)

    @property
    def routed(self) -> bool:
        return self.num_experts > 1

    def forward(self, hidden_states: torch.Tensor, routing: Routing) -> torch.Tensor:
        """`(batch_size, seq_len, d_model)` to the same shape."""
        injected = None
        if self.behavior_embedding is not None:
            injected = self.behavior_embedding(routing.behaviors)
        if self._runs_by_hand(hidden_states, routing):
            weights = [layer.weight for layer in self._maps()]
            probability = self.dropout.p if self.training else 0.0
            activation = ACTIVATIONS[type(self.activation)]
            parts = [hidden_states] if injected is None else [hidden_states, injected]
            return Experts.apply(routing, activation, probability, *weights, *parts)
        if injected is not None:
            hidden_states = torch.cat([hidden_states, injected.to(hidden_states.dtype)], dim=-1)
        if not self.routed:
            return self._transform(hidden_states)
        if routing.slot is not None:
            return self._transform(hidden_states, routing.slot)
        if routing.grid is not None:
            return self._through_grid(hidden_states, *routing.grid)
        shape = hidden_states.shape
        states = reorder(hidden_states.reshape(-1, shape[-1]), routing.order, routing.restore)
        states = self._transform(states, routing.ends)
        return reorder(states, routing.restore, routing.order).reshape(*shape[:-1], -1)

    def _through_grid(self, states: torch.Tensor, special: int, interactions: int) -> torch.Tensor:
        """Rows of special tokens and whole interactions: one batched product over `(slot, tokens, width)`."""
        batch = len(states)
        behind = states[:, special:].unflatten(1, (interactions, -1)).permute(2, 0, 1, 3).flatten(1, 2)
        behind = self._transform(behind, slice(1, None)).unflatten(1, (batch, interactions))
        in_front = self._transform(states[:, :special].flatten(0, 1)[None], slice(0, 1))[0]
        return torch.cat([in_front.unflatten(0, (batch, special)), behind.permute(1, 2, 0, 3).flatten(1, 2)], dim=1)

    def _runs_by_hand(self, states: torch.Tensor, routing: Routing) -> bool:
        # Layers that an adapter or a quantizer has replaced have a forward of their own.
        plain = self.routed and routing.runs is not None and type(self.activation) in ACTIVATIONS
        # With dropout also without gradients: a checkpoint's first pass must drop what its recomputation drops.
        by_hand = fuses_by_hand(states) or (self.training and self.dropout.p > 0 and runs_by_hand(states))
        return plain and by_hand and all(is_plain(layer, RoutedLinear) for layer in self._maps())

    def _maps(self) -> list[nn.Module]:
        return [self.wi, self.wo]

    def _linear(self, in_features: int, out_features: int) -> nn.Module:
        """A map that takes `(states, ends or slot)` where the layer is routed and `(states,)` where it is dense."""
        if self.routed:
            return RoutedLinear(self.num_experts, in_features, out_features)
        return nn.Linear(in_features, out_features, bias=False)

    def _add_weights(self, d_in: int, d_ff: int, d_out: int) -> None:
        self.wi = self._linear(d_in, d_ff)
        self.wo = self._linear(d_ff, d_out)

    def _transform(self, states: torch.Tensor, *ends: torch.Tensor | int | slice) -> torch.Tensor:
        return self.wo(self.dropout(self.activation(self.wi(states, *ends))), *ends)


class RoutedGatedFeedForward(RoutedFeedForward):
    """The same with a gated inner layer (SwiGLU with SiLU as activation), as in Qwen3.

    Experts keep gate and up as one weight, `gate_up_proj`, as the mixtures of experts of transformers do.
    """

    def _add_weights(self, d_in: int, d_ff: int, d_out: int) -> None:
        if self.routed:
            self.gate_up_proj = self._linear(d_in, 2 * d_ff)
        else:
            self.gate_proj = self._linear(d_in, d_ff)
            self.up_proj = self._linear(d_in, d_ff)
        self.down_proj = self._linear(d_ff, d_out)

    def _maps(self) -> list[nn.Module]:
        return [self.gate_up_proj, self.down_proj]

    def _transform(self, states: torch.Tensor, *ends: torch.Tensor | int | slice) -> torch.Tensor:
        if self.routed:
            gate, up = self.gate_up_proj(states, *ends).chunk(2, dim=-1)
        else:
            gate, up = joint_linear(states, self.gate_proj, self.up_proj)
        inner = self.activation(gate) * up
        return self.down_proj(self.dropout(inner), *ends)


__all__ = ["RoutedFeedForward", "RoutedGatedFeedForward", "RoutedLinear", "Routing", "grouped_matmul"]
