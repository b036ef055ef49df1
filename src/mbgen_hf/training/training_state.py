"""What a resumed run needs besides weights, as safetensors and JSON: optimizer, schedule and random states."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file


OPTIMIZER_FILE = "optimizer.safetensors"
SCHEDULER_FILE = "scheduler.json"


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write the state of an optimizer: tensors by `index.name`, everything else as JSON in the file's metadata."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            target = tensors if isinstance(value, torch.Tensor) else plain
            target[f"{index}.{name}"] = value.contiguous() if isinstance(value, torch.Tensor) else value
    metadata = {"param_groups": json.dumps(state["param_groups"]), "plain": json.dumps(plain)}
    save_file(tensors, folder / OPTIMIZER_FILE, metadata=metadata)


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_optimizer` wrote into an optimizer over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    with safe_open(folder / OPTIMIZER_FILE, "pt") as file:
        metadata = file.metadata()
        values = {name: file.get_tensor(name) for name in file.keys()} | json.loads(metadata["plain"])
    for name, value in values.items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = value
    groups = json.loads(metadata["param_groups"])
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_scheduler(scheduler, folder: Path) -> None:
    """Write a schedule's state; it holds numbers only (its functions are left out by torch)."""
    (folder / SCHEDULER_FILE).write_text(json.dumps(scheduler.state_dict()), encoding="utf-8")


def load_scheduler(scheduler, folder: Path) -> None:
    scheduler.load_state_dict(json.loads((folder / SCHEDULER_FILE).read_text(encoding="utf-8")))


def save_random_states(folder: Path, process_index: int) -> None:
    """Write the states of Python's, numpy's and torch's generators of this process."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"torch": torch.random.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        for device, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{device}"] = state
    metadata = {
        "python": json.dumps([version, list(words), gauss]),
        "numpy": json.dumps([int(position), int(has_gauss), float(cached)]),
    }
    save_file(tensors, folder / _random_file(process_index), metadata=metadata)


def load_random_states(folder: Path, process_index: int) -> None:
    """Restore what `save_random_states` wrote.

    Raises:
        ValueError: the checkpoint was written by fewer processes than run now.
    """
    path = folder / _random_file(process_index)
    if not path.is_file():
        raise ValueError(
            f"{path}: expected the random states of process {process_index}, found no file; resume with "
            "as many processes as wrote the checkpoint"
        )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    version, words, gauss = json.loads(metadata["python"])
    random.setstate((version, tuple(words), gauss))
    position, has_gauss, cached = json.loads(metadata["numpy"])
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(tensors["torch"])
    cuda = [tensors[f"cuda.{device}"] for device in range(sum(name.startswith("cuda.") for name in tensors))]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)


def _random_file(process_index: int) -> str:
    return f"random_states_{process_index}.safetensors"


__all__ = [
    "load_optimizer",
    "load_random_states",
    "load_scheduler",
    "save_optimizer",
    "save_random_states",
    "save_scheduler",
]
