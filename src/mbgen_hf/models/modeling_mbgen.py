"""MBGen: generative multi-behavior recommendation with an encoder-decoder (Liu et al. 2024)."""

import copy

import torch
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, SwitchTransformersForConditionalGeneration
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoEModelOutputWithPastAndCrossAttentions, Seq2SeqMoEOutput
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersAttention,
    SwitchTransformersLayerCrossAttention,
    SwitchTransformersLayerFF,
    SwitchTransformersLayerSelfAttention,
    SwitchTransformersPreTrainedModel,
    SwitchTransformersStack,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .by_hand import runs_by_hand
from .configuration_mbgen import MBGenConfig
from .constrained_generation import ConstrainedGenerationMixin
from .copying_search import copied_log_probs
from .decoding_mbgen import MBGenDecoder
from .fused_operations import Dropout, FusedSwitchLayerNorm, attend, hidden_score, joint_linear
from .history_copying import CopyChoice, HistoryCopying, likelihood_gain, mixed_log_probs, precise
from .interactions import Interactions
from .routed_feed_forward import RoutedFeedForward, Routing
from .token_loss import LossKernel, label_log_probs, logits_of_next_slot, token_loss
from .token_space import BEHAVIOR_SLOT, SPECIAL_SLOT


class MBGenLayerFF(SwitchTransformersLayerFF):
    """Feed-forward sub-layer: slot routing instead of a learned router, and behavior injection (section 3.4)."""

    def __init__(self, config: MBGenConfig, layer_idx: int):
        nn.Module.__init__(self)
        side = "decoder" if config.is_decoder else "encoder"
        routed = layer_idx in getattr(config, f"routed_{side}_layers")
        injected = layer_idx in getattr(config, f"injection_{side}_layers")
        self.mlp = RoutedFeedForward(
            d_model=config.d_model,
            d_ff=config.d_ff,
            num_experts=config.token_space.num_slots if routed else 1,
            num_behaviors=len(config.behaviors),
            injection_dim=config.behavior_embedding_dim if injected else 0,
            activation=ACT2FN[config.dense_act_fn],
            dropout=config.dropout_rate,
        )
        self.layer_norm = FusedSwitchLayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, hidden_states: torch.Tensor, routing: Routing) -> torch.Tensor:
        return hidden_states + self.dropout(self.mlp(self.layer_norm(hidden_states), routing))


class MBGenAttention(SwitchTransformersAttention):
    """The stock attention, which knows eager attention only, with SDPA as well.

    Masks come inside `position_bias`. The query rows of cross-attention may be several per history: the decoder's rows
    `(batch_size * n, target_len)` then read the `(batch_size, seq_len)` states of their history without a copy.
    """

    def __init__(self, config: MBGenConfig, has_relative_attention_bias: bool = False, layer_idx: int | None = None):
        super().__init__(config, has_relative_attention_bias, layer_idx)
        # Chooses one-directional buckets of the relative position.
        self.is_decoder = config.is_decoder or config.causal_encoder

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        shape = hidden_states.shape
        if key_value_states is not None:
            hidden_states = hidden_states.reshape(len(key_value_states), -1, shape[-1])
        if self.config._attn_implementation != "sdpa":
            outputs = super().forward(
                hidden_states, mask, key_value_states, position_bias, past_key_values=past_key_values, **kwargs
            )
            return outputs[0].reshape(shape), *outputs[1:]
        if key_value_states is None:
            queries, keys, values = joint_linear(hidden_states, self.q, self.k, self.v)
            keys, values = self._heads(keys), self._heads(values)
            if past_key_values is not None:
                cache = getattr(past_key_values, "self_attention_cache", past_key_values)
                keys, values = cache.update(keys, values, self.layer_idx)
        else:
            queries = self.q(hidden_states)
            keys, values = self._history_keys(key_value_states, past_key_values)
        dropout = self.dropout if self.training else 0.0
        causal = self.is_decoder and key_value_states is None
        output = attend(self._heads(queries), keys, values, position_bias, self.scaling, dropout, causal)
        return self.o(output).reshape(shape), position_bias, None

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.key_value_proj_dim).transpose(1, 2)

    def _history_keys(self, states: torch.Tensor, past_key_values: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's states, made at the first step only."""
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        keys, values = map(self._heads, joint_linear(states, self.k, self.v))
        if past_key_values is not None:
            keys, values = past_key_values.cross_attention_cache.update(keys, values, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return keys, values


class MBGenLayerSelfAttention(SwitchTransformersLayerSelfAttention):
    """The stock sub-layer with the attention, norm and dropout of this module."""

    def __init__(self, config: MBGenConfig, layer_idx: int):
        nn.Module.__init__(self)
        self.SelfAttention = MBGenAttention(config, has_relative_attention_bias=layer_idx == 0, layer_idx=layer_idx)
        self.layer_norm = FusedSwitchLayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)


class MBGenLayerCrossAttention(SwitchTransformersLayerCrossAttention):
    """The stock sub-layer with the attention, norm and dropout of this module."""

    def __init__(self, config: MBGenConfig, layer_idx: int):
        nn.Module.__init__(self)
        self.EncDecAttention = MBGenAttention(config, layer_idx=layer_idx)
        self.layer_norm = FusedSwitchLayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)


