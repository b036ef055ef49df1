"""What decoding keeps once per user, what it keeps per beam, and attention over both.

A user's history is read once. Its keys and values then serve all beams of the user: the beams are further query rows
of one matrix product per user, so that nothing of the history is copied, moved or reordered. Only the few tokens that
a beam has generated have keys and values of their own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

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


# Keys and values of a few tokens, one after the other and each pair apart: nothing is copied when one more comes.
Tokens = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class BeamCache:
    """Keys and values of a beam's own tokens; all that moves when beams are reordered.

    Args:
        layers: per attention layer the tokens, each with its keys and values of shape `(num_users, num_beams, width)`.
        behaviors: `(num_users, num_beams)` behavior of each beam's interaction, 0 = none yet, `1 + class label`.
        states: `(num_users, num_beams, prompt and generated tokens, d_model)` last hidden states of the interaction's
            tokens, from the behavior token on.
    """

    layers: tuple[Tokens, ...]
    behaviors: torch.Tensor
    states: torch.Tensor

    @property
    def depth(self) -> int:
        """Number of tokens whose keys and values are inside."""
        return len(self.layers[0])

    def select(self, parents: torch.Tensor) -> "BeamCache":
        """The cache of the beams' parents, `(num_users, new_num_beams)` beam numbers."""
        users = torch.arange(len(parents), device=parents.device)[:, None]
        layers = tuple(
            tuple((keys[users, parents], values[users, parents]) for keys, values in tokens) for tokens in self.layers
        )
        return BeamCache(layers, self.behaviors[users, parents], self.states[users, parents])

    def join(self, other: "BeamCache") -> "BeamCache":
        """The beams of both, of one depth."""
        layers = tuple(
            tuple(
                tuple(torch.cat(pair, dim=1) for pair in zip(*tokens, strict=True))
                for tokens in zip(mine, others, strict=True)
            )
            for mine, others in zip(self.layers, other.layers, strict=True)
        )
        behaviors, states = (
            torch.cat(pair, dim=1) for pair in ((self.behaviors, other.behaviors), (self.states, other.states))
        )
        return BeamCache(layers, behaviors, states)

    def grow(self, layers, behaviors: torch.Tensor, hidden: torch.Tensor) -> "BeamCache":
        """The cache with one more token, its last hidden states `(num_users, num_beams, d_model)` included."""
        states = torch.cat([self.states, hidden[:, :, None]], dim=2)
        return BeamCache(tuple(layers), behaviors, states)


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
    return behaviors, Routing.of_slot(slot, injected)


def shared_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scaling: float = 1.0,
) -> torch.Tensor:
    """Attention of beams to what their user shares: all beams of a user are query rows of one attention.

    Args:
        queries: `(num_users, num_beams, num_heads * head_dim)`.
        keys, values: `(num_users, num_kv_heads, length, head_dim)`.
        bias: added to the scores, broadcast to `(num_users, num_kv_heads, num_beams, heads_per_kv_head, length)`;
            hides a key with a large negative finite number, so that a row without any visible key stays finite.
        scaling: factor of the scores.

    Returns:
        `(num_users, num_beams, num_heads * head_dim)`
    """
    users, beams, _ = queries.shape
    rows, group = _rows_of_kv_heads(queries, keys)
    # One row for all beams, or one for each head of each beam.
    bias = bias.expand(-1, -1, -1, group if bias.shape[2] > 1 else 1, -1).flatten(2, 3)
    output = F.scaled_dot_product_attention(rows, keys, values, bias, scale=scaling)
    return _beams_of_kv_heads(output, users, beams)


