"""Experts on the CPU: products in slot order and the whole routed feed-forward, with backward passes of their own."""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .by_hand import kept_scale, product_dtype
from .fused_operations import joined
from .slot_order import Routing, Run, by_group, to_columns, to_rows


# Multiplications of a product that is worth all threads.
LARGE_PRODUCT = 2**25


class GroupedMatmul(torch.autograd.Function):
    """On the CPU, where ends are at hand: neighbouring groups of one size are one batched product.

    The weight is `(num_groups, d_out, d_in)`, in the layout of a parameter.
    """

    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor, runs: tuple[Run, ...]) -> torch.Tensor:
        ctx.of_weight, ctx.runs = weight.dtype, runs
        states, weight = states.contiguous(), weight.to(states.dtype)
        ctx.save_for_backward(states, weight)
        return _multiply(states, weight.transpose(1, 2), runs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        states, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_states = _multiply(grad, weight, ctx.runs)
        return grad_states, _weight_gradient(grad, states, ctx.runs).to(ctx.of_weight), None


def _multiply(states: torch.Tensor, weight: torch.Tensor, runs: tuple[Run, ...]) -> torch.Tensor:
    """`(num_tokens, d_in)` and `(num_groups, d_in, d_out)` to `(num_tokens, d_out)`."""
    output = states.new_empty(len(states), weight.shape[2])
    parts = weight.split([groups for groups, _ in runs]) if len(runs) > 1 else [weight]
    for into, part, own in zip(by_group(output, runs), by_group(states, runs), parts, strict=True):
        _batched(part, own, into)
    return output


def _weight_gradient(grad: torch.Tensor, states: torch.Tensor, runs: tuple[Run, ...]) -> torch.Tensor:
    """`(num_groups, d_out, d_in)` from `(num_tokens, d_out)` and `(num_tokens, d_in)`."""
    groups = [count for count, _ in runs]
    output = grad.new_empty(sum(groups), grad.shape[1], states.shape[1])
    for into, one, two in zip(output.split(groups), by_group(grad, runs), by_group(states, runs), strict=True):
        _batched(one.transpose(1, 2), two, into)
    return output


def _batched(one: torch.Tensor, two: torch.Tensor, output: torch.Tensor) -> None:
    """Batched product. In float32 each thread takes whole ones: large ones that are left over use all threads."""
    left = len(one) % torch.get_num_threads() if one.dtype == torch.float32 else 0
    if not 0 < left < len(one) or output[0].numel() * one.shape[2] < LARGE_PRODUCT:
        torch.bmm(one, two, out=output)
        return
    torch.bmm(one[:-left], two[:-left], out=output[:-left])
    for number in range(len(one) - left, len(one)):
        torch.mm(one[number], two[number], out=output[number])


class Experts(torch.autograd.Function):
    """A whole routed feed-forward on the CPU, where starting an operation and reading memory are what costs.

    One copy brings states into slot order and into the type of products, one brings results back. `weights` are those
    before the activation, gate and up as one product, and the one behind it; `(num_experts, d_out, d_in)` each.
    """

    @staticmethod
    def forward(ctx, routing: Routing, activation: str, probability: float, states, injected, *weights: torch.Tensor):
        dtype, runs, options = product_dtype(states), routing.runs, (activation, probability)
        parts = [states] if injected is None else [states, injected]
        output = states.new_empty(states.shape)
        # In a narrow type, starting the product of a few tokens takes longer than the product in the type of weights.
        special = routing.special_columns if dtype.itemsize < states.element_size() else 0
        ctx.runs, kept = runs[1:] if special else runs, []
        if special:
            rows = torch.cat([part[:, :special] for part in parts], dim=-1).flatten(0, 1)
            result, kept = _feed(rows, [weight[:1] for weight in weights], runs[:1], *options)
            output[:, :special] = result.view(len(states), special, -1)
            weights = [weight[1:] for weight in weights]
        rows = states.new_empty(sum(map(math.prod, ctx.runs)), weights[0].shape[2], dtype=dtype)
        for piece, part in zip(rows.split([part.shape[-1] for part in parts], dim=1), parts, strict=True):
            to_rows(piece, part, routing)
        result, kept_too = _feed(rows, weights, ctx.runs, *options)
        to_columns(output, result, routing)
        ctx.save_for_backward(*kept, *kept_too)
        ctx.routing, ctx.activation, ctx.special = routing, activation, special
        ctx.of_parts = [(part.shape, part.dtype) for part in parts]
        ctx.of_weights = [(weight.shape[1], weight.dtype) for weight in weights]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        routing, special, kept = ctx.routing, ctx.special, ctx.saved_tensors
        grads = [grad.new_empty(shape, dtype=dtype) for shape, dtype in ctx.of_parts]
        widths = [part.shape[-1] for part in grads]
        grad_rows = grad.new_empty(len(kept[-7]), grad.shape[-1], dtype=kept[-7].dtype)
        to_rows(grad_rows, grad, routing)
        grad_rows, *by_weights = _feed_backward(grad_rows, kept[-7:], ctx.runs, ctx.activation)
        for part, piece in zip(grads, grad_rows.split(widths, dim=1), strict=True):
            to_columns(part, piece, routing)
        pieces = [_of_weights(by_weights, ctx.of_weights)]
        if special:
            above = grad[:, :special].to(kept[0].dtype).flatten(0, 1)
            grad_rows, *by_weights = _feed_backward(above, kept[:7], routing.runs[:1], ctx.activation)
            for part, piece in zip(grads, grad_rows.split(widths, dim=1), strict=True):
                part[:, :special] = piece.view(len(grad), special, -1)
            pieces.insert(0, _of_weights(by_weights, ctx.of_weights))
        by_weights = [
            # Contiguous, else it is copied once more where gradients are kept.
            joined(dtype, 0, *parts).contiguous()
            for parts, (_, dtype) in zip(zip(*pieces, strict=True), ctx.of_weights, strict=True)
        ]
        return None, None, None, *grads, *[None] * (2 - len(grads)), *by_weights


def _feed(rows: torch.Tensor, weights, runs: tuple[Run, ...], activation: str, probability: float):
    """Through the experts, in slot order: the result, and what the way back needs."""
    (*first, last), dtype, mask = weights, rows.dtype, None
    joint, second = joined(dtype, 1, *first), last.to(dtype)
    before = _multiply(rows, joint.transpose(1, 2), runs)
    gate, up = before.split(last.shape[2], dim=1) if len(first) > 1 else (before, None)
    active = F.silu(gate) if activation == "silu" else F.relu(gate)
    inner = active if up is None else active * up
    if probability:
        mask = kept_scale(inner.shape, probability, dtype)
        inner = inner * mask if inner is active else inner.mul_(mask)
    return _multiply(inner, second.transpose(1, 2), runs), [rows, joint, before, active, mask, inner, second]


def _feed_backward(grad: torch.Tensor, kept, runs: tuple[Run, ...], activation: str) -> tuple[torch.Tensor, ...]:
    """Gradients by rows, by the joint first weights and by the last one."""
    rows, joint, before, active, mask, inner, second = kept
    by_inner = _multiply(grad, second, runs)
    if mask is not None:
        by_inner.mul_(mask)
    by_before = _before_activation(activation, by_inner, before, active)
    by_joint = _weight_gradient(by_before, rows, runs)
    return _multiply(by_before, joint, runs), by_joint, _weight_gradient(grad, inner, runs)


def _of_weights(grads: list[torch.Tensor], of_weights) -> list[torch.Tensor]:
    """Gradients of the joint first weights and of the last one, for each weight."""
    return [*grads[0].split([width for width, _ in of_weights[:-1]], dim=1), grads[1]]


def _before_activation(
    activation: str, grad: torch.Tensor, before: torch.Tensor, active: torch.Tensor
) -> torch.Tensor:
    """Gradient by `before`, from that by `activation(before)` or by `activation(gate) * up`; `grad` is used up."""
    if before.shape == active.shape:
        if activation == "relu":
            return torch.ops.aten.threshold_backward(grad, active, 0)
        return torch.ops.aten.silu_backward(grad, before)
    output = torch.empty_like(before)
    (gate, up), (by_gate, by_up) = (part.split(active.shape[1], dim=1) for part in (before, output))
    torch.mul(grad, active, out=by_up)
    grad.mul_(up)
    if activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(grad, active, 0, grad_input=by_gate)
    else:
        torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=by_gate)
    return output


__all__ = ["Experts", "GroupedMatmul"]
