"""Norms, rotary embedding, dropout, attention and reordering in fewer passes over memory, shared by both models.

Small recommenders spend their time on the CPU not in matrix products but in the element-wise operations between them,
each of which reads and writes every hidden state. What stands here computes the same as the plain formulas (which GPUs
and `torch.compile` keep, since they fuse by themselves) with about half of the passes, forward and backward.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersLayerNorm

from .by_hand import fuses_by_hand, kept_scale, product_dtype, runs_by_hand
from .plain_attention import PlainAttention


# Up to this many keys, attention by batched products beats the tiled kernel of the CPU, forward and backward (twice
# and more in bfloat16). Beyond it, scores kept for the way back would take too much memory.
MAX_KEYS_OF_PLAIN_ATTENTION = 512
# Added to the scores of hidden keys: finite in bfloat16 as well, so that a row without any visible key stays finite.
HIDDEN = -1e30


def hidden_score(dtype: torch.dtype) -> float:
    """`HIDDEN`, or the lowest number of a narrower type such as float16."""
    return max(HIDDEN, torch.finfo(dtype).min)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        inverse = _inverse_rms(states, epsilon)
        ctx.save_for_backward(states, weight, inverse)
        return (states * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        states, weight, inverse = ctx.saved_tensors
        return *_rms_norm_backward(grad, states * inverse, weight, inverse), None


def _inverse_rms(states: torch.Tensor, epsilon: float) -> torch.Tensor:
    norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return norm.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()


def _rms_norm_backward(grad, normed, weight, inverse) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `normed * weight` by the states that `normed` is the norm of, and by the weight."""
    product = grad * normed
    grad_weight = product.flatten(0, -2).sum(0)
    mean = torch.matmul(product, weight)[..., None].div_(-weight.shape[0])
    # inverse * (grad * weight - normed * mean), in the memory that is there already.
    torch.mul(normed, mean, out=product)
    return product.addcmul_(grad, weight).mul_(inverse), grad_weight


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`states / sqrt(mean(states**2) + epsilon) * weight` over the last dimension, inside in float32 or more."""
    precise, dtype = _precise(states), torch.promote_types(states.dtype, weight.dtype)
    if fuses_by_hand(states):
        return _RMSNorm.apply(precise, weight.to(precise.dtype), epsilon).to(dtype)
    inverse = torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + epsilon)
    return (precise * inverse * weight).to(dtype)


def _precise(states: torch.Tensor) -> torch.Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, cos, sin, epsilon: float) -> torch.Tensor:
        inverse = _inverse_rms(states, epsilon)
        ctx.save_for_backward(states, weight, inverse, cos, sin)
        half = states.shape[-1] // 2
        swapped = torch.cat([weight[half:], weight[:half]])
        rotated = torch.cat([-states[..., half:], states[..., :half]], dim=-1).mul_(sin * swapped)
        return rotated.addcmul_(states, cos * weight).mul_(inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        states, weight, inverse, cos, sin = ctx.saved_tensors
        half = states.shape[-1] // 2
        scaled = grad * sin
        back = torch.cat([scaled[..., half:], -scaled[..., :half]], dim=-1).addcmul_(grad, cos)
        return *_rms_norm_backward(back, states * inverse, weight, inverse), None, None, None


def norm_and_rotate(
    states: torch.Tensor, norm: Qwen3RMSNorm, cos: torch.Tensor, sin: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """RMS norm of each head, then rotary embedding.

    Args:
        states: `(batch_size, seq_len, num_heads, head_dim)`.
        norm: over `head_dim`.
        cos, sin: `(1 or batch_size, seq_len, head_dim)`.
        scale: factor of the result.
    """
    weight, epsilon = norm.weight if scale == 1.0 else norm.weight * scale, norm.variance_epsilon
    precise, dtype = _precise(states), torch.promote_types(states.dtype, weight.dtype)
    cos, sin = cos[:, :, None].to(precise.dtype), sin[:, :, None].to(precise.dtype)
    if fuses_by_hand(states):
        return _NormRotate.apply(precise, weight.to(precise.dtype), cos, sin, epsilon).to(dtype)
    normed = rms_norm(precise, weight, epsilon)
    half = states.shape[-1] // 2
    return (normed * cos + torch.cat([-normed[..., half:], normed[..., :half]], dim=-1) * sin).to(dtype)


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


def reorder(rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Rows in another order; given the inverse, the gradient is read and not added up row by row.

    Args:
        rows: `(num_rows, width)`.
        order, inverse: `(num_rows,)`, permutations that undo each other.
    """
    if torch.compiler.is_compiling():
        return rows[order]
    return _Reorder.apply(rows, order, inverse)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: torch.Tensor, probability: float) -> torch.Tensor:
        scale = kept_scale(states.shape, probability, states.dtype)
        ctx.save_for_backward(scale)
        return states * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        return grad * ctx.saved_tensors[0], None


