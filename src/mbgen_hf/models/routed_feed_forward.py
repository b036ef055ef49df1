"""Position-routed experts and behavior injection, shared by MBGen (section 3.4) and GAMER (equation 5).

A token's expert is its slot. The slot order of the tokens is found once per forward pass; a layer brings its tokens
into that order, the experts are one grouped matrix product per weight, and the results are put back. All of it stays
on the device: no boolean indexing, no host synchronisation, no capacity, no router probability.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .fused_operations import Dropout, fuses_by_hand, is_plain, joint_linear, reorder


@dataclass(frozen=True)
class Routing:
    """Where the tokens of one forward pass go; made once by a stack and read by each of its layers.

    Args:
        order: `(num_tokens,)` flat positions in slot order, stable.
        restore: `(num_tokens,)` the inverse permutation.
        ends: `(num_slots,)` `int32`, where each slot's tokens end in slot order.
        behaviors: `(batch_size, seq_len)` row of the behavior embedding of every token, 0 = padding.
        slot: the slot of all tokens where they have the same one; the three before `behaviors` are then `None`.
    """

    order: torch.Tensor | None
    restore: torch.Tensor | None
    ends: torch.Tensor | None
    behaviors: torch.Tensor
    slot: int | None = None

    @classmethod
    def of_slot(cls, slot: int, behaviors: torch.Tensor) -> "Routing":
        """Tokens that are all of one slot, as in a step of decoding."""
        return cls(None, None, None, behaviors, slot)

    @classmethod
    def from_slots(cls, slots: torch.Tensor, behaviors: torch.Tensor, num_slots: int) -> "Routing":
        """Sort tokens by slot.

        Args:
            slots (`torch.LongTensor` of shape `(batch_size, seq_len)`): from 0 to `num_slots - 1`.
            behaviors (`torch.LongTensor` of shape `(batch_size, seq_len)`): rows of the behavior embedding.
            num_slots: number of experts.
        """
        flat = slots.reshape(-1)
        order = flat.argsort(stable=True)
        restore = torch.empty_like(order).scatter_(0, order, torch.arange(flat.numel(), device=flat.device))
        ends = (flat[:, None] <= torch.arange(num_slots, device=flat.device)).sum(0, dtype=torch.int32)
        return cls(order, restore, ends, behaviors)


def grouped_matmul(states: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply each group of rows with its own matrix.

    Args:
        states: `(num_tokens, d_in)`, groups one after the other.
        weight: `(num_groups, d_in, d_out)`.
        ends: `(num_groups,)` `int32`, end row of each group.

    Returns:
        `(num_tokens, d_out)`
    """
    device = states.device.type
    if torch.is_autocast_enabled(device):
        # `grouped_mm` is on no autocast list: without the casts it would run in float32.
        dtype = torch.get_autocast_dtype(device)
        states, weight = states.to(dtype), weight.to(dtype)
    if fuses_by_hand(states):
        return _GroupedMatmul.apply(states, weight, ends)
    if states.dtype == torch.float64:
        # The kernel has no float64. Every matrix on every row is slower but exact, and float64 is for checking only.
        group = torch.bucketize(torch.arange(states.shape[0], device=states.device), ends, right=True)
        every = torch.einsum("td,gdo->gto", states, weight)
        return every[group, torch.arange(states.shape[0], device=states.device)]
    if torch.compiler.is_compiling():
        return _grouped_matmul_op(states, weight, ends)
    return F.grouped_mm(states, weight, offs=ends)


