"""Configuration of MBGen."""

from huggingface_hub.dataclasses import strict
from transformers import SwitchTransformersConfig

from .catalog_fields import (
    complete_catalog_fields,
    validate_catalog_fields,
    validate_layers,
    validate_loss_fields,
    validate_routed_widths,
)
from .token_space import BOS, EOS, PAD, TokenSpace, token_space


@strict
class MBGenConfig(SwitchTransformersConfig):
    r"""
    Configuration of MBGen (Liu et al. 2024), an encoder-decoder on SwitchTransformers. The defaults are the paper's
    section 4.1.4. Fields not listed here are those of [`SwitchTransformersConfig`]; its router fields are unused,
    since a token's expert follows from the token's slot.

    Args:
        behaviors (`list[str]`): behavior names in class-label order.
        behavior_levels (`list[int]`, *optional*): level of each behavior, 0 = weakest; 0, 1, 2, ... by default.
        target_behavior (`str`, *optional*): the target behavior; the last one by default.
        code_sizes (`list[int]`): number of ids of each code level; its length is the number of code levels m.
        num_user_tokens (`int`): size of the hashed user vocabulary; 0 disables user tokens.
        num_items (`int`): number of items of the catalog the model generates from; 0 until `set_catalog`.
        restricts_items (`bool`): whether the catalog says which items may follow which behavior (`set_catalog`).
        routed_encoder_layers (`list[int]`): encoder layers with slot-routed experts (section 3.4).
        routed_decoder_layers (`list[int]`, *optional*): decoder layers with slot-routed experts; all by default.
        injection_encoder_layers, injection_decoder_layers (`list[int]`, *optional*): layers whose feed-forward also
            reads the behavior of its token; the first two by default.
        behavior_embedding_dim (`int`): width of the injected behavior embedding.
        inject_behavior_tokens (`bool`): whether a behavior token injects its own behavior (released code) instead of
            the padding row (paper).
        copy_from_history (`bool`): whether items of the history get a probability of their own (a copying head; ours,
            in neither paper).
        copy_dim (`int`): width of the copying head's queries and keys.
        copy_item_behaviors (`bool`): whether the copying head weighs an interaction also by the behaviors that the
            user has had with its item in all of the history (ours, too).
        causal_encoder (`bool`): whether the encoder reads from the past to the future only, so that one pass over a
            user's interactions serves the prediction of each of them. Histories then are `[BOS, user?, interactions]`,
            without EOS, and relative positions one-directional. The paper's encoder reads in both directions.
        loss_over (`str`): what probabilities are normalised over, in the loss and in generation: the whole
            `"vocabulary"`, as in the papers, or the ids that the `"slot"` of the next token can hold, which is what
            decoding chooses from.
        vocab_size (`int`, *optional*): follows from the token space; checked when given.

    Raises:
        ValueError: names, levels, layer lists or sizes that contradict each other (`validate_architecture`).
    """

    model_type = "mbgen"

    vocab_size: int | None = None
    d_model: int = 256
    d_kv: int = 64
    d_ff: int = 512
    num_layers: int = 4
    num_decoder_layers: int | None = 4
    num_heads: int = 6
    dropout_rate: float | int = 0.0
    num_sparse_encoder_layers: int = 0
    num_sparse_decoder_layers: int = 0
    pad_token_id: int | None = PAD
    bos_token_id: int | None = BOS
    eos_token_id: int | list[int] | None = EOS
    decoder_start_token_id: int | None = BOS

    behaviors: list[str] | tuple[str, ...] = ("click", "purchase")
    behavior_levels: list[int] | tuple[int, ...] | None = None
    target_behavior: str | None = None
    code_sizes: list[int] | tuple[int, ...] = (64, 64, 64)
    num_user_tokens: int = 2000
    num_items: int = 0
    restricts_items: bool = False
    routed_encoder_layers: list[int] | tuple[int, ...] = ()
    routed_decoder_layers: list[int] | tuple[int, ...] | None = None
    injection_encoder_layers: list[int] | tuple[int, ...] | None = None
    injection_decoder_layers: list[int] | tuple[int, ...] | None = None
    behavior_embedding_dim: int = 64
    inject_behavior_tokens: bool = False
    causal_encoder: bool = False
    loss_over: str = "vocabulary"
    copy_from_history: bool = False
    copy_dim: int = 64
    copy_item_behaviors: bool = False

    def __post_init__(self, **kwargs):
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        complete_catalog_fields(self)
        if self.routed_decoder_layers is None:
            self.routed_decoder_layers = list(range(self.num_decoder_layers))
        if self.injection_encoder_layers is None:
            self.injection_encoder_layers = list(range(min(2, self.num_layers)))
        if self.injection_decoder_layers is None:
            self.injection_decoder_layers = list(range(min(2, self.num_decoder_layers)))
        self.num_experts = self.token_space.num_slots
        super().__post_init__(**kwargs)

    @property
    def token_space(self) -> TokenSpace:
        """The layout of token ids."""
        return token_space(tuple(self.behaviors), tuple(self.code_sizes), self.num_user_tokens)

    def validate_architecture(self):
        """Check the fields against each other."""
        super().validate_architecture()
        validate_catalog_fields(self)
        validate_loss_fields(self)
        if self.routed_encoder_layers or self.routed_decoder_layers:
            validate_routed_widths(
                d_model=self.d_model, d_ff=self.d_ff, behavior_embedding_dim=self.behavior_embedding_dim
            )
        for name, count in (
            ("routed_encoder_layers", self.num_layers),
            ("injection_encoder_layers", self.num_layers),
            ("routed_decoder_layers", self.num_decoder_layers),
            ("injection_decoder_layers", self.num_decoder_layers),
        ):
            validate_layers(name, getattr(self, name), count)


MBGenConfig.register_for_auto_class()

__all__ = ["MBGenConfig"]
