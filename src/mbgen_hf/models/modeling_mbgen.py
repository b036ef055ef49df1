"""MBGen: generative multi-behavior recommendation with an encoder-decoder (Liu et al. 2024)."""

import copy

import torch
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, SwitchTransformersForConditionalGeneration
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import Seq2SeqMoEOutput
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersAttention,
    SwitchTransformersLayerCrossAttention,
    SwitchTransformersLayerFF,
    SwitchTransformersLayerNorm,
    SwitchTransformersLayerSelfAttention,
    SwitchTransformersPreTrainedModel,
    SwitchTransformersStack,
)
from transformers.utils.output_capturing import OutputRecorder

from .configuration_mbgen import MBGenConfig
from .constrained_generation import ConstrainedGenerationMixin
from .copying_search import copied_log_probs
from .decoding_mbgen import MBGenDecoder
from .history_copying import HistoryCopying, Interactions, likelihood_gain, mixed_log_probs
from .routed_feed_forward import RoutedFeedForward, Routing
from .token_space import BEHAVIOR_SLOT


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
        self.layer_norm = SwitchTransformersLayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden_states: torch.Tensor, routing: Routing) -> torch.Tensor:
        return hidden_states + self.dropout(self.mlp(self.layer_norm(hidden_states), routing))


class MBGenBlock(GradientCheckpointingLayer):
    """Self-attention, cross-attention (decoder), routed feed-forward.

    The attention layers are the stock ones. Hidden states are not clamped: training is bf16 or float32, never fp16.
    """

    def __init__(self, config: MBGenConfig, layer_idx: int):
        super().__init__()
        self.layer = nn.ModuleList()
        self.layer.append(
            SwitchTransformersLayerSelfAttention(
                config, has_relative_attention_bias=layer_idx == 0, layer_idx=layer_idx
            )
        )
        if config.is_decoder:
            self.layer.append(SwitchTransformersLayerCrossAttention(config, layer_idx=layer_idx))
        self.layer.append(MBGenLayerFF(config, layer_idx))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_decoder_position_bias: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        routing: Routing | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        hidden_states, position_bias, _ = self.layer[0](
            hidden_states,
            attention_mask=attention_mask,
            position_bias=position_bias,
            past_key_values=past_key_values,
            **kwargs,
        )
        if encoder_hidden_states is not None:
            hidden_states, encoder_decoder_position_bias, _ = self.layer[1](
                hidden_states,
                key_value_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                position_bias=encoder_decoder_position_bias,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.layer[-1](hidden_states, routing), position_bias, encoder_decoder_position_bias


class MBGenPreTrainedModel(SwitchTransformersPreTrainedModel):
    config: MBGenConfig
    base_model_prefix = "mbgen"
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
        self.final_layer_norm = SwitchTransformersLayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        decoder_behavior_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ):
        """As the stock stack, on ids only: a token's slot is a look-up on its id.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`): token ids.
            decoder_behavior_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): behavior rows of
                `input_ids`, needed once earlier tokens sit in the cache only. The encoder ignores them.

        Raises:
            ValueError: a cached step without `decoder_behavior_ids`, or no `input_ids`.
        """
        if input_ids is None:
            raise ValueError("`input_ids`: expected token ids, found None; embeddings carry no slot")
        space = self.config.token_space
        behaviors = decoder_behavior_ids if self.is_decoder else None
        if behaviors is None:
            if self.is_decoder and past_key_values is not None and past_key_values.get_seq_length() > 0:
                raise ValueError(
                    "`decoder_behavior_ids`: expected behaviors of the new tokens beside a filled cache, found None"
                )
            behaviors = space.behavior_indices(input_ids, self.config.inject_behavior_tokens)
        routing = Routing.from_slots(space.slots(input_ids), behaviors, space.num_slots)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            routing=routing,
            **kwargs,
        )


