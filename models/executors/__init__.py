"""How a trained network is computed: executors turn it into an `AnytimeModel`."""

import importlib.util
import logging
import re
from pathlib import Path

import torch

from models.anytime import AnytimeModel
from models.checkpoint import load_directory
from models.executors.cpu.executor import SparseExecutor
from models.executors.machine import usable
from models.executors.reference import ReferenceExecutor
from models.executors.verify import Verdict, command, prove
from models.network.adpc import AdpcNet

EXECUTORS = ("auto", "reference", "sparse", "triton", "onnx")

log = logging.getLogger(__name__)


def load(directory: Path, device: str = "cpu", executor: str = "auto", threads: int = 0) -> AnytimeModel:
    """The model of a directory on `device` (auto, cpu, cuda, cuda:N), run by `executor`; see `decide`.

    `threads`: CPU threads to compute with; 0 for one on each core that is to be had. Raises ValueError on a device or
    executor that is not there, and what `load_directory` raises.
    """
    device = resolve_device(device)
    return build(load_directory(directory), device, decide(directory, device, executor).executor, threads)


def decide(directory: Path, device: str, executor: str) -> Verdict:
    """Which executor is to run the model of a directory, and why.

    On a GPU, `auto` is triton if it is proved right and faster than the reference at the model's size, which takes
    minutes, and else the reference. `auto` on a CPU is left to `build`. Raises ValueError if `triton` is asked for and
    not right.
    """
    device = resolve_device(device)
    if device == "cpu" or executor not in ("auto", "triton"):
        return Verdict(executor, "")
    if importlib.util.find_spec("triton") is None:
        verdict = Verdict("reference", "triton is not installed; it comes with PyTorch for CUDA on Linux", sound=False)
    else:
        verdict = prove("triton", command(directory, "triton", device))
    if executor == "triton":
        if not verdict.sound:
            raise ValueError(f"{verdict.reason}; use executor reference")
        return Verdict("triton", verdict.reason)
    if verdict.executor == "reference":
        log.warning("running the reference executor, which saves no time where masks save work: %s", verdict.reason)
    return verdict


def build(network: AdpcNet, device: str = "cpu", executor: str = "auto", threads: int = 0) -> AnytimeModel:
    """`load` for a network in memory, which the executor takes over. Nothing is proved: `auto` is the sparse executor
    on a CPU, the reference on a GPU and where the native kernels are not built."""
    device = resolve_device(device)
    if executor not in EXECUTORS:
        raise ValueError(f"no executor is called {executor!r}; there are {', '.join(EXECUTORS)}")
    threads = threads or usable()
    torch.set_num_threads(threads)
    if executor == "onnx":
        from models.executors.onnx import OnnxExecutor  # noqa: PLC0415 - ONNX Runtime is an optional extra

        return OnnxExecutor(network, device, threads)
    if executor == "sparse" and device != "cpu":
        raise ValueError(f"the sparse executor runs on a CPU, not on {device}; use device cpu or executor reference")
    if executor == "triton" and device == "cpu":
        raise ValueError("the triton executor runs on a GPU, not on cpu; use device cuda or executor sparse")
    if executor == "triton":
        try:
            from models.executors.gpu.executor import TritonExecutor  # noqa: PLC0415 - comes with PyTorch for CUDA only
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}; use executor reference") from error
        return TritonExecutor(network, device)
    if device == "cpu" and executor != "reference":
        try:
            return SparseExecutor(network, threads)
        except OSError as error:
            if executor == "sparse":
                raise ValueError(str(error)) from error
            log.warning("running the reference executor, which saves no time where masks save work: %s", error)
    return ReferenceExecutor(network, device)


def resolve_device(device: str) -> str:
    """'auto' -> cuda where there is one, else cpu. Raises ValueError if `device` is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"(cpu|cuda)(?::([0-9]+))?", device)
    if known is None:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N")
    if known[1] == "cpu":
        return "cpu"
    if not torch.cuda.is_available() or int(known[2] or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
