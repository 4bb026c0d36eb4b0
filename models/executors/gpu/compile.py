"""Compiles, on all cores, every Triton kernel that networks will launch, before a GPU is asked to run one.

`python -m models.executors.gpu.compile adpc-w48-cityscapes@512x1024 ... [--capability 90] [--processes N] [--tuned FILE]`

Triton compiles one kernel at a time, where it is launched first, for seconds each. Here all launches of a network are
first noted, without running any, at a small size: sizes enter the kernels as arguments, so they do not matter. Then a
process on each core compiles what differs. The results lie in Triton's cache (TRITON_CACHE_DIR, else ~/.triton/cache),
where the real launches find them: same sources, same types, same options, same target.

This needs no GPU, and takes none: a process that was to ask for one would pay for a context of its own.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from models.commands.options import parse_size
from models.executors.gpu import kernels, ops
from models.executors.gpu.executor import TritonExecutor
from models.executors.gpu.layers import Layer, tiles
from models.executors.gpu.tuning import Choice, read
from models.imaging.geometry import MULTIPLE, Frame, Size
from models.network.adpc import AdpcNet
from models.network.families import config
from models.network.network import build_network

SMALL = 2 * MULTIPLE
"""Height and width at which launches are noted."""
ALIGNED = 16
"""Bytes: Triton compiles for pointers to multiples of this, or to anything."""


class AbsentGpu:
    """Stands for the driver of a GPU of `capability` (90 for an H100) that is not asked."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@dataclass(frozen=True)
class Launch:
    """A call of the kernel `name` of `models.executors.gpu.kernels`, its tensors replaced by their dtypes."""

    name: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def variant(self) -> tuple[object, ...]:
        """Equal for launches that Triton compiles once: integers count by what they divide, unless they are to count
        for nothing."""
        function = getattr(kernels, self.name)
        given = zip(function.params, self.arguments, strict=False)
        return self.name, tuple(_kind(value, parameter) for parameter, value in given), tuple(self.options.items())


def _kind(value: object, parameter: Any) -> object:
    if parameter.is_constexpr or isinstance(value, torch.dtype):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        return type(value)
    return int if parameter.do_not_specialize else (value == 1, value % ALIGNED == 0)


def noted(name: str, size: Size, tuned: Mapping[str, Choice] | None = None) -> list[Launch]:
    """The launches that differ, of the network of the configuration `name` at `size`.

    `tuned`: by layer, what was measured to be fastest; only layers that are not in it need every tile.
    """
    height, width = (side + -side % MULTIPLE for side in size)
    area = height * width // SMALL**2
    launches: dict[tuple[object, ...], Launch] = {}
    convolve = ops.convolve

    def note(self: JITFunction, *arguments: object, grid: object, warmup: bool, **options: object) -> None:
        assert all(a.data_ptr() % ALIGNED == 0 for a in arguments if isinstance(a, Tensor)), self.fn.__name__
        plain = tuple(a.dtype if isinstance(a, Tensor) else a for a in arguments)
        launch = Launch(self.fn.__name__, plain, dict(options))
        launches.setdefault(launch.variant(), launch)

    def with_tiles(layer: Layer, x: Tensor, out: Tensor, *arguments: Any, **options: Any) -> None:
        """`tile` is among the options where masked layers are measured; then all are tried."""
        capacity = area * out.shape[0] * out.shape[1] * out.shape[2]
        tried = tiles(layer, capacity)
        if "tile" not in options:
            tried = tried[:1]
        elif tuned and (choice := tuned.get(ops.kind(layer, capacity))):
            tried = [choice.tile]
        for tile in tried:
            convolve(layer, x, out, *arguments, **options | {"tile": tile})

    network = build_network(config(name)).eval()
    assert isinstance(network, AdpcNet)
    with patch.object(JITFunction, "run", note), patch.object(ops, "convolve", with_tiles), torch.inference_mode():
        executor = TritonExecutor(network, "cpu")
        state = executor.start(torch.zeros(1, 3, SMALL, SMALL), Frame(SMALL, SMALL))
        executor.rehearse(state)
    return list(launches.values())


def compile_all(launches: Sequence[Launch], processes: int, capability: int, say: Callable[[str], None]) -> int:
    """Compile each variant once; returns how many there were. Raises RuntimeError, at the end, if one failed."""
    different = list({launch.variant(): launch for launch in launches}.values())
    # The longest first, so that none of them is left for the end.
    different.sort(key=lambda launch: launch.name != "convolve")
    failed = []
    # Forked, so that a process need not load torch again; none has a GPU's context.
    with multiprocessing.get_context("fork").Pool(processes, _begin, (capability,)) as pool:
        for failure in pool.imap_unordered(_compile, different):
            if failure is not None:
                failed.append(failure)
                say(failure)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(different)} kernels were not compiled, the first: {failed[0]}")
    return len(different)


def _begin(capability: int) -> None:
    driver.set_active(AbsentGpu(capability))


def _compile(launch: Launch) -> str | None:
    """What went wrong, if anything."""
    try:
        kernel = getattr(kernels, launch.name).warmup(*launch.arguments, grid=(1,), **launch.options)
        if hasattr(nvidia, "make_launcher") and _has_driver():
            # Triton before 3.7 also compiles C for each signature, which calls the kernel.
            nvidia.CudaLauncher(kernel.src, kernel.metadata)
    except Exception as error:  # whatever the compiler raises, the others go on
        return f"{launch.name} {dict(launch.options)}: {type(error).__name__}: {error}".splitlines()[0]
    return None


def _has_driver() -> bool:
    try:
        return bool(nvidia.libcuda_dirs())
    except (AssertionError, OSError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.executors.gpu.compile", description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="+", help="a configuration and a size, such as adpc-w48-cityscapes@512x1024")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU, without the dot (default 90: H100)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tuned", type=Path, help="measured tiles, see models/executors/gpu/tuning.py")
    parser.add_argument("--gpu", default="", help="the name by which these are listed there")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    tuned = read(given.tuned, given.gpu) if given.tuned else None
    launches: list[Launch] = []
    for each in given.networks:
        name, _, size = each.partition("@")
        launches += noted(name, parse_size(size), tuned)
    noted_s = time.monotonic() - began
    say = partial(print, file=sys.stderr, flush=True)
    try:
        count = compile_all(launches, given.processes, given.capability, say)
    except RuntimeError as error:
        say(str(error))
        return 1
    took_s = time.monotonic() - began - noted_s
    print(f"{count} kernels compiled in {took_s:.1f} s by {given.processes} processes; noted in {noted_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
