"""Compiles, on all cores, every Triton kernel that a network will launch, before a GPU is asked to run one.

Triton compiles a kernel, for seconds, where it is first launched, and one at a time. This lists all launches of a
network without running any, then a process on each core compiles those that differ. The input is small, because sizes
are arguments of the kernels and do not change the machine code. The results lie in Triton's cache (TRITON_CACHE_DIR,
else ~/.triton/cache), where the launches on the GPU find them by the same sources, types, options and target.

No GPU is needed, and none is touched: a context on it would cost each process time and memory.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from models.executors.gpu import kernels, ops
from models.executors.gpu.executor import TritonExecutor
from models.executors.gpu.layers import TritonConvolution, candidate_tiles
from models.executors.gpu.tuning import LayerTuning, tuning_key
from models.imaging.geometry import MULTIPLE, Frame, Size
from models.network.adpc import AdpcNet

SMALL = 2 * MULTIPLE
"""Height and width of the input for which launches are listed."""
ALIGNED = 16
"""Bytes. Triton compiles a kernel once for pointers to multiples of this and once for others, and likewise for numbers
that are multiples of it."""


class AbsentGpu:
    """Stands for the driver of a GPU of `capability`, for example 90 for an H100, without asking one."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@dataclass(frozen=True)
class KernelLaunch:
    """A launch of the kernel `name` of `kernels`. `arguments`: as they were, with its dtype in place of each tensor."""

    name: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def variant(self) -> tuple[object, ...]:
        """Equal for launches that run the same machine code."""
        function = getattr(kernels, self.name)
        given = zip(function.params, self.arguments, strict=False)
        return self.name, tuple(_kind(value, parameter) for parameter, value in given), tuple(self.options.items())


def _kind(value: object, parameter: Any) -> object:
    """What Triton compiles for: a constant's value, a tensor's dtype, or a number's type and what it is divisible by,
    unless the kernel says `do_not_specialize`."""
    if parameter.is_constexpr or isinstance(value, torch.dtype):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        return type(value)
    return int if parameter.do_not_specialize else (value == 1, value % ALIGNED == 0)


def launches_of(network: AdpcNet, size: Size, tuned: Mapping[str, LayerTuning] | None = None) -> list[KernelLaunch]:
    """The launches of `network`, on the CPU, for an input of `size` (H, W), one of each variant.

    `tuned`: by `tuning_key`, convolutions that were measured already. Others need every candidate tile.
    """
    height, width = (side + -side % MULTIPLE for side in size)
    larger = height * width // SMALL**2
    launches: dict[tuple[object, ...], KernelLaunch] = {}
    convolve = ops.convolve

    def note(self: JITFunction, *arguments: object, grid: object, warmup: bool, **options: object) -> None:
        assert all(a.data_ptr() % ALIGNED == 0 for a in arguments if isinstance(a, Tensor)), self.fn.__name__
        plain = tuple(a.dtype if isinstance(a, Tensor) else a for a in arguments)
        launch = KernelLaunch(self.fn.__name__, plain, dict(options))
        launches.setdefault(launch.variant(), launch)

    def with_tiles(conv: TritonConvolution, x: Tensor, out: Tensor, *arguments: Any, **options: Any) -> None:
        """Masked convolutions, which come with a `tile`, are launched with each that may turn out the fastest."""
        positions = larger * out.shape[0] * out.shape[1] * out.shape[2]
        tried = candidate_tiles(conv, positions)
        if "tile" not in options:
            tried = tried[:1]
        elif tuned and (tuning := tuned.get(tuning_key(conv, positions))):
            tried = [tuning.tile]
        for tile in tried:
            convolve(conv, x, out, *arguments, **options | {"tile": tile})

    with patch.object(JITFunction, "run", note), patch.object(ops, "convolve", with_tiles), torch.inference_mode():
        executor = TritonExecutor(network, "cpu")
        executor.launch_all(executor.start(torch.zeros(1, 3, SMALL, SMALL), Frame(SMALL, SMALL)))
    return list(launches.values())


def compile_all(launches: Sequence[KernelLaunch], processes: int, capability: int, say: Callable[[str], None]) -> int:
    """Compiles each variant once; returns how many there were. Raises RuntimeError, at the end, if one failed."""
    different = list({launch.variant(): launch for launch in launches}.values())
    # Convolutions take longest and come first, so that no process ends with one of them while others have no work.
    different.sort(key=lambda launch: launch.name != "convolve")
    failed = []
    # Forked, so that no process has to load torch again; none has a context on a GPU.
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


def _compile(launch: KernelLaunch) -> str | None:
    """Returns what went wrong, if anything did."""
    try:
        kernel = getattr(kernels, launch.name).warmup(*launch.arguments, grid=(1,), **launch.options)
        if hasattr(nvidia, "make_launcher") and _has_driver():
            # Triton before 3.7 also compiles C for each signature, which calls the kernel.
            nvidia.CudaLauncher(kernel.src, kernel.metadata)
    except Exception as error:  # whatever the compiler raises, the other kernels are compiled
        return f"{launch.name} {dict(launch.options)}: {type(error).__name__}: {error}".splitlines()[0]
    return None


def _has_driver() -> bool:
    try:
        return bool(nvidia.libcuda_dirs())
    except (AssertionError, OSError):
        return False
