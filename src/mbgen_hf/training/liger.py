"""`use_liger_kernel`: the loss by the fused linear cross-entropy of Liger Kernel, on GPUs.

The `Trainer` of transformers hands a model to Liger, which knows the stock architectures by name and silently leaves
any other as it is. Of its kernels the loss is the one that fits both models here.
"""

import os

import torch
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments
from transformers.utils import is_liger_kernel_available


def check_liger_kernel(config: PretrainedConfig, args: TrainingArguments) -> None:
    """Refuse `use_liger_kernel` where the kernel can not run, or does not compute what is asked for.

    Raises:
        ValueError: no package, no GPU, another loss than over the vocabulary, a copying head, `torch_compile`, or
            options for kernels that there are not.
    """
    if not is_liger_kernel_available():
        found = "expected the package liger-kernel, found none; run `pip install mbgen-hf[liger]`"
    elif args.device.type not in ("cuda", "xpu") and os.environ.get("TRITON_INTERPRET") != "1":
        found = f"expected a GPU, which Triton's kernels run on, found the device {args.device.type!r}"
    elif config.copy_from_history:
        found = "expected a model without a copying head, whose mixture needs each probability, found one with it"
    elif config.loss_over != "vocabulary":
        found = f"expected the loss over the 'vocabulary' beside it, found `loss_over` {config.loss_over!r}"
    elif args.torch_compile:
        found = "expected `torch_compile` false beside it, found true"
    elif set(args.liger_kernel_config or {}) - {"fused_linear_cross_entropy"}:
        found = f"expected 'fused_linear_cross_entropy' alone in its config, found {list(args.liger_kernel_config)}"
    else:
        return
    raise ValueError(f"`training.use_liger_kernel`: {found}")


def apply_liger_kernel(model: PreTrainedModel, args: TrainingArguments) -> None:
    """Give a model Liger's loss; with `{"fused_linear_cross_entropy": false}` as its config, nothing.

    Raises:
        ValueError: as `check_liger_kernel`.
    """
    check_liger_kernel(model.config, args)
    if (args.liger_kernel_config or {}).get("fused_linear_cross_entropy", True):
        model.loss_kernel = summed_cross_entropy


def summed_cross_entropy(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy of labels.

    Args:
        states: `(num_labels, d_model)`.
        weight: `(vocab_size, d_model)` of the head.
        labels: `(num_labels,)` token ids.
    """
    if len(labels) == 0:
        return 0.0 * (states.sum() + weight.sum())  # Liger would divide by the number of labels.
    # Not at the top: the package is optional.
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(states, weight, labels, reduction="sum", accum_dtype=torch.float32)


__all__ = ["apply_liger_kernel", "check_liger_kernel", "summed_cross_entropy"]