def dropout(states: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """As `torch.nn.functional.dropout`, at a fourth of its cost on the CPU."""
    if not training or probability == 0:
        return states
    # The same with and without gradients: a checkpoint's first pass and its recomputation must drop the same.
    if probability > 0.99 or not runs_by_hand(states):
        return F.dropout(states, probability)
    return _Dropout.apply(states, probability)


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return dropout(states, self.p, self.training)


class FusedQwen3RMSNorm(Qwen3RMSNorm):
    """`Qwen3RMSNorm` by `rms_norm`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class FusedSwitchLayerNorm(SwitchTransformersLayerNorm):
    """`SwitchTransformersLayerNorm` by `rms_norm`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a linear map is no more than its weight: no bias, nothing replaced, no hook to run around it."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    hooked = any(hooks) or hasattr(layer, "_hf_hook")
    return type(layer) is kind and getattr(layer, "bias", None) is None and not hooked


class _Joined(torch.autograd.Function):
    """Weights of one type in another one, behind each other, in one pass."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: torch.Tensor) -> torch.Tensor:
        ctx.sizes, ctx.dtype = [len(weight) for weight in weights], weights[0].dtype
        if ctx.dtype == dtype:
            return torch.cat(weights)
        joint = weights[0].new_empty(sum(ctx.sizes), weights[0].shape[1], dtype=dtype)
        for part, weight in zip(joint.split(ctx.sizes), weights, strict=True):
            part.copy_(weight)
        return joint

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        return None, *(part.to(ctx.dtype) for part in grad.split(ctx.sizes))


def joint_linear(states: torch.Tensor, *layers: nn.Linear) -> tuple[torch.Tensor, ...]:
    """Several linear maps of the same states as one product."""
    # Layers that an adapter or a quantizer has replaced have a forward of their own; without gradients the copy of the
    # weights costs more than it saves.
    if not (all(map(is_plain, layers)) and torch.is_grad_enabled()):
        return tuple(layer(states) for layer in layers)
    weights = [layer.weight for layer in layers]
    if len({weight.dtype for weight in weights}) > 1 or not runs_by_hand(states):
        joint = F.linear(states, torch.cat(weights))
    else:
        joint = F.linear(states, _Joined.apply(product_dtype(states), *weights))
    return joint.split([layer.out_features for layer in layers], dim=-1)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    probability: float = 0.0,
    causal: bool = False,
) -> torch.Tensor:
    """Attention under a mask, by whatever is fastest for its size.

    Args:
        queries: `(batch_size, num_heads, query_len, head_dim)`.
        keys, values: `(batch_size, num_kv_heads, key_len, head_dim)`; each serves a group of query heads.
        mask: broadcast to `(batch_size, num_heads, query_len, key_len)`; boolean, true for visible keys, or added to
            the scores, with a large negative finite number for a hidden key.
        scaling: factor of the scores.
        probability: of dropping an attention weight.
        causal: whether the mask hides from every query the keys behind it, the last query being at the last key.

    Returns:
        `(batch_size, query_len, num_heads * head_dim)`
    """
    batch, heads, length, _ = queries.shape
    groups = heads // keys.shape[1]
    small = keys.shape[2] <= MAX_KEYS_OF_PLAIN_ATTENTION or probability > 0
    small = small or (mask is not None and mask.requires_grad)  # The kernel has no gradient by the mask.
    # With dropout also without gradients, for the sake of checkpoints.
    by_hand = fuses_by_hand(queries) or (probability > 0 and runs_by_hand(queries))
    if small and by_hand:
        return PlainAttention.apply(queries, keys, values, mask, scaling, probability, causal)
    dtype = torch.promote_types(queries.dtype, values.dtype)
    queries, keys, values = queries.to(dtype), keys.to(dtype), values.to(dtype)
    if mask is not None and mask.dtype not in (torch.bool, dtype):
        mask = mask.clamp(min=torch.finfo(dtype).min).to(dtype)
    if groups > 1 and queries.device.type != "cpu":
        # With a mask, grouped heads would send GPUs to a kernel that writes all scores to memory.
        keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
        groups = 1
    output = F.scaled_dot_product_attention(
        queries, keys, values, mask, probability, scale=scaling, enable_gqa=groups > 1
    )
    return output.transpose(1, 2).reshape(batch, length, -1)


__all__ = [
    "HIDDEN",
    "MAX_KEYS_OF_PLAIN_ATTENTION",
    "Dropout",
    "FusedQwen3RMSNorm",
    "FusedSwitchLayerNorm",
    "attend",
    "dropout",
    "hidden_score",
    "is_plain",
    "joint_linear",
    "norm_and_rotate",
    "reorder",
    "rms_norm",
]
