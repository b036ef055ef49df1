"""MBGen one token at a time: the encoder once per user, the decoder for all beams of a user together."""

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .shared_history import (
    BeamCache,
    SharedHistory,
    Tokens,
    hiding_bias,
    own_attention,
    shared_attention,
    step_routing,
)


class _KeptLayer(DynamicLayer):
    """Keeps the first keys and values as they are, where the stock layer copies them behind nothing."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states


def _tokens(keys: torch.Tensor, values: torch.Tensor) -> Tokens:
    """`(num_users, num_heads, len, head_dim)` token by token, for all beams of a user."""
    return tuple(
        (key.flatten(1)[:, None], value.flatten(1)[:, None])
        for key, value in zip(keys.unbind(2), values.unbind(2), strict=True)
    )


class MBGenDecoder:
    """Reads histories and prompts once, then decodes beams that share them.

    Args:
        model: the model.
        input_ids, attention_mask: `(num_users, seq_len)` histories.
        decoder_input_ids: `(num_users, prompt_len)` BOS and the prompt.

    Attributes:
        history: the encoder's input and last hidden states.
        hidden: `(num_users, 1, d_model)` last hidden state of the prompt's last token.
        cache: that of one beam per user, without generated tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.LongTensor,
    ):
        self.decoder, self.space, config = model.decoder, model.config.token_space, model.config
        self.inject_behavior_tokens = config.inject_behavior_tokens
        states = model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        self.history = SharedHistory(input_ids, attention_mask.bool(), states)
        prompted = self.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            past_key_values=EncoderDecoderCache(DynamicCache(), Cache(layer_class_to_replicate=_KeptLayer)),
            use_cache=True,
        )
        self.hidden = prompted.last_hidden_state[:, -1:]
        past = prompted.past_key_values
        self.prompts = [_tokens(layer.keys, layer.values) for layer in past.self_attention_cache.layers]
        self.history_keys = [(layer.keys, layer.values) for layer in past.cross_attention_cache.layers]
        self.history_bias = hiding_bias(self.history.mask, states.dtype)[:, None, None, None]
        behaviors = self.space.behavior_indices(decoder_input_ids, include_behavior_tokens=True)[:, -1:]
        states = prompted.last_hidden_state[:, None, 1:]
        self.cache = BeamCache(((),) * len(self.decoder.block), behaviors, states)

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
            `(num_users, num_beams, d_model)` last hidden states, and the cache of the new beams.
        """
        cache = cache.select(parents)
        behaviors, routing = step_routing(self.space, cache, tokens, slot, self.inject_behavior_tokens)
        bias = self._position_bias(len(self.prompts[0]) + cache.depth)
        hidden, layers = self.decoder.embed_tokens(tokens), []
        for block, past, prompt, history in zip(
            self.decoder.block, cache.layers, self.prompts, self.history_keys, strict=True
        ):
            normed, attention = block.layer[0].layer_norm(hidden), block.layer[0].SelfAttention
            own = (*past, (attention.k(normed), attention.v(normed)))
            hidden = hidden + attention.o(own_attention(attention.q(normed), prompt + own, bias))
            normed, attention = block.layer[1].layer_norm(hidden), block.layer[1].EncDecAttention
            hidden = hidden + attention.o(shared_attention(attention.q(normed), *history, self.history_bias))
            hidden = block.layer[-1](hidden, routing)
            layers.append(own)
        hidden = self.decoder.final_layer_norm(hidden)
        return hidden, cache.grow(layers, behaviors, hidden)

    def _position_bias(self, depth: int) -> torch.Tensor:
        """Relative position bias of the token behind `depth` others, `(num_heads, depth + 1)`."""
        attention = self.decoder.block[0].layer[0].SelfAttention
        return attention.compute_bias(1, depth + 1, past_seen_tokens=depth)[0, :, 0]


__all__ = ["MBGenDecoder"]
