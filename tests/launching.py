"""Commands as `accelerate launch` starts them, on the CPU."""

import os
import socket
import subprocess
import sys


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(*arguments, num_processes: int = 2, timeout: int = 200) -> subprocess.CompletedProcess:
    """Run a script, or `--module name`, with its arguments in so many processes that talk by gloo."""
    # `--multi_gpu` starts one process per worker, with or without GPUs; `--cpu` alone would quietly start one.
    options = f"--multi_gpu --num_processes {num_processes} --num_machines 1 --mixed_precision no --dynamo_backend no "
    options += f"--main_process_port {free_port()}"
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options.split(), *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
