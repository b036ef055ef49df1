"""Configuration of GAMER."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config

from .catalog_fields import (
    complete_catalog_fields,
    validate_catalog_fields,
    validate_layers,
    validate_loss_fields,
    validate_routed_widths,
)
from .token_space import BOS, EOS, PAD, TokenSpace, token_space


@strict
class GamerConfig(Qwen3Config):
    r"""
    Configuration of GAMER (Wang et al. 2025), a decoder on Qwen3. The sizes are the paper's section 4.1.4, the lists
    of layers those of the released code, which its numbers come from. Fields not listed here are those of
    [`Qwen3Config`].

    Args:
        behaviors (`list[str]`): behavior names in class-label order.
        behavior_levels (`list[int]`, *optional*): level of each behavior, 0 = weakest, ties allowed; 0, 1, 2, ... by
            default.
        target_behavior (`str`, *optional*): the target behavior; the last one by default.
        code_sizes (`list[int]`): number of ids of each code level; its length is the number of code levels m.
        num_items (`int`): number of items of the catalog the model generates from; 0 until `set_catalog`.
        restricts_items (`bool`): whether the catalog says which items may follow which behavior (`set_catalog`).
        cross_level_layers (`list[int]`, *optional*): layers with cross-level behavior attention (equations 2 to 4);
            the second half by default.
        routed_layers (`list[int]`, *optional*): layers with slot-routed experts (equation 5); all by default.
        injection_layers (`list[int]`, *optional*): layers whose feed-forward also reads the behavior of its token; the
            first half by default.
        behavior_embedding_dim (`int`): width of the injected behavior embedding.
        hidden_dropout (`float`): dropout on the output of each sub-layer.
        expert_dropout (`float`): dropout inside the feed-forward.
        add_bos_token (`bool`): whether rows start with BOS, which is what a user without history begins with.
        session_wise_attention (`bool`): self-attention sees earlier sessions and its own interaction only, with one
            position per session (appendix C); needs `session_ids`.
        loss_on_behaviors (`bool`): whether behavior tokens count in the loss (the released code leaves them out).
        loss_temperature (`float`): divides the logits in the loss (the released code: 0.7).
        copy_from_history (`bool`): whether items of the history get a probability of their own (a copying head; ours,
            in neither paper).
        copy_dim (`int`): width of the copying head's queries and keys.
        copy_item_behaviors (`bool`): whether the copying head weighs an interaction also by the behaviors that the
            user has had with its item in all of the history (ours, too).
        loss_over (`str`): what probabilities are normalised over, in the loss and in generation: the whole
            `"vocabulary"`, as in the papers, or the ids that the `"slot"` of the next token can hold, which is what
            decoding chooses from.
        vocab_size (`int`, *optional*): follows from the token space; checked when given.

    Raises:
        ValueError: names, levels, layer lists or sizes that contradict each other (`validate_architecture`).
    """

    model_type = "gamer"

    vocab_size: int | None = None
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 6
    num_key_value_heads: int | None = 3
    head_dim: int = 64
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    pad_token_id: int | None = PAD
    bos_token_id: int | None = BOS
    eos_token_id: int | list[int] | None = EOS

    behaviors: list[str] | tuple[str, ...] = ("click", "purchase")
    behavior_levels: list[int] | tuple[int, ...] | None = None
    target_behavior: str | None = None
    code_sizes: list[int] | tuple[int, ...] = (64, 64, 64)
    num_items: int = 0
    restricts_items: bool = False
    cross_level_layers: list[int] | tuple[int, ...] | None = None
    routed_layers: list[int] | tuple[int, ...] | None = None
    injection_layers: list[int] | tuple[int, ...] | None = None
    behavior_embedding_dim: int = 64
    hidden_dropout: float | int = 0.0
    expert_dropout: float | int = 0.0
    add_bos_token: bool = True
    session_wise_attention: bool = False
    loss_on_behaviors: bool = True
    loss_temperature: float | int = 1.0
    loss_over: str = "vocabulary"
    copy_from_history: bool = False
    copy_dim: int = 64
    copy_item_behaviors: bool = False

    def __post_init__(self, **kwargs):
        complete_catalog_fields(self)
        layers = list(range(self.num_hidden_layers))
        half = self.num_hidden_layers // 2
        if self.cross_level_layers is None:
            self.cross_level_layers = layers[half:]
        if self.routed_layers is None:
            self.routed_layers = layers
        if self.injection_layers is None:
            self.injection_layers = layers[:half]
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": float(kwargs.pop("rope_theta", 1e6))}
        super().__post_init__(**kwargs)

    @property
    def token_space(self) -> TokenSpace:
        """The layout of token ids; GAMER has no user tokens."""
        return token_space(tuple(self.behaviors), tuple(self.code_sizes))

    def validate_architecture(self):
        """Check the fields against each other."""
        super().validate_architecture()
        validate_catalog_fields(self)
        validate_loss_fields(self)
        if self.routed_layers:
            validate_routed_widths(
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                behavior_embedding_dim=self.behavior_embedding_dim,
            )
        for name in ("cross_level_layers", "routed_layers", "injection_layers"):
            validate_layers(name, getattr(self, name), self.num_hidden_layers)
        if self.loss_temperature <= 0:
            raise ValueError(f"`loss_temperature`: expected a positive number, found {self.loss_temperature}")


GamerConfig.register_for_auto_class()

__all__ = ["GamerConfig"]
