"""Kernels compiled beforehand, on all cores, into the folder that every stage reads."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from models.gpu_day.stages import MissingError


def compile_all(deadline: float, line: Callable[[str], None], device: str, networks: Sequence[str]) -> bool:
    """`networks`: as `python -m models.bench.gpu_compile` takes them."""
    if device == "cpu":
        raise MissingError("kernels that are interpreted are not compiled")
    import torch  # noqa: PLC0415 - takes seconds, and the dry run has no GPU to ask

    major, minor = torch.cuda.get_device_capability()
    line(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores")
    command = [sys.executable, "-m", "models.bench.gpu_compile", *networks, "--capability", f"{major}{minor}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        said, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        line("not all kernels were compiled in time; the others are where they are launched first")
        return True
    for text in said.splitlines()[-3:]:
        line(text)
    return process.returncode == 0
