"""GAMER: generative recommendation via hierarchical behavior modeling, a decoder on Qwen3 (Wang et al. 2025)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache, DynamicCache, Qwen3ForCausalLM, Qwen3Model, Qwen3PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .by_hand import fuses_by_hand
from .configuration_gamer import GamerConfig
from .constrained_generation import ConstrainedGenerationMixin
from .copying_search import copied_log_probs
from .decoding_gamer import GamerDecoder
from .fused_operations import (
    MAX_KEYS_OF_PLAIN_ATTENTION,
    Dropout,
    FusedQwen3RMSNorm,
    attend,
    hidden_score,
    joint_linear,
    norm_and_rotate,
)
from .history_copying import HistoryCopying, likelihood_gain, mixed_log_probs, precise
from .interactions import Interactions
from .routed_feed_forward import RoutedGatedFeedForward, RoutedLinear, Routing
from .token_loss import LossKernel, label_log_probs, logits_of_next_slot, token_loss
from .token_space import BEHAVIOR_SLOT, PAD


@dataclass(frozen=True)
class CrossLevelView:
    """What cross-level attention needs to know of a forward pass; made once by the model, read by each layer.

    Args:
        mask: the attention mask in the form of the attention implementation.
        behaviors: `(batch_size, seq_len)` rows of the behavior embeddings, behavior tokens included, 0 = none.
        sees_something: `(batch_size, seq_len, 1)` whether a token has any earlier token of a lower level.
    """

    mask: object
    behaviors: torch.Tensor
    sees_something: torch.Tensor


class GamerAttention(Qwen3Attention):
    """`Qwen3Attention` with one product for queries, keys and values where attention is SDPA."""

    def __init__(self, config: GamerConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.q_norm = FusedQwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = FusedQwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.config._attn_implementation != "sdpa":
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        projected = joint_linear(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        output = self._attend(*projected, position_embeddings, attention_mask, past_key_values)
        return self.o_proj(output), None

    def _attend(self, queries, keys, values, position_embeddings, mask, past_key_values) -> torch.Tensor:
        """Attention of projected states `(batch_size, seq_len, width)`, before the last projection."""
        shape = (*queries.shape[:-1], -1, self.head_dim)
        # Where there are gradients, the scores are scaled along with the norm.
        scale, rest = (self.scaling, 1.0) if fuses_by_hand(queries) else (1.0, self.scaling)
        queries = norm_and_rotate(queries.view(shape), self.q_norm, *position_embeddings, scale).transpose(1, 2)
        keys = norm_and_rotate(keys.view(shape), self.k_norm, *position_embeddings).transpose(1, 2)
        values = values.view(shape).transpose(1, 2)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        probability = self.attention_dropout if self.training else 0.0
        return attend(queries, keys, values, mask, rest, probability, causal=True)


class GamerCrossLevelAttention(GamerAttention):
    """Attention to earlier tokens of strictly lower behavior level, with a gate (equations 2 to 4).

    A token with nothing to see receives exactly zero, forward and backward. Implementations differ in what softmax
    makes of a row without a key, so such a row is given its own key and its result multiplied by zero.
    """

    def __init__(self, config: GamerConfig, layer_idx: int, cache_idx: int):
        super().__init__(config, layer_idx)
        self.layer_idx = cache_idx
        rows = len(config.behaviors) + 1
        key_width = config.num_key_value_heads * self.head_dim
        self.q_behavior_embedding = nn.Embedding(rows, config.num_attention_heads * self.head_dim)
        self.k_behavior_embedding = nn.Embedding(rows, key_width)
        self.v_behavior_embedding = nn.Embedding(rows, key_width)
        self.gating = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        view: CrossLevelView,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        queries, keys, values, gate = joint_linear(hidden_states, self.q_proj, self.k_proj, self.v_proj, self.gating)
        queries = queries + self.q_behavior_embedding(view.behaviors)
        keys = keys + self.k_behavior_embedding(view.behaviors)
        values = values + self.v_behavior_embedding(view.behaviors)
        if self.config._attn_implementation == "sdpa":
            output = self._attend(queries, keys, values, position_embeddings, view.mask, past_key_values)
        else:
            output = self._attend_by_interface(
                queries, keys, values, position_embeddings, view.mask, past_key_values, **kwargs
            )
        gate = nn.functional.silu(gate) * view.sees_something.to(gate.dtype)
        return self.o_proj(output) * gate

    def _attend_by_interface(self, queries, keys, values, position_embeddings, mask, past_key_values, **kwargs):
        """The same with the attention implementation that the configuration names."""
        shape = (*queries.shape[:-1], -1, self.head_dim)
        queries = self.q_norm(queries.view(shape)).transpose(1, 2)
        keys = self.k_norm(keys.view(shape)).transpose(1, 2)
        values = values.view(shape).transpose(1, 2)
        queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attend(
            self,
            queries,
            keys,
            values,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return output.reshape(*shape[:-2], -1)


class GamerDecoderLayer(GradientCheckpointingLayer):
    """Causal self-attention, cross-level behavior attention where listed, slot-routed experts (figure 1)."""

    def __init__(self, config: GamerConfig, layer_idx: int):
        super().__init__()
        self.self_attn = GamerAttention(config, layer_idx)
        self.input_layernorm = FusedQwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn = None
        if layer_idx in config.cross_level_layers:
            # The keys of the second attention layer of a block lie behind those of all first ones in the cache.
            cache_idx = config.num_hidden_layers + sorted(config.cross_level_layers).index(layer_idx)
            self.cross_attn = GamerCrossLevelAttention(config, layer_idx, cache_idx)
            self.post_self_attention_layernorm = FusedQwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = RoutedGatedFeedForward(
            d_model=config.hidden_size,
            d_ff=config.intermediate_size,
            num_experts=config.token_space.num_slots if layer_idx in config.routed_layers else 1,
            num_behaviors=len(config.behaviors),
            injection_dim=config.behavior_embedding_dim if layer_idx in config.injection_layers else 0,
            activation=ACT2FN[config.hidden_act],
            dropout=config.expert_dropout,
        )
        self.post_cross_attention_layernorm = FusedQwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        routing: Routing | None = None,
        view: CrossLevelView | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        if self.cross_attn is not None:
            normed = self.post_self_attention_layernorm(hidden_states)
            crossed = self.cross_attn(normed, position_embeddings, view, past_key_values, **kwargs)
            hidden_states = hidden_states + self.dropout(crossed)
        normed = self.post_cross_attention_layernorm(hidden_states)
        return hidden_states + self.dropout(self.mlp(normed, routing))


class GamerPreTrainedModel(Qwen3PreTrainedModel):
    config: GamerConfig
    _no_split_modules = ["GamerDecoderLayer"]
    # Flash attention takes no mask beyond causality and padding: levels, sessions and packing would be ignored.
    _supports_flash_attn = False
    _can_record_outputs = {
        "hidden_states": GamerDecoderLayer,
        "attentions": OutputRecorder(Qwen3Attention, index=1, layer_name="self_attn"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RoutedLinear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, HistoryCopying):
            module.reset_parameters()
        elif isinstance(module, ConstrainedGenerationMixin):
            module.reset_catalog()


class GamerModel(GamerPreTrainedModel, Qwen3Model):
    """The decoder without a head; derives slots, levels and behaviors from its ids."""

    def __init__(self, config: GamerConfig):
        # Past `Qwen3Model.__init__`, which would build its own layers first.
        super(Qwen3Model, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(GamerDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = FusedQwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        all_input_ids: torch.LongTensor | None = None,
        session_ids: torch.LongTensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        whole_rows: bool = False,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`): `[BOS?, (b, c0..c_{m-1}) x n]`, padded on
                either side; with a filled cache only the new tokens.
            attention_mask (`torch.Tensor` of shape `(batch_size, total_len)`, *optional*): 1 for tokens, 0 for
                padding; where the ids are not PAD by default.
            position_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): 0, 1, 2, ... by default.
            all_input_ids (`torch.LongTensor` of shape `(batch_size, total_len)`, *optional*): the ids behind the cache
                and the new ones together, from which behaviors and levels follow; `input_ids` where no cache is
                filled. `generate` supplies it.
            session_ids (`torch.LongTensor` of shape `(batch_size, total_len)`, *optional*): session of every token,
                not decreasing, from 0 in each row or packed sequence; BOS and padding have -1. Needed by
                `session_wise_attention`.
            sequence_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): number of the packed
                sequence each token belongs to, ascending; tokens see their own sequence only.
            whole_rows (`bool`, *optional*): whether rows are known to be as above, padded on the right; experts then
                take their tokens by place. Collators say so.

        Raises:
            ValueError: no `input_ids`, a filled cache without `all_input_ids`, a cache with too few layers, or no
                `session_ids` where needed.
        """
        if input_ids is None:
            raise ValueError("`input_ids`: expected token ids, found None; embeddings carry no slot")
        if use_cache and past_key_values is None:
            # Grows on demand: there are more attention layers than `num_hidden_layers`.
            past_key_values = DynamicCache()
        self._provide_for_all_layers(past_key_values)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if all_input_ids is None:
            if seen > 0:
                raise ValueError(
                    "`all_input_ids`: expected the ids behind a filled cache together with the new ones, found None"
                )
            all_input_ids = input_ids
        if self.config.session_wise_attention and session_ids is None:
            raise ValueError(
                "`session_ids`: expected a session for every token with session-wise attention, found None"
            )
        if attention_mask is None:
            attention_mask = all_input_ids != PAD
        new = slice(all_input_ids.shape[1] - input_ids.shape[1], None)
        if position_ids is None:
            position_ids = self._positions(input_ids, seen, session_ids, sequence_ids, new)
        hidden_states = self.embed_tokens(input_ids)
        masks = {
            "config": self.config,
            "inputs_embeds": hidden_states,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
        }
        self_mask = self._mask(masks, self._self_rule(all_input_ids, session_ids, sequence_ids), new)
        space = self.config.token_space
        slots, behaviors = space.slots(input_ids), space.behavior_indices(all_input_ids, include_behavior_tokens=True)
        view = self._cross_level_view(masks, behaviors, attention_mask, session_ids, sequence_ids, new)
        injected = torch.where(slots == BEHAVIOR_SLOT, 0, behaviors[:, new])
        padding = (input_ids == PAD) & ~attention_mask[:, -input_ids.shape[1] :].bool()
        num_special = int(self.config.add_bos_token) if whole_rows else None
        routing = Routing.from_slots(slots, injected, space.num_slots, padding, num_special)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=self_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                routing=routing,
                view=view,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _provide_for_all_layers(self, cache: Cache | None) -> None:
        """`DynamicCache(config=...)` counts one attention layer per block: add those of the cross-level layers."""
        if cache is None or cache.layer_class_to_replicate is not None:
            return
        # The copying head keeps final states as one more.
        needed = self.config.num_hidden_layers + len(self.config.cross_level_layers) + self.config.copy_from_history
        if isinstance(cache, DynamicCache):
            cache.layers.extend(DynamicLayer() for _ in range(needed - len(cache.layers)))
        elif len(cache.layers) < needed:
            raise ValueError(
                f"`past_key_values`: expected a DynamicCache, or a cache of {needed} layers with those of cross-level "
                f"attention, found a {type(cache).__name__} of {len(cache.layers)}"
            )

    def _positions(self, input_ids, seen: int, session_ids, sequence_ids, new: slice) -> torch.Tensor:
        """Token positions; session numbers with session-wise attention; counted anew in each packed sequence."""
        if self.config.session_wise_attention:
            return session_ids[:, new] + 1
        if sequence_ids is None:
            return torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        return torch.arange(input_ids.shape[1], device=input_ids.device) - _beginnings(sequence_ids)

    def _self_rule(self, all_input_ids, session_ids, sequence_ids) -> Callable | None:
        """What self-attention sees besides causality; `None` where causality is all."""
        if not self.config.session_wise_attention:
            return None if sequence_ids is None else (lambda b, h, q, k: sequence_ids[b, q] == sequence_ids[b, k])
        interaction = (self.config.token_space.slots(all_input_ids) == BEHAVIOR_SLOT).cumsum(dim=1)
        sequences = torch.zeros_like(all_input_ids) if sequence_ids is None else sequence_ids

        def session_wise(b, h, q, k):
            earlier, own = session_ids[b, k] < session_ids[b, q], interaction[b, k] == interaction[b, q]
            return (sequences[b, q] == sequences[b, k]) & (earlier | own)

        return session_wise

    def _cross_level_view(
        self, masks, behaviors, attention_mask, session_ids, sequence_ids, new: slice
    ) -> CrossLevelView | None:
        """Mask of the strictly lower levels before a token, and which tokens have any.

        With session-wise attention those of earlier sessions only. Appendix C speaks of self-attention; but what
        this layer saw of the running session in training would be missing when the next session is asked for.
        """
        if not self.config.cross_level_layers:
            return None
        # Tokens without a behavior, and padding, are above every level as keys and below every level as queries.
        above = max(self.config.behavior_levels) + 1
        table = torch.tensor([above, *self.config.behavior_levels], device=behaviors.device)
        keys = torch.where(attention_mask[:, -behaviors.shape[1] :].bool(), table[behaviors], above)
        queries = torch.where(keys == above, -1, keys)
        # A later packed sequence lies below all levels of an earlier one: its own minimum starts with it.
        shift = 0 if sequence_ids is None else sequence_ids * (above + 2)
        lowest_before = nn.functional.pad((keys - shift).cummin(dim=1).values, (1, 0), value=above)[:, :-1]
        sequences = torch.zeros_like(keys) if sequence_ids is None else sequence_ids
        sessions = session_ids if self.config.session_wise_attention else None
        if sessions is not None:
            lowest_before = lowest_before.gather(1, _beginnings(sessions, sequences))
        sees = lowest_before < queries - shift

        def strictly_lower(b, h, q, k):
            lower = (keys[b, k] < queries[b, q]) & (sequences[b, q] == sequences[b, k])
            if sessions is not None:
                lower = lower & (sessions[b, k] < sessions[b, q])
            return lower | (~sees[b, q] & (q == k))

        # Padding is excluded by its level. Without the padding mask on top, a padded row keeps its own key as well, so
        # that no implementation meets a row without any.
        mask = self._mask(masks | {"attention_mask": None}, strictly_lower, new)
        return CrossLevelView(mask, behaviors[:, new], sees[:, new, None])

    def _mask(self, masks: dict, rule: Callable | None, new: slice):
        """Causal mask with a rule on top, as the attention implementation takes it.

        For SDPA `(batch_size, 1, seq_len, total_len)`: boolean where a kernel reads it, else something to add.
        """
        if self.config._attn_implementation != "sdpa":
            return create_causal_mask(**masks, and_mask_function=rule)
        states, present = masks["inputs_embeds"], masks["attention_mask"]
        length = new.start + states.shape[1] if present is None else present.shape[1]
        rows = torch.arange(len(states), device=states.device)[:, None, None]
        columns = torch.arange(length, device=states.device)
        queries, keys = columns[new][None, :, None], columns[None, None]
        mask = keys <= queries
        if present is not None:
            # Padding sees itself, so that no kernel meets a row without any key.
            mask = mask & (present[:, None].bool() | (keys == queries))
        if rule is not None:
            mask = mask & rule(rows, 0, queries, keys)
        mask = mask[:, None]
        by_kernel = length > MAX_KEYS_OF_PLAIN_ATTENTION and not (self.training and self.config.attention_dropout)
        if by_kernel or not fuses_by_hand(states):
            return mask
        return torch.where(mask, 0.0, hidden_score(states.dtype)).to(states.dtype)


