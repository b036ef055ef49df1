"""What the configurations of both models share: behaviors, code sizes, and lists of layers."""

from collections.abc import Sequence

from .token_space import TokenSpace


def complete_catalog_fields(config) -> None:
    """Fill in what `behaviors`, `behavior_levels`, `target_behavior` and `vocab_size` leave open."""
    config.behaviors, config.code_sizes = list(config.behaviors), list(config.code_sizes)
    if config.behavior_levels is None:
        config.behavior_levels = list(range(len(config.behaviors)))
    if config.target_behavior is None:
        config.target_behavior = config.behaviors[-1] if config.behaviors else None
    if config.vocab_size is None:
        config.vocab_size = config.token_space.vocab_size


def validate_catalog_fields(config) -> None:
    """Check the same fields against each other; raises `ValueError`."""
    space: TokenSpace = config.token_space
    if config.vocab_size != space.vocab_size:
        raise ValueError(
            f"`vocab_size`: expected {space.vocab_size} from behaviors, code sizes and user tokens, "
            f"found {config.vocab_size}"
        )
    if len(config.behavior_levels) != len(config.behaviors) or min(config.behavior_levels) < 0:
        raise ValueError(
            f"`behavior_levels`: expected {len(config.behaviors)} levels from 0 for {config.behaviors}, "
            f"found {list(config.behavior_levels)}"
        )
    if config.target_behavior not in config.behaviors:
        raise ValueError(f"`target_behavior`: expected one of {config.behaviors}, found {config.target_behavior!r}")


def validate_loss_fields(config) -> None:
    """Check what the loss normalises over; raises `ValueError`."""
    if config.loss_over not in ("vocabulary", "slot"):
        raise ValueError(f"`loss_over`: expected 'vocabulary' or 'slot', found {config.loss_over!r}")
    if config.loss_over == "slot" and config.copy_from_history:
        raise ValueError("`loss_over`: expected 'vocabulary' with a copying head, found 'slot'")
    if config.copy_item_behaviors and not config.copy_from_history:
        raise ValueError("`copy_item_behaviors`: expected `copy_from_history` beside it, found none")


def validate_layers(name: str, layers: Sequence[int], count: int) -> None:
    """Check a list of layer numbers; raises `ValueError`."""
    if len(set(layers)) != len(layers) or any(not 0 <= layer < count for layer in layers):
        raise ValueError(f"`{name}`: expected distinct layers from 0 to {count - 1}, found {list(layers)}")


def validate_routed_widths(**widths: int) -> None:
    """Check the widths of routed layers; raises `ValueError`."""
    for name, width in widths.items():
        if width % 8:
            # The grouped matrix product reads rows of whole 16 bytes, in bfloat16 as well.
            raise ValueError(f"`{name}`: expected a multiple of 8 where layers are routed, found {width}")


__all__ = [
    "complete_catalog_fields",
    "validate_catalog_fields",
    "validate_layers",
    "validate_loss_fields",
    "validate_routed_widths",
]
