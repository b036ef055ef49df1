"""Attention by batched products on the CPU, a block of queries at a time.

What a kernel of the CPU lacks: dropout of attention weights, a gradient by the mask, the heads of a group as rows of
one product, and a block's scores staying in the cache between the passes over them. Where a query sees nothing behind
itself, scores of later keys are not made at all.
"""

import torch
from torch.autograd.function import once_differentiable

from .by_hand import kept_scale, product_dtype


# Queries of a block where attention is causal; more blocks skip more hidden keys but start more operations.
CAUSAL_BLOCK = 48


class PlainAttention(torch.autograd.Function):
    """`softmax(queries keys^T * scaling + mask)`, dropped out, times values; softmax inside in float32 or more."""

    @staticmethod
    def forward(ctx, queries, keys, values, mask, scaling: float, probability: float, causal: bool) -> torch.Tensor:
        """Shapes as in `attend`; `causal` promises that no query sees a key behind itself."""
        (batch, heads, length, width), kv_heads, total = queries.shape, keys.shape[1], keys.shape[2]
        dtype, groups = torch.promote_types(product_dtype(queries), product_dtype(values)), heads // kv_heads
        ctx.shape, ctx.scaling = (batch, kv_heads, groups), scaling
        ctx.types = [part.dtype for part in (queries, keys, values)]
        # The heads of a group are further query rows of one product: their keys are not repeated.
        rows = (queries if scaling == 1 else queries * scaling).to(dtype).unflatten(1, (kv_heads, groups))
        keys, values = (part.to(dtype).reshape(-1, total, width) for part in (keys, values))
        output = torch.empty(batch, length, kv_heads, groups, width, dtype=dtype)
        ctx.blocks, saved = [], []
        # A bias that learns keeps its precision. Others are added in the type of scores, as the stock networks do.
        learned = mask is not None and ctx.needs_input_grad[3]
        added = mask
        if mask is not None and mask.dtype != torch.bool and not learned:
            added = mask.clamp(min=torch.finfo(dtype).min).to(dtype)
        for block, end in _blocks(length, total, causal):
            own = rows[:, :, :, block].reshape(len(keys), -1, width)
            scores = torch.bmm(own, _first(keys, end).transpose(1, 2)).view(batch, heads, -1, end)
            weights = _softmax(scores, None if mask is None else _part(added, block, end))
            scale, kept = None, weights
            if probability:
                scale = kept_scale(weights.shape, probability, weights.dtype)
                kept = weights * scale
            kept = kept.to(dtype)
            seen = torch.bmm(kept.view(len(keys), -1, end), _first(values, end))
            output[:, block].copy_(seen.view(batch, kv_heads, groups, -1, width).permute(0, 3, 1, 2, 4))
            ctx.blocks.append((block, end))
            saved += [own, weights, scale, kept]
        ctx.of_mask = None if mask is None else (mask.shape, mask.dtype)
        ctx.save_for_backward(keys, values, *saved)
        return output.view(batch, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (keys, values, *saved), (batch, kv_heads, groups) = ctx.saved_tensors, ctx.shape
        (length, width), dtype = (grad.shape[1], keys.shape[2]), keys.dtype
        grad = grad.view(batch, length, kv_heads, groups, width)
        by_queries = torch.empty(batch, kv_heads, groups, length, width, dtype=ctx.types[0])
        by_keys, by_values = (torch.zeros(keys.shape, dtype=torch.promote_types(dtype, torch.float32)) for _ in "kv")
        by_mask = torch.zeros(ctx.of_mask[0], dtype=ctx.of_mask[1]) if ctx.needs_input_grad[3] else None
        for number, (block, end) in enumerate(ctx.blocks):
            own, weights, scale, kept = saved[4 * number : 4 * number + 4]
            above = grad[:, block].permute(0, 2, 3, 1, 4).to(dtype).reshape(len(keys), -1, width)
            by_values[:, :end] += torch.bmm(kept.view(len(keys), -1, end).transpose(1, 2), above)
            by_weights = torch.bmm(above, _first(values, end).transpose(1, 2)).view(weights.shape).to(weights.dtype)
            if scale is not None:
                by_weights.mul_(scale)
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            if by_mask is not None:
                part = _part(by_mask, block, end)
                part += by_scores.sum_to_size(part.shape)
            by_scores = by_scores.to(dtype).view(len(keys), -1, end)
            by_keys[:, :end] += torch.bmm(by_scores.transpose(1, 2), own)
            by_own = torch.bmm(by_scores, _first(keys, end)).view(batch, kv_heads, groups, -1, width)
            torch.mul(by_own, ctx.scaling, out=by_queries[:, :, :, block])
        by_keys, by_values = (part.view(batch, kv_heads, -1, width) for part in (by_keys, by_values))
        by_keys, by_values = by_keys.to(ctx.types[1]), by_values.to(ctx.types[2])
        return by_queries.flatten(1, 2), by_keys, by_values, by_mask, None, None, None


def _blocks(length: int, total: int, causal: bool) -> list[tuple[slice, int]]:
    """Blocks of queries, and how many keys each may see."""
    if not causal:
        return [(slice(0, length), total)]
    size = -(-length // max(1, min(4, length // CAUSAL_BLOCK)))
    stops = [*range(size, length, size), length]
    return [(slice(max(0, stop - 1) // size * size, stop), stop + total - length) for stop in stops]


def _part(mask: torch.Tensor, block: slice, end: int) -> torch.Tensor:
    return mask[:, :, block if mask.shape[2] > 1 else slice(None), : end if mask.shape[3] > 1 else None]


def _first(states: torch.Tensor, end: int) -> torch.Tensor:
    """The first keys. Products in a narrow type copy what is not contiguous, slowly where it is transposed as well."""
    first = states[:, :end]
    return first if states.itemsize >= 4 else first.contiguous()


def _softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Over the keys, inside in float32 or more; `scores` is used up. The mask is boolean or added.

    The weights get the type of the scores, or that of a mask of higher precision.
    """
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    if torch.promote_types(scores.dtype, mask.dtype) != scores.dtype:
        return (scores + mask).softmax(-1)
    return scores.add_(mask).softmax(-1)


__all__ = ["PlainAttention"]
