"""Compiles kernels beforehand, on all cores, into the folder that every stage reads."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from models.gpu_day.bench import TUNED
from models.gpu_day.stages import MissingError


def compile_all(deadline: float, line: Callable[[str], None], device: str, networks: Sequence[str]) -> bool:
    """Compiles the kernels of `networks`, which are given as to `python -m models.bench.gpu_compile`. Layers that were
    measured before on this kind of GPU are compiled with their fastest tile only."""
    if device == "cpu":
        raise MissingError("kernels that are interpreted are not compiled")
    name, capability = gpu()
    line(f"{name}, {os.cpu_count()} cores")
    command = [sys.executable, "-m", "models.bench.gpu_compile", *networks, "--capability", capability]
    if TUNED.exists():
        command += ["--tuned", str(TUNED), "--gpu", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        said, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        line("not all kernels were compiled in time; the others are compiled when they are launched first")
        return True
    for text in said.splitlines()[-3:]:
        line(text)
    return process.returncode == 0


def gpu() -> tuple[str, str]:
    """The first GPU's name and its compute capability without the dot, such as 90."""
    if tool := shutil.which("nvidia-smi"):  # answers at once, where torch takes seconds
        asked = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        said = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False)
        name, _, capability = said.stdout.partition("\n")[0].partition(", ")
        if said.returncode == 0 and capability.replace(".", "").isdecimal():
            return name, capability.replace(".", "")
    import torch  # noqa: PLC0415 - see above

    major, minor = torch.cuda.get_device_capability()
    return torch.cuda.get_device_name(), f"{major}{minor}"