def own_attention(queries: torch.Tensor, tokens: Tokens, bias: torch.Tensor, scaling: float = 1.0) -> torch.Tensor:
    """Attention of every beam to a few tokens of its own.

    Args:
        queries: `(num_users, num_beams, num_heads * head_dim)`.
        tokens: keys and values of shape `(num_users, num_beams or 1, num_heads * head_dim)`.
        bias: `(num_heads, len(tokens))`, added to the scores.
        scaling: factor of the scores.

    Returns:
        `(num_users, num_beams, num_heads * head_dim)`
    """
    grouped = (queries * scaling).view(*queries.shape[:2], len(bias), 1, -1)
    scores = _own_scores(grouped, tokens) + bias[:, None]
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(queries.dtype)
    return _own_output(weights, tokens).view(queries.shape)


def grouped_attention(
    queries: torch.Tensor,
    shared_keys: torch.Tensor,
    shared_values: torch.Tensor,
    shared_bias: torch.Tensor,
    tokens: Tokens,
    scaling: float = 1.0,
) -> torch.Tensor:
    """Attention of beams to what their user shares and to what is their own, under one softmax.

    Args:
        queries, shared_keys, shared_values, shared_bias, scaling: as in `shared_attention`.
        tokens: keys and values of shape `(num_users, num_beams, num_kv_heads * head_dim)`.

    Returns:
        `(num_users, num_beams, num_heads * head_dim)`
    """
    users, beams, _ = queries.shape
    _, kv_heads, length, head_dim = shared_keys.shape
    rows, _ = _rows_of_kv_heads(queries * scaling, shared_keys)
    scores = (rows @ shared_keys.transpose(2, 3)).view(users, kv_heads, beams, -1, length) + shared_bias
    own_scores = _own_scores(rows.view(*scores.shape[:4], head_dim).transpose(1, 2), tokens).transpose(1, 2)
    precise = torch.promote_types(queries.dtype, torch.float32)
    both = torch.cat([scores, own_scores], dim=-1).softmax(-1, dtype=precise).to(rows.dtype)
    weights, own_weights = both[..., :length], both[..., length:]
    output = weights.reshape(users, kv_heads, -1, length) @ shared_values
    output = output.view(*scores.shape[:4], head_dim).transpose(1, 2) + _own_output(
        own_weights.transpose(1, 2), tokens
    )
    return output.reshape(queries.shape)


def _own_scores(queries: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """`(num_users, num_beams, num_kv_heads, group, head_dim)` to the scores of the tokens, `(..., len(tokens))`."""
    # A handful of keys for each row: products and sums beat thousands of tiny matrix products.
    shape = (*queries.shape[2:3], 1, queries.shape[-1])
    return torch.stack([(queries * keys.view(*keys.shape[:2], *shape)).sum(-1) for keys, _ in tokens], dim=-1)


def _own_output(weights: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Weighted sum of the tokens' values, `(num_users, num_beams, num_kv_heads, group, head_dim)`."""
    output = None
    for weight, (_, values) in zip(weights.unsqueeze(-2).unbind(-1), tokens, strict=True):
        values = values.view(*values.shape[:2], weights.shape[2], 1, -1)
        output = weight * values if output is None else output.addcmul_(weight, values)
    return output


def _rows_of_kv_heads(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`(num_users, num_kv_heads, num_beams * group, head_dim)`: beams, and the heads that share keys, as rows."""
    users, beams, _ = queries.shape
    _, kv_heads, _, head_dim = keys.shape
    queries = queries.view(users, beams, kv_heads, -1, head_dim)
    return queries.transpose(1, 2).reshape(users, kv_heads, -1, head_dim), queries.shape[3]


def _beams_of_kv_heads(rows: torch.Tensor, users: int, beams: int) -> torch.Tensor:
    """The way back, to `(num_users, num_beams, num_heads * head_dim)`."""
    return rows.view(users, rows.shape[1], beams, -1, rows.shape[-1]).transpose(1, 2).reshape(users, beams, -1)


def hiding_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where visible, the lowest finite number elsewhere."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, lowest)


__all__ = [
    "BeamCache",
    "DecodingContext",
    "SharedHistory",
    "Tokens",
    "grouped_attention",
    "hiding_bias",
    "own_attention",
    "shared_attention",
    "step_routing",
]