class _GroupedMatmul(torch.autograd.Function):
    """On the CPU, where ends are at hand: neighbouring groups of one size are one batched product.

    In whole interactions all slots but that of special tokens have the same number of tokens.
    """

    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        states = states.contiguous()
        ctx.save_for_backward(states, weight)
        ctx.runs = _runs(ends.tolist())
        output = states.new_empty(len(states), weight.shape[2])
        for rows, groups, shape in ctx.runs:
            torch.bmm(states[rows].view(shape), weight[groups], out=output[rows].view(shape))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        states, weight = ctx.saved_tensors
        grad, grad_states = grad.contiguous(), torch.empty_like(states)
        # In the layout of the parameter, whose transpose `weight` is.
        grad_weight = weight.new_zeros(weight.shape[0], weight.shape[2], weight.shape[1])
        for rows, groups, shape in ctx.runs:
            own = grad[rows].view(shape)
            torch.bmm(own, weight[groups].transpose(1, 2), out=grad_states[rows].view(shape))
            torch.bmm(own.transpose(1, 2), states[rows].view(shape), out=grad_weight[groups])
        return grad_states, grad_weight.transpose(1, 2), None


def _runs(ends: list[int]) -> list[tuple[slice, slice, tuple[int, int, int]]]:
    """Rows, groups and the shape `(groups, rows of a group, -1)` of neighbouring groups of one size; none empty."""
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    runs, start, group = [], 0, 0
    for size, members in groupby(sizes):
        count = len(list(members))
        if size:
            rows = slice(start, start + count * size)
            runs.append((rows, slice(group, group + count), (count, size, -1)))
        start, group = start + count * size, group + count
    return runs


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

    def forward(self, states: torch.Tensor, ends: torch.Tensor | int) -> torch.Tensor:
        """`(num_tokens, in_features)` with the end of each slot, or any shape with the slot of all."""
        if isinstance(ends, int):
            return F.linear(states, self.weight[ends])
        return grouped_matmul(states, self.weight.transpose(1, 2), ends)


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
        if self.behavior_embedding is not None:
            behaviors = self.behavior_embedding(routing.behaviors).to(hidden_states.dtype)
            hidden_states = torch.cat([hidden_states, behaviors], dim=-1)
        if not self.routed:
            return self._transform(hidden_states)
        if routing.slot is not None:
            return self._transform(hidden_states, routing.slot)
        shape = hidden_states.shape
        states = reorder(hidden_states.reshape(-1, shape[-1]), routing.order, routing.restore)
        states = self._transform(states, routing.ends)
        return reorder(states, routing.restore, routing.order).reshape(*shape[:-1], -1)

    def _linear(self, in_features: int, out_features: int) -> nn.Module:
        """A map that takes `(states, ends or slot)` where the layer is routed and `(states,)` where it is dense."""
        if self.routed:
            return RoutedLinear(self.num_experts, in_features, out_features)
        return nn.Linear(in_features, out_features, bias=False)

    def _add_weights(self, d_in: int, d_ff: int, d_out: int) -> None:
        self.wi = self._linear(d_in, d_ff)
        self.wo = self._linear(d_ff, d_out)

    def _transform(self, states: torch.Tensor, *ends: torch.Tensor | int) -> torch.Tensor:
        return self.wo(self.dropout(self.activation(self.wi(states, *ends))), *ends)


class RoutedGatedFeedForward(RoutedFeedForward):
    """The same with a gated inner layer (SwiGLU with SiLU as activation), as in Qwen3."""

    def _add_weights(self, d_in: int, d_ff: int, d_out: int) -> None:
        self.gate_proj = self._linear(d_in, d_ff)
        self.up_proj = self._linear(d_in, d_ff)
        self.down_proj = self._linear(d_ff, d_out)

    def _transform(self, states: torch.Tensor, *ends: torch.Tensor | int) -> torch.Tensor:
        if not self.routed:
            gate, up = joint_linear(states, self.gate_proj, self.up_proj)
        elif not isinstance(ends[0], int) and all(
            is_plain(part, RoutedLinear) for part in (self.gate_proj, self.up_proj)
        ):
            both = torch.cat([self.gate_proj.weight, self.up_proj.weight], dim=1)
            gate, up = grouped_matmul(states, both.transpose(1, 2), *ends).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(states, *ends), self.up_proj(states, *ends)
        inner = self.activation(gate) * up
        return self.down_proj(self.dropout(inner), *ends)


__all__ = ["RoutedFeedForward", "RoutedGatedFeedForward", "RoutedLinear", "Routing", "grouped_matmul"]
