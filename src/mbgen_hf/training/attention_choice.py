"""`model.attn_implementation`: how attention is computed while training.

It is no field of the configuration: a checkpoint does not say how it was trained, and whoever loads it chooses anew.
"""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig


# The kernels take no narrower heads.
SMALLEST_FLEX_HEAD = 16


def check_attention(implementation: str, supported: Sequence[str], config: PretrainedConfig) -> None:
    """Refuse an implementation that the model does not have, or not with its other settings.

    Raises:
        ValueError: an unknown implementation, or FlexAttention with dropout of attention weights or narrow heads.
    """
    if implementation not in supported:
        found = f"expected one of {list(supported)} for {config.model_type}, found {implementation!r}"
    elif implementation != "flex_attention":
        return
    elif config.attention_dropout > 0:
        found = f"expected `model.attention_dropout` 0 beside 'flex_attention', found {config.attention_dropout}"
    elif config.head_dim < SMALLEST_FLEX_HEAD:
        found = f"expected `model.head_dim` of at least {SMALLEST_FLEX_HEAD} beside 'flex_attention', found "
        found += str(config.head_dim)
    else:
        return
    raise ValueError(f"`model.attn_implementation`: {found}")


def check_attention_device(implementation: str, device: torch.device) -> None:
    """Refuse FlexAttention where it has no backward pass.

    Raises:
        ValueError: a device that FlexAttention can not train on.
    """
    if implementation == "flex_attention" and device.type in ("cpu", "mps"):
        raise ValueError(
            "`model.attn_implementation`: expected a GPU for 'flex_attention', which has no backward pass elsewhere, "
            f"found the device {device.type!r}"
        )


__all__ = ["check_attention", "check_attention_device"]