class MBGenBlock(GradientCheckpointingLayer):
    """Self-attention, cross-attention (decoder), routed feed-forward.

    Hidden states are not clamped: training is bf16 or float32, never fp16.
    """

    def __init__(self, config: MBGenConfig, layer_idx: int):
        super().__init__()
        self.layer = nn.ModuleList([MBGenLayerSelfAttention(config, layer_idx)])
        if config.is_decoder:
            self.layer.append(MBGenLayerCrossAttention(config, layer_idx))
        self.layer.append(MBGenLayerFF(config, layer_idx))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_bias: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        routing: Routing | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Biases hold relative positions (self-attention only) and masks, `(1 or batch_size, heads or 1, q, k)`."""
        hidden_states = self.layer[0](
            hidden_states, position_bias=position_bias, past_key_values=past_key_values, **kwargs
        )[0]
        if encoder_hidden_states is not None:
            hidden_states = self.layer[1](
                hidden_states,
                key_value_states=encoder_hidden_states,
                position_bias=encoder_bias,
                past_key_values=past_key_values,
                **kwargs,
            )[0]
        return self.layer[-1](hidden_states, routing)


class MBGenPreTrainedModel(SwitchTransformersPreTrainedModel):
    config: MBGenConfig
    base_model_prefix = "mbgen"
    _supports_sdpa = True
    _no_split_modules = ["MBGenBlock"]

    def _initialize_weights(self, module: nn.Module, *args, **kwargs) -> None:
        # For classes from outside transformers, the library takes a module without parameters of its own for
        # initialised already and never calls `_init_weights` on it. SwitchTransformers initialises attention and
        # feed-forward through just such modules: weights would silently start at standard deviation 1.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, ConstrainedGenerationMixin):
            module.reset_catalog()
        elif isinstance(module, HistoryCopying):
            module.reset_parameters()
        elif isinstance(module, RoutedFeedForward):
            # A released expert starts wi and wo at d_model**-0.5 (M19), a dense layer wo at d_ff**-0.5 as in T5.
            width = self.config.d_model if module.routed else self.config.d_ff
            init.normal_(module.wi.weight, mean=0.0, std=factor * self.config.d_model**-0.5)
            init.normal_(module.wo.weight, mean=0.0, std=factor * width**-0.5)
            if module.behavior_embedding is not None:
                init.normal_(module.behavior_embedding.weight, mean=0.0, std=factor)


class MBGenStack(MBGenPreTrainedModel, SwitchTransformersStack):
    """Encoder or decoder; derives slots and behaviors from its ids and hands the routing to every block."""

    _can_record_outputs = {
        "hidden_states": MBGenBlock,
        "attentions": OutputRecorder(SwitchTransformersAttention, index=-1, layer_name="layer.0"),
        "cross_attentions": OutputRecorder(SwitchTransformersAttention, index=-1, layer_name="layer.1"),
    }

    def __init__(self, config: MBGenConfig):
        # Past `SwitchTransformersStack.__init__`, which would build its own blocks and routers first.
        super(SwitchTransformersStack, self).__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.is_decoder = config.is_decoder
        self.block = nn.ModuleList(MBGenBlock(config, layer_idx) for layer_idx in range(config.num_layers))
        self.final_layer_norm = FusedSwitchLayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        decoder_behavior_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        num_special: int | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> MoEModelOutputWithPastAndCrossAttentions:
        """As the stock stack, on ids only: a token's slot is a look-up on its id.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`): token ids; for a decoder whose rows are
                several per history `(batch_size * n, seq_len)`, those of one history behind each other.
            attention_mask (`torch.Tensor` of shape `(batch_size, total_len)`, *optional*): 1 for tokens.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, history_len, d_model)`, *optional*): the
                histories.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, history_len)`, *optional*): 1 for what the
                decoder sees of them; `(batch_size, n, history_len)` where every row sees a part of its own.
            decoder_behavior_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): behavior rows of
                `input_ids`, needed once earlier tokens sit in the cache only. The encoder ignores them.
            num_special (`int`, *optional*): how many special tokens every row begins with, where whole interactions,
                padded on the right, are known to follow them.

        Raises:
            ValueError: a cached step without `decoder_behavior_ids`, or no `input_ids`.
        """
        if input_ids is None:
            raise ValueError("`input_ids`: expected token ids, found None; embeddings carry no slot")
        space = self.config.token_space
        if not self.is_decoder:
            past_key_values, decoder_behavior_ids = None, None
        elif use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if decoder_behavior_ids is None:
            if seen > 0:
                raise ValueError(
                    "`decoder_behavior_ids`: expected behaviors of the new tokens beside a filled cache, found None"
                )
            decoder_behavior_ids = space.behavior_indices(input_ids, self.config.inject_behavior_tokens)
        padding = self._padding(input_ids, attention_mask)
        slots = space.slots(input_ids)
        routing = Routing.from_slots(slots, decoder_behavior_ids, space.num_slots, padding, num_special)
        hidden_states = self.dropout(self.embed_tokens(input_ids))
        position_bias = self._position_bias(hidden_states, attention_mask, past_key_values, seen)
        encoder_bias = None
        if encoder_hidden_states is not None and encoder_attention_mask is not None:
            encoder_bias = self._encoder_bias(hidden_states, encoder_attention_mask)
        for block in self.block:
            hidden_states = block(
                hidden_states,
                position_bias,
                encoder_hidden_states,
                encoder_bias,
                past_key_values=past_key_values,
                routing=routing,
                **kwargs,
            )
        return MoEModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(self.final_layer_norm(hidden_states)), past_key_values=past_key_values
        )

    def _padding(self, ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Tokens that nobody reads: hidden by the mask, or in the decoder behind everything else."""
        padding = ids == self.config.pad_token_id
        if attention_mask is None:
            return padding if self.is_decoder else torch.zeros_like(padding)
        return padding & (attention_mask[:, -ids.shape[1] :] == 0)

    def _position_bias(self, states, attention_mask, past_key_values, seen) -> torch.Tensor:
        """Relative position bias with the mask in it: padding, and what follows where the stack is causal."""
        length = total = states.shape[1]
        if past_key_values is not None:
            total, _ = past_key_values.get_mask_sizes(length, 0)
        attention = self.block[0].layer[0].SelfAttention
        bias = attention.compute_bias(length, total, device=states.device, past_seen_tokens=seen).to(states.dtype)
        keys = torch.arange(total, device=states.device)
        hidden = None
        if attention.is_decoder:
            hidden = (keys > keys.new_tensor(seen) + torch.arange(length, device=states.device)[:, None])[None, None]
        if attention_mask is not None:
            padding = attention_mask[:, None, None, :total] == 0
            hidden = padding if hidden is None else hidden | padding
        if hidden is not None and runs_by_hand(states) and not hidden.any():
            return bias  # One for all rows, and nothing to wait for on the CPU.
        return bias if hidden is None else bias.masked_fill(hidden, hidden_score(bias.dtype))

    @staticmethod
    def _encoder_bias(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(batch_size, 1, 1 or n * target_len, history_len)`, 0 for what is seen."""
        if mask.dim() == 3:
            mask = mask.repeat_interleave(states.shape[1], dim=1)
        mask = mask[:, None, None] if mask.dim() == 2 else mask[:, None]
        bias = torch.zeros(mask.shape, dtype=states.dtype, device=states.device)
        return bias.masked_fill(mask == 0, hidden_score(states.dtype))


class MBGenForConditionalGeneration(
    ConstrainedGenerationMixin, MBGenPreTrainedModel, SwitchTransformersForConditionalGeneration
):
    """MBGen with its language-model head; `generate` is constrained to the catalog.

    `item_codes`, a persistent buffer of shape `(num_items, m)`, is the catalog: row i holds the codes of item i.
    """

    auto_classes = ("AutoModel", "AutoModelForSeq2SeqLM")
    loss_kernel: LossKernel | None = None  # Set for training on GPUs; see `token_loss`.

    def __init__(self, config: MBGenConfig):
        super(SwitchTransformersForConditionalGeneration, self).__init__(config)
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        encoder_config = copy.deepcopy(config)
        encoder_config.is_decoder = False
        encoder_config.use_cache = False
        self.encoder = MBGenStack(encoder_config)
        decoder_config = copy.deepcopy(config)
        decoder_config.is_decoder = True
        decoder_config.num_layers = config.num_decoder_layers
        self.decoder = MBGenStack(decoder_config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.copying = HistoryCopying.of(config, config.d_model)
        self._register_catalog()
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_behavior_ids: torch.LongTensor | None = None,
        encoder_outputs=None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        history_lengths: torch.LongTensor | None = None,
        decoder_history_ids: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        whole_rows: bool = False,
        **kwargs,
    ) -> Seq2SeqMoEOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`):
                Histories `[user?, (b, c0..c_{m-1}) x n, EOS]`, padded on either side; with a causal encoder
                `[BOS, user?, (b, c0..c_{m-1}) x n]`, of which every part that ends between interactions is a history.
            attention_mask (`torch.Tensor` of shape `(batch_size, seq_len)`, *optional*):
                1 for tokens, 0 for padding; where `input_ids` is not PAD by default.
            decoder_input_ids (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
                `[BOS, b, c0..]`; `labels` shifted right by default.
            decoder_behavior_ids (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
                Behavior row of every decoder token; derived from `decoder_input_ids` unless a cache holds the earlier
                ones, where `generate` supplies it.
            labels (`torch.LongTensor` of shape `(batch_size, m + 2)`, *optional*):
                `[b, c0..c_{m-1}, EOS]`; the loss is the mean cross-entropy over all of them (-100 is ignored). With
                `history_lengths` of shape `(batch_size, n, m + 2)`: n interactions after as many parts of a history.
            history_lengths (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                How many tokens of its history, padded on the right, each of the n interactions is predicted from;
                with a causal encoder, for which one pass over the history serves them all.
            decoder_history_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
                The history once more where only its `encoder_outputs` are given, which a copying head can not do
                without; `generate` supplies it.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                What the sum of the loss is divided by; the number of labels by default.
            skip_logits (`bool`, *optional*):
                Whether to return no logits; by default those of a training pass with labels are never made as a whole.
            whole_rows (`bool`, *optional*):
                Whether rows and labels are known to be as above, padded on the right; experts then take the tokens of
                the decoder, and of a causal encoder, by place. Collators say so.

        Returns:
            `Seq2SeqMoEOutput` with `loss`, `logits` of shape `(batch_size, target_len, vocab_size)` or `None`, and the
            rest as in SwitchTransformers.

        Raises:
            ValueError: `output_attentions` under SDPA, which has none; `history_lengths` without a causal encoder
                or without labels.
        """
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids != self.config.pad_token_id
        wanted = kwargs.get("output_attentions", self.config.output_attentions)
        if wanted and self.config._attn_implementation == "sdpa":
            raise ValueError("`output_attentions`: expected `attn_implementation='eager'` beside it, found 'sdpa'")
        if history_lengths is not None and (labels is None or not self.config.causal_encoder):
            raise ValueError("`history_lengths`: expected a causal encoder and labels beside them, found none")
        history_ids = input_ids if decoder_history_ids is None else decoder_history_ids
        if self.copying is not None:
            if history_ids is None:
                raise ValueError("`decoder_history_ids`: expected the history beside `encoder_outputs`, found None")
            kwargs["use_cache"] = False  # The copying head looks at all tokens of the interaction, which are few.
        if encoder_outputs is None:
            # Behind a history of the bidirectional encoder stands EOS, at another place in each row.
            in_front = 1 + bool(self.config.num_user_tokens) if whole_rows and self.config.causal_encoder else None
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, num_special=in_front, **kwargs
            )
        if labels is not None:
            kwargs["use_cache"] = False  # A loss needs no keys and values of the past.
            if decoder_input_ids is None:
                decoder_input_ids = self._shift_right(labels)
                kwargs["num_special"] = 1 if whole_rows else None
        if history_lengths is not None:
            columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            attention_mask = attention_mask[:, None].bool() & (columns < history_lengths[..., None])
        output = self.decoder(
            input_ids=decoder_input_ids.flatten(0, -2),
            attention_mask=decoder_attention_mask,
            decoder_behavior_ids=decoder_behavior_ids,
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            **kwargs,
        )
        states, choice, loss, logits = output.last_hidden_state, None, None, None
        if self.copying is not None:
            history = Interactions.of(history_ids, self.config.token_space)
            choice = self._copy_choice(states, encoder_outputs[0], history, history_lengths)
        if self.config.tie_word_embeddings:
            states = states * self.model_dim**-0.5
        if not (self.training and labels is not None if skip_logits is None else skip_logits):
            logits = self.lm_head(states)
            ids, space = decoder_input_ids.flatten(0, -2), self.config.token_space
            if choice is not None:
                each = choice.for_positions(logits.shape[1]), precise(logits).log_softmax(-1)
                logits = mixed_log_probs(*each, ids, history.repeated(len(ids)), space)
            elif self.config.loss_over == "slot":
                logits = logits_of_next_slot(logits, ids, space, SPECIAL_SLOT)
        if labels is not None and choice is not None:
            loss = self._loss_with_copying(states, labels, choice, history, num_items_in_batch)
        elif labels is not None and logits is not None and num_items_in_batch is None:
            # As the stock network has it, to the last bit; a second product with the head would be for nothing.
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        elif labels is not None:
            over = {"loss_over": self.config.loss_over, "space": self.config.token_space, "kernel": self.loss_kernel}
            loss = token_loss(states, self.lm_head.weight, labels.flatten(0, -2), num_items_in_batch, **over)
        return Seq2SeqMoEOutput(
            loss=loss,
            logits=None if logits is None else logits.view(*decoder_input_ids.shape, -1),
            past_key_values=output.past_key_values,
            decoder_hidden_states=output.hidden_states,
            decoder_attentions=output.attentions,
            cross_attentions=output.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=encoder_outputs.get("hidden_states"),
            encoder_attentions=encoder_outputs.get("attentions"),
        )

    def _copy_choice(self, states, encoder_states, history: Interactions, history_lengths) -> CopyChoice:
        """What each of the n interactions of a row may copy from its part of the history, `(batch_size, n)`."""
        # The decoder reads BOS, then one interaction: its behavior token, if it got that far, is in column 1.
        asked = states[:, min(1, states.shape[1] - 1)].view(len(encoder_states), -1, states.shape[-1])
        return self.copying.from_encoder(asked, encoder_states, history, history_lengths)

    def _loss_with_copying(
        self, states, labels, choice: CopyChoice, history: Interactions, num_labels
    ) -> torch.Tensor:
        """Mean cross-entropy of the labels, less what copying adds to the likelihood of items."""
        log_probs = label_log_probs(states, self.lm_head.weight, labels.flatten(0, -2)).view(labels.shape)
        codes = slice(1, 1 + self.config.token_space.num_code_levels)
        items = labels[..., codes].view(*choice.log_copy.shape, -1)
        of_item = log_probs[..., codes].sum(-1).view(choice.log_copy.shape)
        gain = likelihood_gain(choice, of_item, items, history)
        total = log_probs.sum() + torch.where((items >= 0).all(-1), gain, 0.0).sum()
        return -total / ((labels != -100).sum() if num_labels is None else num_labels)

    def _generation_inputs(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        prompt_ids: torch.LongTensor,
        kwargs: dict,
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The history goes to the encoder, BOS and the prompt to the decoder."""
        if input_ids is None:
            start = self.config.bos_token_id if self.config.causal_encoder else self.config.eos_token_id
            input_ids = prompt_ids.new_full((len(prompt_ids), 1), start)
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        start_ids = prompt_ids.new_full((len(prompt_ids), 1), self.config.decoder_start_token_id)
        decoder_input_ids = torch.cat([start_ids, prompt_ids], dim=1)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        if self.copying is not None:
            inputs["decoder_history_ids"] = input_ids
            inputs["use_cache"] = False
        return inputs, 1

    def start_decoding(
        self,
        prompt_len: int,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.LongTensor,
        **for_stock,
    ) -> MBGenDecoder:
        """What the shared-history search decodes with, from the tensors of `_generation_inputs`."""
        return MBGenDecoder(self, input_ids, attention_mask, decoder_input_ids)

    def next_log_probs(self, hidden_states, slot, context, over_vocabulary=True):
        if self.copying is None or slot == BEHAVIOR_SLOT:
            return super().next_log_probs(hidden_states, slot, context, over_vocabulary)
        return copied_log_probs(self, hidden_states, slot, context)

    def lm_logits(self, hidden_states: torch.Tensor, ids: slice = slice(None)) -> torch.Tensor:
        if self.config.tie_word_embeddings:
            hidden_states = hidden_states * (self.model_dim**-0.5)
        return super().lm_logits(hidden_states, ids)

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        # Beam search reorders the cache but not other inputs: behaviors follow from the full ids at every step.
        behaviors = self.config.token_space.behavior_indices(input_ids, self.config.inject_behavior_tokens)
        inputs["decoder_behavior_ids"] = behaviors[:, -inputs["decoder_input_ids"].shape[1] :]
        return inputs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        plain = generation_config.use_cache and generation_config.cache_implementation is None
        if plain and model_kwargs.get("past_key_values") is None:
            # Grows on demand: the stock one has as many layers as the encoder.
            model_kwargs["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


MBGenForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")

__all__ = ["MBGenForConditionalGeneration", "MBGenPreTrainedModel", "MBGenStack"]