class MBGenForConditionalGeneration(
    ConstrainedGenerationMixin, MBGenPreTrainedModel, SwitchTransformersForConditionalGeneration
):
    """MBGen with its language-model head; `generate` is constrained to the catalog.

    `item_codes`, a persistent buffer of shape `(num_items, m)`, is the catalog: row i holds the codes of item i.
    """

    auto_classes = ("AutoModel", "AutoModelForSeq2SeqLM")

    # The stock forward takes `**kwargs` and averages the loss itself; without this the Trainer would not divide by
    # the number of accumulation steps.
    accepts_loss_kwargs = False

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
        self.copying = HistoryCopying(config.d_model, config.copy_dim) if config.copy_from_history else None
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
        decoder_history_ids: torch.LongTensor | None = None,
        **kwargs,
    ):
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`):
                Histories `[user?, (b, c0..c_{m-1}) x n, EOS]`, padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch_size, seq_len)`, *optional*):
                1 for tokens, 0 for padding; where `input_ids` is not PAD by default.
            decoder_input_ids (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
                `[BOS, b, c0..]`; `labels` shifted right by default.
            decoder_behavior_ids (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
                Behavior row of every decoder token; derived from `decoder_input_ids` unless a cache holds the earlier
                ones, where `generate` supplies it.
            labels (`torch.LongTensor` of shape `(batch_size, m + 2)`, *optional*):
                `[b, c0..c_{m-1}, EOS]`; the loss is the mean cross-entropy over all of them (-100 is ignored).
            decoder_history_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
                The history once more where only its `encoder_outputs` are given, which a copying head can not do
                without; `generate` supplies it.

        Returns:
            `Seq2SeqMoEOutput` with `loss`, `logits` of shape `(batch_size, target_len, vocab_size)` and the rest as in
            SwitchTransformers.
        """
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids != self.config.pad_token_id
        if labels is not None:
            kwargs["use_cache"] = False  # A loss needs no keys and values of the past.
        if self.copying is None:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                decoder_behavior_ids=decoder_behavior_ids,
                encoder_outputs=encoder_outputs,
                past_key_values=past_key_values,
                labels=labels,
                **kwargs,
            )
        return self._forward_with_copying(
            input_ids if decoder_history_ids is None else decoder_history_ids,
            attention_mask,
            self._shift_right(labels) if decoder_input_ids is None else decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            labels,
        )

    def _forward_with_copying(
        self, history_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, labels
    ) -> Seq2SeqMoEOutput:
        """As the stock forward, without a cache; the decoder reads no more than the tokens of one interaction."""
        if history_ids is None:
            raise ValueError("`decoder_history_ids`: expected the history beside `encoder_outputs`, found None")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids=history_ids, attention_mask=attention_mask)
        states = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            use_cache=False,
        ).last_hidden_state
        scale = self.model_dim**-0.5 if self.config.tie_word_embeddings else 1.0
        generated = self.lm_head(states * scale).float().log_softmax(-1)
        space = self.config.token_space
        history = Interactions.of(history_ids, space)
        # The decoder reads BOS, then one interaction: its behavior token, if it got that far, is in column 1.
        asked = states[:, min(1, states.shape[1] - 1)][:, None]
        choice = self.copying.from_encoder(asked, encoder_outputs[0], history)
        loss = None
        if labels is not None:
            loss = nn.functional.nll_loss(generated.flatten(0, 1), labels.flatten())
            codes = slice(1, 1 + space.num_code_levels)
            of_item = generated[:, codes].gather(2, labels[:, codes, None].clamp(min=0)).sum((1, 2))
            gain = likelihood_gain(choice, of_item[:, None], labels[:, None, codes], history)[:, 0]
            counts = (labels[:, codes] >= 0).all(-1)
            loss = loss - torch.where(counts, gain, 0.0).sum() / (labels != -100).sum()
        logits = generated
        if labels is None or not self.training:
            logits = mixed_log_probs(
                choice.expand(decoder_input_ids.shape[1]), generated, decoder_input_ids, history, space
            )
        return Seq2SeqMoEOutput(
            loss=loss, logits=logits, encoder_last_hidden_state=encoder_outputs[0], past_key_values=None
        )

    def _generation_inputs(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        prompt_ids: torch.LongTensor,
        kwargs: dict,
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The history goes to the encoder, BOS and the prompt to the decoder."""
        if input_ids is None:
            input_ids = prompt_ids.new_full((len(prompt_ids), 1), self.config.eos_token_id)
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