def _beginnings(*groups: torch.Tensor) -> torch.Tensor:
    """`(batch_size, seq_len)` column in which each run of tokens begins that agree in all of these groups."""
    opens = torch.ones_like(groups[0], dtype=torch.bool)
    opens[:, 1:] = torch.stack([group[:, 1:] != group[:, :-1] for group in groups]).any(0)
    columns = torch.arange(opens.shape[1], device=opens.device)
    return torch.where(opens, columns, 0).cummax(dim=1).values


class GamerForCausalLM(ConstrainedGenerationMixin, GamerPreTrainedModel, Qwen3ForCausalLM):
    """GAMER with its language-model head; `generate` is constrained to the catalog.

    `item_codes`, a persistent buffer of shape `(num_items, m)`, is the catalog: row i holds the codes of item i.
    """

    auto_classes = ("AutoModel", "AutoModelForCausalLM")
    loss_kernel: LossKernel | None = None  # Set for training on GPUs; see `token_loss`.

    def __init__(self, config: GamerConfig):
        super(Qwen3ForCausalLM, self).__init__(config)
        self.model = GamerModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.copying = HistoryCopying.of(config, config.hidden_size)
        self._register_catalog()
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        all_input_ids: torch.LongTensor | None = None,
        session_ids: torch.LongTensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): `input_ids`, with -100 where a
                token does not count; each is predicted from the tokens before it. The loss is their mean
                cross-entropy, of logits divided by `loss_temperature`.
            logits_to_keep (`int`, *optional*): logits of so many last positions only; of all by default.
            skip_logits (`bool`, *optional*): whether to return no logits; by default those of a training pass with
                labels are never made as a whole.

        The other arguments are those of [`GamerModel`].

        Returns:
            `CausalLMOutputWithPast` with `loss` and `logits` of shape `(batch_size, seq_len, vocab_size)` or `None`.
        """
        if labels is not None:
            use_cache = False  # A loss needs no keys and values of the past.
            if not self.config.loss_on_behaviors:
                labels = labels.masked_fill(self.config.token_space.slots(labels) == BEHAVIOR_SLOT, -100)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            all_input_ids=all_input_ids,
            session_ids=session_ids,
            sequence_ids=sequence_ids,
            use_cache=use_cache,
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        states = output.last_hidden_state
        if self.copying is not None and not isinstance(logits_to_keep, int):
            raise ValueError("`logits_to_keep`: expected a number of positions with a copying head, found a tensor")
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        ids = input_ids if all_input_ids is None else all_input_ids
        sessions = session_ids if self.config.session_wise_attention else None
        loss = logits = None
        if labels is not None:
            labels = labels.masked_fill(self._has_no_predecessor(input_ids, attention_mask, sequence_ids), -100)
            loss = self._loss(ids, states, labels, sequence_ids, sessions, kwargs.get("num_items_in_batch"))
        if self.copying is not None and output.past_key_values is not None:
            states = self._cached_states(states, output.past_key_values)
        if not skip_logits and self.copying is not None:
            keep = logits_to_keep or input_ids.shape[1]
            logits = self._copying_log_probs(ids, states, keep, sequence_ids, sessions)
        elif not skip_logits:
            logits = self.lm_head(_last(states, logits_to_keep))
            if self.config.loss_over == "slot":
                logits = logits_of_next_slot(logits, _last(input_ids, logits_to_keep), self.config.token_space)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _loss(self, ids, states, labels, sequence_ids, session_ids, num_labels) -> torch.Tensor:
        """Mean cross-entropy of the labels, less what copying adds to the likelihood of items."""
        head, temperature = self.lm_head.weight, self.config.loss_temperature
        if num_labels is None:
            num_labels = (labels[:, 1:] != -100).sum()
        if self.copying is None:
            over = {"loss_over": self.config.loss_over, "space": self.config.token_space}
            over |= {"temperature": temperature, "kernel": self.loss_kernel}
            return token_loss(states[:, :-1], head, labels[:, 1:], num_labels, **over)
        # An item is copied or not as a whole: the probabilities of all of its tokens are needed, counted or not.
        log_probs = label_log_probs(states[:, :-1], head, ids[:, 1:], temperature)
        gain = self._copying_gain(ids, states, log_probs, labels, sequence_ids, session_ids)
        return -(log_probs[labels[:, 1:] != -100].sum() + gain) / num_labels

    def _cached_states(self, states: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Final states of the whole row: those of earlier passes are kept as one more layer of the cache."""
        layer = self.config.num_hidden_layers + len(self.config.cross_level_layers)
        return cache.update(states[:, None], states[:, None, :, :0], layer)[0][:, 0]

    def _copying_gain(self, ids, states, log_probs, labels, sequence_ids, session_ids) -> torch.Tensor:
        """Sum of what copying adds to the log-likelihood of the items whose codes count in the loss."""
        levels = self.config.token_space.num_code_levels
        history = Interactions.of(ids, self.config.token_space)
        of_token = nn.functional.pad(log_probs, (1, 0))
        columns = history.last[..., None] + torch.arange(1 - levels, 1, device=ids.device)
        of_item = of_token.gather(1, columns.clamp(min=0).flatten(1)).view(columns.shape).sum(-1)
        behavior_columns = (history.last - levels).clamp(min=0)
        choice = self.copying.within_row(states, behavior_columns, history, sequence_ids, session_ids)
        gain = likelihood_gain(choice, of_item, history.codes, history)
        counts = history.whole & (labels.gather(1, history.last) != -100)
        return torch.where(counts, gain, 0.0).sum()

    def _copying_log_probs(self, ids, states, keep: int, sequence_ids, session_ids) -> torch.Tensor:
        """Log-probabilities of the token after each of the last `keep` positions, copying included."""
        space = self.config.token_space
        # A position needs the probabilities of the codes before it, from its behavior token on.
        window = slice(-min(ids.shape[1], keep + space.num_code_levels), None)
        columns = torch.arange(ids.shape[1], device=ids.device)[window]
        known = (space.slots(ids[:, window]) - BEHAVIOR_SLOT).clamp(0, space.num_code_levels)
        history = Interactions.of(ids, space)
        choice = self.copying.within_row(states, (columns - known).clamp(min=0), history, sequence_ids, session_ids)
        generated = precise(self.lm_head(states[:, window])).log_softmax(-1)
        return mixed_log_probs(choice, generated, ids[:, window], history, space)[:, -keep:]

    @staticmethod
    def _has_no_predecessor(input_ids, attention_mask, sequence_ids) -> torch.Tensor:
        """Tokens that nothing predicts: the first of a row, after padding, and of a packed sequence."""
        present = input_ids != PAD if attention_mask is None else attention_mask.bool()
        first = torch.ones_like(present)
        first[:, 1:] = ~present[:, :-1]
        if sequence_ids is not None:
            first[:, 1:] |= sequence_ids[:, 1:] != sequence_ids[:, :-1]
        return first

    def _generation_inputs(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        prompt_ids: torch.LongTensor,
        kwargs: dict,
    ) -> tuple[dict[str, torch.Tensor], int]:
        """History and prompt are one row; its padding is moved to the left."""
        if input_ids is None:
            input_ids = prompt_ids.new_full(
                (len(prompt_ids), int(self.config.add_bos_token)), self.config.bos_token_id
            )
        if attention_mask is None:
            attention_mask = (input_ids != PAD).long()
        if prompt_ids.shape[1] == 0 and not bool(attention_mask.any(dim=1).all()):
            raise ValueError("`prompt`: expected a behavior to start from without a history and BOS, found none")
        order = attention_mask.argsort(dim=1, stable=True)
        inputs = {
            "input_ids": torch.cat([input_ids.gather(1, order), prompt_ids], dim=1),
            "attention_mask": torch.cat([attention_mask.gather(1, order), torch.ones_like(prompt_ids)], dim=1),
        }
        if self.config.session_wise_attention:
            sessions = kwargs.pop("session_ids", None)
            if sessions is None and input_ids.shape[1] > int(self.config.add_bos_token):
                raise ValueError("`session_ids`: expected a session for every token of the history, found None")
            if sessions is None:
                sessions = torch.full_like(input_ids, -1)
            # Whoever padded may not know that padding has no session.
            sessions = sessions.masked_fill(attention_mask == 0, -1)
            # What is asked for and generated happens in a session of its own; the last column stands for all of it.
            opened = sessions.max(dim=1, keepdim=True).values + 1 if sessions.shape[1] else prompt_ids.new_zeros(1, 1)
            opened = opened.expand(len(prompt_ids), prompt_ids.shape[1] + 1)
            inputs["session_ids"] = torch.cat([sessions.gather(1, order), opened], dim=1)
        return inputs, input_ids.shape[1]

    def start_decoding(self, **inputs) -> GamerDecoder:
        """What the shared-history search decodes with, from the tensors of `_generation_inputs`."""
        return GamerDecoder(self, **inputs)

    def next_log_probs(self, hidden_states, slot, context, over_vocabulary=True):
        if self.copying is None or slot == BEHAVIOR_SLOT:
            return super().next_log_probs(hidden_states, slot, context, over_vocabulary)
        return copied_log_probs(self, hidden_states, slot, context)

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, **kwargs):
        sessions = kwargs.pop("session_ids", None)
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        # Beam search reorders the cache but not other inputs: behaviors follow from the full ids at every step.
        inputs["all_input_ids"] = input_ids
        if sessions is not None:
            missing = max(0, input_ids.shape[1] - sessions.shape[1])
            sessions = torch.cat([sessions, sessions[:, -1:].expand(-1, missing)], dim=1)
            inputs["session_ids"] = sessions[:, : input_ids.shape[1]]
            inputs.pop("position_ids", None)
        return inputs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"`cache_implementation`: expected to be left out, found {generation_config.cache_implementation!r}; "
                "GAMER has two attention layers in a block and needs a cache that grows on demand"
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = DynamicCache()


def _last(states: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
    """Of `(batch_size, seq_len, ...)` so many last positions, all of them for 0, or those listed."""
    return states[:, slice(-keep, None) if isinstance(keep, int) else keep]


GamerForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["GamerForCausalLM", "GamerModel", "GamerPreTrainedModel"]
