"""What decoding keeps once per user, what it keeps per beam, and attention over both.

A user's history is read once. Its keys and values then serve all beams of the user: the beams are further query rows
of one matrix product per user, so that nothing of the history is copied, moved or reordered. Only the few tokens that
a beam has generated have keys and values of their own.
"""

from dataclasses import dataclass

import torch

from .routed_feed_forward import Routing
from .token_space import BEHAVIOR_SLOT, TokenSpace


@dataclass(frozen=True)
class SharedHistory:
    """The history of every user of a batch, once.

    Args:
        ids: `(num_users, history_len)` token ids the model has read as history.
        mask: `(num_users, history_len)` bool, false for padding.
        hidden_states: `(num_users, history_len, d_model)` last hidden states of these tokens.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    hidden_states: torch.Tensor


@dataclass(frozen=True)
class DecodingContext:
    """What a head may read beside the last hidden states.

    Args:
        history: the users' histories.
        ids: `(num_users, num_beams, depth)` prompt and generated ids of every beam, from the behavior token on.
        states: `(num_users, num_beams, depth, d_model)` last hidden states of these tokens.
    """

    history: SharedHistory
    ids: torch.Tensor
    states: torch.Tensor


@dataclass(frozen=True)
class BeamCache:
    """Keys and values of the generated tokens; all that moves when beams are reordered.

    Args:
        layers: per attention layer, keys and values of shape `(num_users, num_beams, depth, width)`.
        behaviors: `(num_users, num_beams)` behavior of each beam's interaction, 0 = none yet, `1 + class label`.
        states: `(num_users, num_beams, prompt and generated tokens, d_model)` last hidden states of the interaction's
            tokens, from the behavior token on.
        depth: number of generated tokens inside.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    behaviors: torch.Tensor
    states: torch.Tensor
    depth: int

    def select(self, parents: torch.Tensor) -> "BeamCache":
        """The cache of the beams' parents, `(num_users, new_num_beams)` beam numbers."""
        users = torch.arange(len(parents), device=parents.device)[:, None]
        layers = tuple((keys[users, parents], values[users, parents]) for keys, values in self.layers)
        return BeamCache(layers, self.behaviors[users, parents], self.states[users, parents], self.depth)

    def join(self, other: "BeamCache") -> "BeamCache":
        """The beams of both, of one depth."""
        layers = tuple(
            tuple(torch.cat(pair, dim=1) for pair in zip(mine, others, strict=True))
            for mine, others in zip(self.layers, other.layers, strict=True)
        )
        behaviors, states = (
            torch.cat(pair, dim=1) for pair in ((self.behaviors, other.behaviors), (self.states, other.states))
        )
        return BeamCache(layers, behaviors, states, self.depth)

    def grow(self, layers, behaviors: torch.Tensor, hidden: torch.Tensor) -> "BeamCache":
        """The cache with one more token, its last hidden states `(num_users, num_beams, d_model)` included."""
        states = torch.cat([self.states, hidden[:, :, None]], dim=2)
        return BeamCache(tuple(layers), behaviors, states, self.depth + 1)


def step_routing(
    space: TokenSpace, cache: BeamCache, tokens: torch.Tensor, slot: int, inject_behavior_tokens: bool
) -> tuple[torch.Tensor, Routing]:
    """Behaviors of the beams' interactions with their new tokens, and the routing of these.

    Args:
        space: the layout of ids.
        cache: of the beams, without the new tokens.
        tokens: `(num_users, num_beams)` new token ids, all of one slot.
        slot: the slot of the tokens.
        inject_behavior_tokens: whether a behavior token injects its own behavior.
    """
    opens = slot == BEHAVIOR_SLOT
    behaviors = tokens - space.behavior_offset + 1 if opens else cache.behaviors
    injected = torch.zeros_like(behaviors) if opens and not inject_behavior_tokens else behaviors
    return behaviors, Routing.from_slots(torch.full_like(tokens, slot), injected, space.num_slots)


def append_token(
    past: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add one token's `(num_users, num_beams, width)` keys and values behind those of the earlier ones."""
    return torch.cat([past[0], keys[:, :, None]], dim=2), torch.cat([past[1], values[:, :, None]], dim=2)


def grouped_attention(
    queries: torch.Tensor,
    shared_keys: torch.Tensor,
    shared_values: torch.Tensor,
    shared_bias: torch.Tensor | None = None,
    own: tuple[torch.Tensor, torch.Tensor] | None = None,
    own_bias: torch.Tensor | None = None,
    scaling: float = 1.0,
) -> torch.Tensor:
    """Attention of beams to what their user shares and to what is their own, under one softmax.

    Args:
        queries: `(num_users, num_beams, num_heads * head_dim)`.
        shared_keys, shared_values: `(num_users, num_kv_heads, shared_len, head_dim)`.
        shared_bias: added to the scores of the shared keys, broadcast to
            `(num_users, num_kv_heads, num_beams, heads_per_kv_head, shared_len)`; hides a key with a large negative
            finite number, so that a row without any visible key stays finite.
        own: keys and values of shape `(num_users, num_beams, depth, num_kv_heads * head_dim)`.
        own_bias: added to the scores of the own keys, broadcast to the same shape with `depth` last.
        scaling: factor of the scores.

    Returns:
        `(num_users, num_beams, num_heads * head_dim)`
    """
    users, beams, width = queries.shape
    _, kv_heads, length, head_dim = shared_keys.shape
    # (users, kv heads, beams, group, head_dim): beams and the heads that share keys are rows of one product.
    queries = queries.view(users, beams, kv_heads, -1, head_dim).transpose(1, 2)
    precise = torch.promote_types(queries.dtype, torch.float32)
    rows = queries.reshape(users, kv_heads, -1, head_dim) * scaling
    scores = (rows @ shared_keys.transpose(2, 3)).view(users, kv_heads, beams, -1, length)
    if shared_bias is not None:
        scores = scores + shared_bias
    if own is None:
        weights = scores.softmax(-1, dtype=precise).to(rows.dtype)
    else:
        # A handful of keys for each row: products and sums beat thousands of tiny matrix products.
        own_keys, own_values = (tensor.view(users, beams, -1, kv_heads, 1, head_dim) for tensor in own)
        grouped = rows.view(users, kv_heads, beams, -1, head_dim).transpose(1, 2)
        own_scores = (grouped[:, :, None] * own_keys).sum(-1).permute(0, 3, 1, 4, 2)
        if own_bias is not None:
            own_scores = own_scores + own_bias
        both = torch.cat([scores, own_scores], dim=-1).softmax(-1, dtype=precise).to(rows.dtype)
        weights, own_weights = both[..., :length], both[..., length:]
    output = weights.reshape(users, kv_heads, -1, length) @ shared_values
    output = output.view(users, kv_heads, beams, -1, head_dim).transpose(1, 2)
    if own is not None:
        output = output + (own_weights.permute(0, 2, 4, 1, 3)[..., None] * own_values).sum(2)
    return output.reshape(users, beams, width)


def hiding_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where visible, the lowest finite number elsewhere."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, lowest)


__all__ = [
    "BeamCache",
    "DecodingContext",
    "SharedHistory",
    "append_token",
    "grouped_attention",
    "hiding_bias",
    "step_routing",
]
