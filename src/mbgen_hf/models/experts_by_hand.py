"""Experts on the CPU: products in slot order and the whole routed feed-forward, with backward passes of their own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .by_hand import kept_scale, product_dtype
from .slot_order import Blocks, Routing, Run, by_group


# Multiplications of a product that is worth all threads.
LARGE_PRODUCT = 2**25
# Fewer tokens of an expert are not worth a product in a narrow type.
FEW_TOKENS = 64


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
        of_states, of_weight, _ = ctx.needs_input_grad
        by_states = _multiply(grad, weight, ctx.runs) if of_states else None
        by_weight = _weight_gradient(grad, states, ctx.runs).to(ctx.of_weight) if of_weight else None
        return by_states, by_weight, None


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

    One copy brings states into slot order and into the type of products, one brings results back. `first` is the
    weight before the activation, gate and up as one, and `second` that behind it: `(num_experts, d_out, d_in)` each.
    `parts` are the states, and the injected embedding if there is one.
    """

    @staticmethod
    def forward(ctx, routing: Routing, activation: str, probability: float, first, second, *parts: torch.Tensor):
        dtype = product_dtype(parts[0])
        # In a narrow type, starting the product of a few tokens takes longer than the product in float32.
        wide = torch.promote_types(dtype, torch.float32)
        ctx.dtypes = [dtype if size >= FEW_TOKENS else wide for _, size in routing.runs]
        ctx.routing, ctx.activation, ctx.weights = routing, activation, [(w.shape, w.dtype) for w in (first, second)]
        ctx.parts = [(part.shape[-1], part.dtype) for part in parts]
        blocks, kept = Blocks.of_columns(parts, routing, ctx.dtypes).of_runs, []
        results = Blocks.empty(parts[0], routing, second.shape[1], ctx.dtypes)
        for rows, into, *weights in zip(blocks, results.of_runs, *_by_run(routing, first, second), strict=True):
            kept += _feed(rows, *(weight.to(rows.dtype) for weight in weights), activation, probability, into)
        ctx.save_for_backward(*kept)
        return results.to_columns(routing, [(second.shape[1], parts[0].dtype)])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        # Read once: a checkpoint that frees them does not allow more.
        kept, routing = ctx.saved_tensors, ctx.routing
        step = len(kept) // len(routing.runs)
        # Frozen weights take no part.
        by_weights = [
            grad.new_empty(shape, dtype=dtype) if needed else None
            for (shape, dtype), needed in zip(ctx.weights, ctx.needs_input_grad[3:5], strict=True)
        ]
        blocks = Blocks.of_columns([grad], routing, ctx.dtypes).of_runs
        results = Blocks.empty(grad, routing, sum(width for width, _ in ctx.parts), ctx.dtypes)
        runs = zip(blocks, results.of_runs, *_by_run(routing, *by_weights), strict=True)
        for number, (above, *into) in enumerate(runs):
            _feed_backward(above, kept[number * step : (number + 1) * step], ctx.activation, *into)
        return None, None, None, *by_weights, *results.to_columns(routing, ctx.parts)


def _by_run(routing: Routing, *weights: torch.Tensor | None) -> list[Sequence[torch.Tensor | None]]:
    """Of each weight, the experts of every run."""
    groups = [groups for groups, _ in routing.runs]
    return [[None] * len(groups) if weight is None else weight.split(groups) for weight in weights]


def _feed(
    rows: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    activation: str,
    probability: float,
    output: torch.Tensor,
) -> list[torch.Tensor | None]:
    """`(groups, tokens, d_in)` through their experts into `output`; returns what the way back needs."""
    mask = None
    before = _product(rows, first.transpose(1, 2))
    gate, up = before.chunk(2, dim=-1) if first.shape[1] > second.shape[2] else (before, None)
    active = F.silu(gate) if activation == "silu" else F.relu(gate)
    inner = active if up is None else active * up
    if probability:
        mask = kept_scale(inner.shape, probability, rows.dtype)
        inner = inner * mask if inner is active else inner.mul_(mask)
    _batched(inner, second.transpose(1, 2), output)
    return [rows, first, before, active, mask, inner, second]


def _feed_backward(
    grad: torch.Tensor,
    kept: Sequence[torch.Tensor | None],
    activation: str,
    by_rows: torch.Tensor,
    by_first: torch.Tensor | None,
    by_second: torch.Tensor | None,
) -> None:
    """Write the gradients by the rows and by both weights; `None` for one that is not wanted."""
    rows, first, before, active, mask, inner, second = kept
    by_inner = _product(grad, second)
    _write_product(grad.transpose(1, 2), inner, by_second)
    if mask is not None:
        by_inner.mul_(mask)
    by_before = _before_activation(activation, by_inner, before, active)
    _write_product(by_before.transpose(1, 2), rows, by_first)
    _batched(by_before, first, by_rows)


def _product(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    output = one.new_empty(len(one), one.shape[1], two.shape[2])
    _batched(one, two, output)
    return output


def _write_product(one: torch.Tensor, two: torch.Tensor, output: torch.Tensor | None) -> None:
    """A product into memory of whatever type, if there is any."""
    if output is not None and output.dtype == one.dtype:
        _batched(one, two, output)
    elif output is not None:
        output.copy_(torch.bmm(one, two))


def _before_activation(
    activation: str, grad: torch.Tensor, before: torch.Tensor, active: torch.Tensor
) -> torch.Tensor:
    """Gradient by `before`, from that by `activation(before)` or by `activation(gate) * up`; `grad` is used up."""
    if before.shape == active.shape:
        if activation == "relu":
            return torch.ops.aten.threshold_backward.grad_input(grad, active, 0, grad_input=grad)
        return torch.ops.aten.silu_backward.grad_input(grad, before, grad_input=grad)
    output = torch.empty_like(before)
    (gate, up), (by_gate, by_up) = (part.chunk(2, dim=-1) for part in (before, output))
    torch.mul(grad, active, out=by_up)
    grad.mul_(up)
    if activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(grad, active, 0, grad_input=by_gate)
    else:
        torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=by_gate)
    return output


__all__ = ["Experts", "GroupedMatmul"]
