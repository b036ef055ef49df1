"""Work that the processes of `accelerate launch` do together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def launched_on_cpu() -> bool:
    """Whether this is one of several processes to talk by gloo: asked for, or there is nothing but the CPU."""
    launched = "LOCAL_RANK" in os.environ
    return parse_flag_from_env("ACCELERATE_USE_CPU") or (launched and not torch.accelerator.is_available())


def process_state() -> PartialState:
    """Which of how many processes this is, and its device.

    `PartialState()` alone takes every process launched on a machine without accelerators for the only one.
    """
    return PartialState(cpu=launched_on_cpu())


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of every process' tensor, on the CPU; the tensor itself where there is one process.

    Processes that each fill the rows they worked on and leave zeros elsewhere get every row once.
    """
    state = process_state()
    if state.num_processes == 1:
        return values
    total = values.to(state.device if state.device.type != "mps" else "cpu")
    torch.distributed.all_reduce(total)
    return total.cpu()


@contextmanager
def failing_together() -> Iterator[None]:
    """Let an error in one process end the work in all, where the others would wait for its share for ever.

    Raises:
        ValueError: another process failed; that one raises its own error.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = int(sum_over_processes(torch.tensor(int(failure is not None))))
    if failure is not None:
        raise failure
    if failed:
        raise ValueError(f"expected the share of every process, found that {failed} of them failed, which say why")


__all__ = ["failing_together", "launched_on_cpu", "process_state", "sum_over_processes"]
