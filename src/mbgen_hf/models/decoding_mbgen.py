"""MBGen one token at a time: the encoder once per user, the decoder for all beams of a user together."""

import torch
from transformers import PreTrainedModel

from .shared_history import BeamCache, SharedHistory, append_token, grouped_attention, hiding_bias, step_routing


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
            use_cache=True,
        )
        self.hidden = prompted.last_hidden_state[:, -1:]
        past = prompted.past_key_values
        self.prompt_keys = [(layer.keys, layer.values) for layer in past.self_attention_cache.layers]
        self.history_keys = [(layer.keys, layer.values) for layer in past.cross_attention_cache.layers]
        self.history_bias = hiding_bias(self.history.mask, states.dtype)[:, None, None, None]
        self.prompt_len = decoder_input_ids.shape[1]
        empty = states.new_empty(len(input_ids), 1, 0, config.num_heads * config.d_kv)
        behaviors = self.space.behavior_indices(decoder_input_ids, include_behavior_tokens=True)[:, -1:]
        states = prompted.last_hidden_state[:, None, 1:]
        self.cache = BeamCache(((empty, empty),) * len(self.decoder.block), behaviors, states, 0)

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
        bias = self._position_bias(cache.depth)
        hidden, layers = self.decoder.embed_tokens(tokens), []
        for block, past, prompted, history in zip(
            self.decoder.block, cache.layers, self.prompt_keys, self.history_keys, strict=True
        ):
            normed, attention = block.layer[0].layer_norm(hidden), block.layer[0].SelfAttention
            own = append_token(past, attention.k(normed), attention.v(normed))
            attended = grouped_attention(
                attention.q(normed), *prompted, bias[..., : self.prompt_len], own, bias[..., self.prompt_len :]
            )
            hidden = hidden + attention.o(attended)
            normed, attention = block.layer[1].layer_norm(hidden), block.layer[1].EncDecAttention
            hidden = hidden + attention.o(grouped_attention(attention.q(normed), *history, self.history_bias))
            hidden = block.layer[-1](hidden, routing)
            layers.append(own)
        hidden = self.decoder.final_layer_norm(hidden)
        return hidden, cache.grow(layers, behaviors, hidden)

    def _position_bias(self, depth: int) -> torch.Tensor:
        """Relative position bias of the token behind `depth` generated ones, `(1, num_heads, 1, 1, key_len)`."""
        seen = self.prompt_len + depth
        attention = self.decoder.block[0].layer[0].SelfAttention
        return attention.compute_bias(1, seen + 1, past_seen_tokens=seen)[:, :, None]


__all__ = ["MBGenDecoder"]
