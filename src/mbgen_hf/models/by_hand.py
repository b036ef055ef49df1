"""When operations run one by one on the CPU, in which type their products run, and what dropout multiplies with."""

import math

import numpy as np
import torch


# From here on a generator of its own is worth seeding it.
MANY_WORDS = 2**13


def runs_by_hand(states: torch.Tensor) -> bool:
    """Whether operations on the states run one by one on the CPU, with no compiler or GPU library to fuse them."""
    return states.device.type == "cpu" and not torch.compiler.is_compiling()


def fuses_by_hand(states: torch.Tensor) -> bool:
    """Whether these operations run here rather than in a kernel that a compiler or a GPU library fuses.

    Without gradients there is less to win, and the plain formulas give what the stock network gives to the last bit.
    """
    return runs_by_hand(states) and torch.is_grad_enabled()


def product_dtype(states: torch.Tensor) -> torch.dtype:
    """The type in which products of the states run: that of autocast, or their own."""
    device = states.device.type
    if states.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return states.dtype
    return torch.get_autocast_dtype(device)


def kept_scale(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    """What dropout multiplies with: 0 with the probability, else `1 / (1 - probability)`; on the CPU.

    Sixteen random bits decide about one element: a quarter of the random numbers, and exact to 2**-16.
    """
    count, dropped = math.prod(shape), round(probability * 65536)
    if dropped == 65536:
        return torch.zeros(shape, dtype=dtype)
    kept, factor = _random_words((count + 3) // 4).view(torch.int16)[:count].view(shape), 65536 / (65536 - dropped)
    # 0 or 1 in the type of the bits: unlike a boolean, that is compared and converted many elements at a time.
    torch.ge(kept, dropped - 32768, out=kept)
    if dtype.itemsize == 2:
        return kept.mul_(torch.tensor(factor, dtype=dtype).view(torch.int16)).view(dtype)
    return kept.to(dtype).mul_(factor)


def _random_words(count: int) -> torch.Tensor:
    """64 random bits each, as the seed of torch has it; many of them by a generator of half the cost."""
    if count < MANY_WORDS:
        return torch.empty(count, dtype=torch.int64, device="cpu").random_(-(2**63), None)
    seed = int(torch.randint(2**62, (), device="cpu"))
    return torch.from_numpy(np.random.SFC64(seed).random_raw(count).view(np.int64))


__all__ = ["fuses_by_hand", "kept_scale", "product_dtype", "runs_by_hand"]
