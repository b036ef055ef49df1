"""Parts of a training step for `training.py`, each alone: products, the feed-forward, the head with its loss."""

import ctypes
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from training_models import BEHAVIORS, configuration

from mbgen_hf.models.routed_feed_forward import RoutedFeedForward, RoutedGatedFeedForward, Routing
from mbgen_hf.models.token_loss import label_log_probs
from mbgen_hf.models.token_space import TokenSpace


# Of weights and states, and whether under autocast.
FEED_FORWARD_TYPES = {
    "float32": (torch.float32, False),
    "autocast": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here.


def peak_memory(device: str) -> float:
    """Of the device, or of the whole process on the CPU, since the reset, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return process_memory("VmHWM")


def best_times(runs: list[Callable[[], object]], device: str, repeats: int = 15, warm_up: int = 3) -> list[float]:
    """The fastest of several runs of each, taken in turns, in seconds."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + warm_up):
        for run, own in zip(runs, times, strict=True):
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            own.append(time.perf_counter() - started)
    return [min(own[warm_up:]) for own in times]


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product."""
    side = 2048 if device == "cpu" else 8192
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_times([lambda: one @ two], device, repeats=5)[0]


def feed_forward(size: str, dtype: torch.dtype, autocast: bool, device: str, rows: int) -> dict[str, float]:
    """A routed feed-forward against a dense one of the same arithmetic, forward and backward.

    Tokens are those of GAMER: rows of BOS and whole interactions of three codes, about 256 tokens each. The goal is
    1.15.
    """
    config = configuration("gamer", size, code_sizes=[64] * 3)
    torch.manual_seed(0)
    period = config.token_space.num_slots - 1
    row = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1, period + 1).repeat(256 // period)])
    slots = row.to(device).repeat(rows, 1)
    routing = Routing.from_slots(slots, torch.zeros_like(slots), config.token_space.num_slots)
    ratios = {}
    for kind, shape, activation in (
        ("gated", RoutedGatedFeedForward, nn.SiLU()),
        ("plain", RoutedFeedForward, nn.ReLU()),
    ):
        runs = []
        for experts in (config.token_space.num_slots, 1):
            layer = shape(config.hidden_size, config.intermediate_size, experts, 3, 0, activation, 0.0)
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.05)
            layer.to(device, dtype)
            states = torch.randn(*slots.shape, config.hidden_size, device=device).to(dtype).requires_grad_()
            gradient = torch.randn_like(states)

            def run(layer=layer, states=states, gradient=gradient):
                states.grad = None
                layer.zero_grad()
                with torch.autocast(device, torch.bfloat16, enabled=autocast):
                    output = layer(states, routing)
                output.backward(gradient.to(output.dtype))

            runs.append(run)
        routed, dense = best_times(runs, device, repeats=max(960 // rows, 10))
        ratios |= {f"{kind}_to_dense": routed / dense, f"{kind}_dense_seconds": dense}
    return ratios


def process_memory(name: str) -> float:
    """A line of Linux' account of this process, such as `VmRSS`, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 2**10


def added_memory(run: Callable[[], object], device: str) -> float:
    """What a run needs at its peak beyond what there was before it, in MB."""
    run()  # What the first run sets up stays.
    synchronize(device)
    if device == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
    else:
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # Freed memory that is kept would hide what the run takes from it.
        before = process_memory("VmRSS")
    reset_peak_memory(device)
    run()
    synchronize(device)
    return peak_memory(device) - before


def whole_logits_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of cross-entropies over the vocabulary from one matrix of logits."""
    return F.cross_entropy(F.linear(states, weight).float(), labels, reduction="sum")


def head_alone(
    code_sizes: list[int], tokens: int = 2048, width: int = 256, device: str = "cpu", repeats: int = 4
) -> dict[str, dict[str, float]]:
    """The head with its loss, forward and backward: over the vocabulary from whole logits and by chunks, over a slot.

    Call it before `keep_freed_memory`, which would hide part of the memory.

    Args:
        code_sizes: ids of each code level.
        tokens: labels, whole interactions of a behavior and its codes.
        width: of the states.
        device: `cpu` or `cuda`.
        repeats: of which the fastest counts.

    Returns:
        Seconds and MB beyond states and weights of each, and their ratios to whole logits.
    """
    space = TokenSpace(tuple(BEHAVIORS), tuple(code_sizes))
    period, generator = space.num_code_levels + 1, torch.Generator().manual_seed(0)
    ranges = [space.slot_range(1 + place % period) for place in range(tokens)]
    labels = torch.tensor([first + int(torch.randint(size, (), generator=generator)) for first, size in ranges])
    labels = labels.to(device)
    weight = (torch.randn(space.vocab_size, width, generator=generator) * 0.05).to(device).requires_grad_()
    states = torch.randn(tokens, width, generator=generator).to(device).requires_grad_()
    losses = {
        "whole": whole_logits_loss,
        "chunked": lambda *args: -label_log_probs(*args).sum(),
        "slot": lambda *args: -label_log_probs(*args, loss_over="slot", space=space).sum(),
    }
    results = {}
    for name, autocast in (("float32", False), ("autocast", True)):

        def run(loss, autocast=autocast):
            weight.grad = states.grad = None
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                value = loss(states, weight, labels)
            value.backward()

        runs = [partial(run, loss) for loss in losses.values()]
        memory = [added_memory(one, device) for one in runs]
        seconds = best_times(runs, device, repeats, warm_up=0)  # They ran twice for their memory.
        found = {"seconds": dict(zip(losses, seconds, strict=True)), "mb": dict(zip(losses, memory, strict=True))}
        for kind in ("chunked", "slot"):
            for what in ("seconds", "mb"):
                found[what][f"{kind}_to_whole"] = found[what][kind] / found[what]["whole"]
        results[name] = found
    return results
