"""The loss: log-probabilities of labels without the matrix of all logits.

Logits are made for tokens that have a label, a chunk of tokens at a time; only their log-sum-exp is kept. The backward
pass makes each chunk of logits once more. Probabilities are float32 whatever the type of the product.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .token_space import BEHAVIOR_SLOT, EOS, SPECIAL_SLOT, TokenSpace


LossOver = Literal["vocabulary", "slot"]

LossKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Sums the cross-entropy of `(num_labels,)` labels, of `(num_labels, d_model)` states and the weight of the head."""

# Logits that exist at a time, and the fewest tokens that keep the product of a large vocabulary efficient.
CHUNK_LOGITS = 2**20
CHUNK_TOKENS = 512


class _LabelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        size = max(CHUNK_TOKENS, CHUNK_LOGITS // weight.shape[0])
        precise = torch.promote_types(states.dtype, torch.float32)
        totals = torch.empty(len(labels), dtype=precise, device=states.device)
        picked = torch.empty_like(totals)
        for start in range(0, len(labels), size):
            here = slice(start, start + size)
            logits = (states[here] @ weight.t()).to(precise)
            torch.gather(logits, 1, labels[here, None], out=picked[here, None])
            torch.logsumexp(logits, 1, out=totals[here])
        ctx.save_for_backward(states, weight, labels, totals)
        ctx.size = size
        return picked - totals

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        states, weight, labels, totals = ctx.saved_tensors
        grad_states = torch.empty_like(states)
        grad_weight = torch.zeros(weight.shape, dtype=totals.dtype, device=weight.device)
        for start in range(0, len(labels), ctx.size):
            here = slice(start, start + ctx.size)
            logits = (states[here] @ weight.t()).to(totals.dtype)
            # Of the log-probability by the logits: one at the label, less the probabilities.
            slope = logits.sub_(totals[here, None]).exp_().mul_(-grad[here, None])
            slope.scatter_add_(1, labels[here, None], grad[here, None])
            slope = slope.to(states.dtype)
            torch.mm(slope, weight, out=grad_states[here])
            if grad_weight.dtype == slope.dtype:
                grad_weight.addmm_(slope.t(), states[here])
            else:
                grad_weight += slope.t() @ states[here]
        return grad_states, grad_weight.to(weight.dtype), None


def label_log_probs(
    states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    loss_over: LossOver = "vocabulary",
    space: TokenSpace | None = None,
) -> torch.Tensor:
    """Log-probability of every label.

    Args:
        states: `(..., d_model)` last hidden states.
        weight: `(vocab_size, d_model)` of the head.
        labels: `(...)` token ids, or -100 where there is none.
        temperature: divides the logits.
        loss_over: what the probabilities sum to 1 over: the whole `"vocabulary"`, or the ids that the `"slot"` of the
            label can hold, which is what constrained decoding chooses from. A special token is certain in its slot.
        space: the layout of ids; needed for `"slot"`.

    Returns:
        `(...)` `float32` (`float64` for such states), 0 where there is no label.

    Raises:
        ValueError: an unknown `loss_over`, or `"slot"` without a layout.
    """
    if loss_over not in ("vocabulary", "slot"):
        raise ValueError(f"`loss_over`: expected 'vocabulary' or 'slot', found {loss_over!r}")
    if loss_over == "slot" and space is None:
        raise ValueError("`space`: expected the layout of ids for a loss over the slot, found None")
    states, weight = _as_multiplied(states, weight, temperature)
    shape, states, labels = labels.shape, states.reshape(-1, states.shape[-1]), labels.reshape(-1)
    if loss_over == "vocabulary":
        ranges = [(0, weight.shape[0])]
    else:
        ranges = [space.slot_range(slot) for slot in range(BEHAVIOR_SLOT, space.num_slots)]
    if torch.compiler.is_compiling():
        return _traced(states, weight, labels, ranges).view(shape)
    log_probs = states.new_zeros(len(labels), dtype=torch.promote_types(states.dtype, torch.float32))
    for first, count in ranges:
        rows = ((labels >= first) & (labels < first + count)).nonzero()[:, 0]
        values = _LabelLogProbs.apply(states[rows], weight[first : first + count], labels[rows] - first)
        log_probs = log_probs.index_put((rows,), values)
    return log_probs.view(shape)


def _as_multiplied(
    states: torch.Tensor, weight: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the type of the product, with the temperature in the states."""
    if torch.is_autocast_enabled(states.device.type):
        dtype = torch.get_autocast_dtype(states.device.type)
        states, weight = states.to(dtype), weight.to(dtype)
    return (states if temperature == 1.0 else states / temperature), weight


def _traced(states, weight, labels, ranges) -> torch.Tensor:
    """The same for the compiler, with logits for every token: a number of labels it does not know breaks the graph."""
    log_probs = states.new_zeros(len(labels), dtype=torch.promote_types(states.dtype, torch.float32))
    for first, count in ranges:
        logits = F.linear(states, weight[first : first + count]).to(log_probs.dtype)
        inside = (labels >= first) & (labels < first + count)
        local = torch.where(inside, labels - first, -100)
        log_probs = log_probs - F.cross_entropy(logits, local, reduction="none", ignore_index=-100)
    return log_probs


def token_loss(
    states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_labels: torch.Tensor | int | None = None,
    kernel: LossKernel | None = None,
    **options,
) -> torch.Tensor:
    """Mean cross-entropy of the labels.

    Args:
        states, weight, labels: as for `label_log_probs`.
        num_labels: what the sum is divided by; the number of labels by default.
        kernel: what sums the cross-entropy over the vocabulary instead of `label_log_probs`.
        options: `temperature`, `loss_over` and `space` of `label_log_probs`.
    """
    if kernel is None:
        total = -label_log_probs(states, weight, labels, **options).sum()
    else:
        total = _sum_by_kernel(kernel, states, weight, labels, **options)
    return total / ((labels != -100).sum() if num_labels is None else num_labels)


def _sum_by_kernel(kernel, states, weight, labels, temperature=1.0, loss_over="vocabulary", space=None):
    if loss_over != "vocabulary":
        raise ValueError(f"`loss_over`: expected 'vocabulary' with a kernel for the loss, found {loss_over!r}")
    states, weight = _as_multiplied(states, weight, temperature)
    rows = (labels != -100).flatten().nonzero()[:, 0]
    return kernel(states.flatten(0, -2)[rows], weight, labels.flatten()[rows])


def logits_of_next_slot(
    logits: torch.Tensor, ids: torch.Tensor, space: TokenSpace, last_slot: int = BEHAVIOR_SLOT
) -> torch.Tensor:
    """-inf for ids that the slot of the next token can not hold.

    Args:
        logits: `(batch_size, seq_len, vocab_size)`.
        ids: `(batch_size, seq_len)` the tokens that are followed.
        space: the layout of ids.
        last_slot: slot of what follows the last code of an item: another behavior, or `SPECIAL_SLOT` for EOS.
    """
    following = space.slots(ids) + 1
    following = torch.where(following == space.num_slots, last_slot, following)
    every = torch.arange(logits.shape[-1], device=ids.device)
    slots = torch.where(every == EOS, SPECIAL_SLOT, space.slots(every))
    # Of the special tokens only EOS is ever generated.
    slots = torch.where((slots == SPECIAL_SLOT) & (every != EOS), -1, slots)
    return logits.masked_fill(slots != following[..., None], -torch.inf)


__all__ = ["LossKernel", "LossOver", "label_log_probs", "logits_of_next_slot", "token_loss"]
