"""GAMER one token at a time: history and prompt once per user, then all beams of a user together."""

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from .shared_history import (
    BeamCache,
    SharedHistory,
    grouped_attention,
    hiding_bias,
    shared_attention,
    step_routing,
)


class GamerDecoder:
    """Reads histories and prompts once, then decodes beams that share them.

    What is generated continues one interaction: it has a single behavior, hence a single level, so that cross-level
    attention reads the shared keys only. Self-attention sees all of the history under both of its rules, since
    session-wise the interaction has a session of its own, after all others.

    Args:
        model: the model.
        input_ids, attention_mask: `(num_users, seq_len)` histories and prompts, padded on the left.
        prompt_len: number of tokens at the end of a row that belong to the interaction asked for.
        session_ids: `(num_users, seq_len + 1)` with session-wise attention; the last column is the session of what is
            generated.

    Attributes:
        history: the rows and their last hidden states.
        hidden: `(num_users, 1, hidden_size)` last hidden state of the last token.
        cache: that of one beam per user, without generated tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        prompt_len: int,
        session_ids: torch.LongTensor | None = None,
    ):
        self.model, self.config, self.space = model.model, model.config, model.config.token_space
        self.length = input_ids.shape[1]
        sessions = None if session_ids is None else session_ids[:, : self.length]
        keys = DynamicCache()
        states = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            session_ids=sessions,
            past_key_values=keys,
            use_cache=True,
        ).last_hidden_state
        self.keys = [(layer.keys, layer.values) for layer in keys.layers]
        self.history = SharedHistory(input_ids, attention_mask.bool(), states)
        self.hidden = states[:, -1:]
        self.opened_session = None if session_ids is None else session_ids[:, self.length :]
        self.history_bias = hiding_bias(self.history.mask, states.dtype)[:, None, None, None]
        behaviors = self.space.behavior_indices(input_ids, include_behavior_tokens=True)
        self.levels = torch.tensor([-1, *self.config.behavior_levels], device=input_ids.device)
        # Padding, and tokens without a behavior, lie above every level: nothing sees them.
        above = max(self.config.behavior_levels) + 1
        self.key_levels = self.levels[behaviors].masked_fill((behaviors == 0) | ~self.history.mask, above)
        prompted = states[:, None, self.length - prompt_len :]
        self.cache = BeamCache(((),) * self.config.num_hidden_layers, behaviors[:, -1:], prompted)

    def step(
        self, cache: BeamCache, tokens: torch.LongTensor, parents: torch.LongTensor, slot: int
    ) -> tuple[torch.Tensor, BeamCache]:
        """Feed every beam's new token.

        Args:
            cache: of the beams before.
            tokens: `(num_users, num_beams)` new token ids, all of one slot.
            parents: `(num_users, num_beams)` the beam each one continues.
            slot: the slot of the tokens.

        Returns:
            `(num_users, num_beams, hidden_size)` last hidden states, and the cache of the new beams.
        """
        cache = cache.select(parents)
        behaviors, routing = step_routing(self.space, cache, tokens, slot, inject_behavior_tokens=False)
        hidden, layers = self.model.embed_tokens(tokens), []
        rotation = self.model.rotary_emb(hidden, self._position(cache.depth))
        lower = self.key_levels[:, None, :] < self.levels[behaviors][..., None]
        view = hiding_bias(lower, hidden.dtype)[:, None, :, None], lower.any(-1, keepdim=True)
        for layer, past, shared in zip(self.model.layers, cache.layers, self.keys[: len(cache.layers)], strict=True):
            normed, attention = layer.input_layernorm(hidden), layer.self_attn
            queries, keys = rotated(attention, attention.q_proj(normed), attention.k_proj(normed), rotation)
            own = (*past, (keys, attention.v_proj(normed)))
            attended = grouped_attention(queries, *shared, self.history_bias, own, attention.scaling)
            hidden = hidden + attention.o_proj(attended)
            if layer.cross_attn is not None:
                normed = layer.post_self_attention_layernorm(hidden)
                hidden = hidden + self._cross_level(layer.cross_attn, normed, behaviors, rotation, *view)
            hidden = hidden + layer.mlp(layer.post_cross_attention_layernorm(hidden), routing)
            layers.append(own)
        hidden = self.model.norm(hidden)
        return hidden, cache.grow(layers, behaviors, hidden)

    def _cross_level(self, attention, hidden, behaviors, rotation, bias, sees_something) -> torch.Tensor:
        """Equations 2 to 4 on shared keys; exactly zero for a beam that has nothing to see."""
        queries = attention.q_proj(hidden) + attention.q_behavior_embedding(behaviors)
        queries, _ = rotated(attention, queries, None, rotation)
        shared = self.keys[attention.layer_idx]
        output = attention.o_proj(shared_attention(queries, *shared, bias, attention.scaling))
        return output * nn.functional.silu(attention.gating(hidden)) * sees_something.to(output.dtype)

    def _position(self, depth: int) -> torch.LongTensor:
        """Position of the token behind `depth` generated ones, `(1 or num_users, 1)`."""
        if self.opened_session is not None:
            return self.opened_session + 1
        return torch.full((1, 1), self.length + depth, device=self.key_levels.device)


def rotated(attention, queries, keys, rotation) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys `(num_users, num_beams, width)` after their norms and rotary embedding; keys may be `None`."""
    shape = (*queries.shape[:-1], -1, attention.head_dim)
    queries = attention.q_norm(queries.view(shape))
    keys = queries if keys is None else attention.k_norm(keys.view(shape))
    queries, keys = apply_rotary_pos_emb(queries, keys, *rotation, unsqueeze_dim=2)
    return queries.flatten(2), keys.flatten(2)


__all__ = ["GamerDecoder"]
