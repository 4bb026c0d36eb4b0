"""How a trained network is computed: executors turn it into an `AnytimeModel`."""

import logging
from pathlib import Path

import torch

from models.adpc import AdpcNet
from models.anytime import AnytimeModel
from models.checkpoint import load_directory
from models.executors.reference import ReferenceExecutor
from models.executors.sparse import SparseExecutor

EXECUTORS = ("auto", "reference", "sparse", "triton", "onnx")

log = logging.getLogger(__name__)


def load(directory: Path, device: str = "cpu", executor: str = "auto", threads: int = 0) -> AnytimeModel:
    """The model of a directory on `device` (auto, cpu, cuda, cuda:N), run by `executor`.

    `auto`: sparse on a CPU, reference on a GPU or where the native kernels are not built. `triton` is experimental and
    has to be asked for: on an H100 it was right for W18 at 256x512 and wrong for W48 at 512x1024, and what was mended
    since has not run on a GPU yet. `threads`: CPU threads to compute with; 0 leaves torch's default.

    Raises ValueError on a device or executor that is not there, and what `load_directory` raises.
    """
    return build(load_directory(directory), device, executor, threads)


def build(network: AdpcNet, device: str = "cpu", executor: str = "auto", threads: int = 0) -> AnytimeModel:
    """`load` for a network in memory, which the executor takes over."""
    if executor not in EXECUTORS:
        raise ValueError(f"no executor is called {executor!r}; there are {', '.join(EXECUTORS)}")
    if threads > 0:
        torch.set_num_threads(threads)
    device = resolve_device(device)
    if executor == "onnx":
        from models.executors.onnx import OnnxExecutor  # noqa: PLC0415 - ONNX Runtime is an optional extra

        return OnnxExecutor(network, device, threads)
    if executor == "sparse" and device != "cpu":
        raise ValueError(f"the sparse executor runs on a CPU, not on {device}; use device cpu or executor reference")
    if executor == "triton" and device == "cpu":
        raise ValueError("the triton executor runs on a GPU, not on cpu; use device cuda or executor sparse")
    if executor == "triton":
        return _checked_triton(network, device)
    if device == "cpu" and executor != "reference":
        try:
            return SparseExecutor(network, threads)
        except OSError as error:
            if executor == "sparse":
                raise ValueError(str(error)) from error
            log.warning("running the reference executor, which saves no time where masks save work: %s", error)
    return ReferenceExecutor(network, device)


def _checked_triton(network: AdpcNet, device: str) -> AnytimeModel:
    """The GPU executor, after a comparison with the reference. Raises ValueError if it fails or differs."""
    try:
        from models.executors.triton import TritonExecutor  # noqa: PLC0415 - Triton comes with PyTorch for CUDA only

        model = TritonExecutor(network, device)
        model.check(ReferenceExecutor(network, device))
    except (ModuleNotFoundError, RuntimeError) as error:
        raise ValueError(f"{error}; use executor reference") from error
    return model


def resolve_device(device: str) -> str:
    """'auto' -> cuda where there is one, else cpu. Raises ValueError if `device` is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {device} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N")
    return device
