"""The executors there are, and what each of them needs. Needs no torch: an executor is imported when it is made.

A new executor needs its own files and one entry in `EXECUTORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.anytime import AnytimeModel
    from models.network.network import Network
    from models.quantisation import Precision, Scales

AUTO = "auto"
"""Stands for the best executor on a device, see `selection.choose_executor`, or for the faster precision, see
`selection.build_fastest`."""

PREPARED_SIZES = 8
"""An executor that prepares for an input size stays prepared for at least so many sizes, those that it ran last."""


@dataclass(frozen=True)
class ExecutorKind:
    """The properties of an executor that are known before one is made.

    `make`: (network, device, threads, scales) -> the model, in eight bits if there are scales; raises ValueError, and
    OSError if what it needs is not built.
    `devices`: kinds of devices that it runs on. `families`: of networks that it runs; None: all.
    `preferred`: `auto` takes it rather than the reference on its devices. `needs_verification`: it is run beside the
    reference, in a process of its own, before it serves, and given up for the reference once it has broken a device.
    `own_threads`: it computes on threads of its own, beside which torch's would only spin. `slices`: a step yields when
    it has run for as long as it is asked to. `prepares`: it compiles or measures for seconds at an input size that is
    not among the `PREPARED_SIZES`. `precisions`: what it computes in; eight bits need scales. `package`: what must be
    installed for it, with a hint where it comes from.
    """

    make: Callable[[Network, str, int, Scales | None], AnytimeModel]
    devices: tuple[str, ...]
    families: tuple[str, ...] | None = None
    preferred: bool = False
    needs_verification: bool = False
    own_threads: bool = False
    slices: bool = False
    prepares: bool = False
    precisions: tuple[Precision, ...] = ("fp32",)
    package: tuple[str, str] | None = None

    def runs(self, family: str) -> bool:
        """Whether it runs networks of a family."""
        return self.families is None or family in self.families

    def runs_on(self, device: str) -> bool:
        """Whether it runs on a device such as "cpu" or "cuda:1"."""
        return device.partition(":")[0] in self.devices


def _reference(network: Network, device: str, threads: int, scales: Scales | None) -> AnytimeModel:
    from models.executors.reference import ReferenceExecutor  # noqa: PLC0415 - loads torch

    return ReferenceExecutor(network, device, scales)


def _sparse(network: Network, device: str, threads: int, scales: Scales | None) -> AnytimeModel:
    from models.executors.cpu.executor import SparseExecutor  # noqa: PLC0415 - loads torch
    from models.network.adpc import AdpcNet  # noqa: PLC0415

    assert isinstance(network, AdpcNet)
    return SparseExecutor(network, threads, scales=scales)


def _triton(network: Network, device: str, threads: int, scales: Scales | None) -> AnytimeModel:
    from models.executors.gpu.executor import TritonExecutor  # noqa: PLC0415 - comes with PyTorch for CUDA only
    from models.network.adpc import AdpcNet  # noqa: PLC0415

    assert isinstance(network, AdpcNet)
    return TritonExecutor(network, device)


def _onnx(network: Network, device: str, threads: int, scales: Scales | None) -> AnytimeModel:
    from models.executors.onnx import OnnxExecutor  # noqa: PLC0415 - ONNX Runtime is an optional extra
    from models.network.adpc import AdpcNet  # noqa: PLC0415

    assert isinstance(network, AdpcNet)
    return OnnxExecutor(network, device, threads)


REFERENCE = "reference"
EXECUTORS: dict[str, ExecutorKind] = {
    REFERENCE: ExecutorKind(_reference, ("cpu", "cuda"), precisions=("fp32", "int8")),
    "sparse": ExecutorKind(
        _sparse, ("cpu",), ("adpc",), preferred=True, own_threads=True, slices=True, precisions=("fp32", "int8")
    ),
    "triton": ExecutorKind(
        _triton,
        ("cuda",),
        ("adpc",),
        preferred=True,
        needs_verification=True,
        prepares=True,
        precisions=("fp16",),
        package=("triton", "it comes with PyTorch for CUDA on Linux"),
    ),
    "onnx": ExecutorKind(_onnx, ("cpu", "cuda"), ("adpc",), prepares=True),
}
CHOICES = (AUTO, *EXECUTORS)
"""The values of `--executor`."""
PRECISIONS = (AUTO, "fp32", "int8")
"""The values of `--precision`."""


def preferred(device: str, family: str, precision: Precision | None = None) -> str:
    """The executor that `auto` prefers on a device for networks of a family. `precision`: one that it must compute in;
    None: any."""
    found = (
        name
        for name, kind in EXECUTORS.items()
        if kind.preferred and kind.runs_on(device) and kind.runs(family) and precision in (None, *kind.precisions)
    )
    return next(found, REFERENCE)
