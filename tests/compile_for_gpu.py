"""Compiles, without a GPU, all kernels that would run on one: `python tests/compile_for_gpu.py CAPABILITY [WIDTH]`, for
example 90 w48. Prints a line of JSON for each, with what its machine code uses.

Launches are compiled and not run. With a width, of the Cityscapes networks, every tile that would be tried there is
compiled (minutes); without one, a tiny network's first. Not a test by itself: where a test interprets kernels, none can
be compiled.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tiny
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from models.executors.gpu import ops
from models.executors.gpu.executor import TritonExecutor
from models.executors.gpu.layers import Layer, tiles
from models.imaging.geometry import Frame
from models.network.adpc import AdpcNet
from models.network.families import config
from models.training.fused import gpu as fused_gpu

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:\d+ LOCAL:(?P<local>\d+)")
MATRIX = re.compile(r"\b(?:HGMMA|HMMA)\b")


class Absent:
    """Stands for the driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


compiled: dict[str, dict[str, Any]] = {}
"""By hash."""
launch, convolve = JITFunction.run, ops.convolve


def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> object:
    kernel = launch(self, *args, grid=grid, warmup=True, **options)
    if kernel.hash not in compiled:
        constants = {name: value for name, value in options.items() if name.isupper() or name.startswith("num_")}
        compiled[kernel.hash] = {
            "kernel": self.fn.__name__,
            "constants": constants,
            **usage(kernel.asm["cubin"]),
            "shared": kernel.metadata.shared,
        }
    return kernel


def usage(cubin: bytes) -> dict[str, int]:
    """Registers; bytes of stack and local memory, which hold what registers cannot; instructions of tensor cores."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", file.name], text=True)
        code = subprocess.check_output([TOOLS / "nvdisasm", "-c", file.name], text=True)
    found = USAGE.search(told)
    assert found is not None, told
    return {name: int(value) for name, value in found.groupdict().items()} | {"mma": len(MATRIX.findall(code))}


def with_every_tile(layer: Layer, x: torch.Tensor, out: torch.Tensor, *args: Any, **options: Any) -> None:
    for tile in tiles(layer, out.shape[0] * out.shape[1] * out.shape[2]):
        convolve(layer, x, out, *args, **options | {"tile": tile})


def serving(network: AdpcNet, height: int, width: int) -> None:
    executor = TritonExecutor(network, "cpu")
    state = executor.start(torch.zeros(1, 3, height, width), Frame(height, width))
    for _ in executor.steps:
        executor.advance([state])


def training() -> None:
    x = torch.zeros(1, 32, 16, 16, dtype=torch.float16).to(memory_format=torch.channels_last)
    for backward in (False, True):
        fused_gpu.launch(x, x, torch.zeros(256, dtype=torch.uint8), torch.ones(1), 7, backward=backward)


if __name__ == "__main__":
    driver.set_active(Absent(int(sys.argv[1])))
    JITFunction.run = compile_only
    if sys.argv[2:]:
        ops.convolve = with_every_tile
        serving(AdpcNet(config(f"adpc-{sys.argv[2]}-cityscapes")).eval(), 512, 1024)
    else:
        serving(tiny.network(tiny.SEGMENTATION), 64, 96)
    training()
    for found in compiled.values():
        print(json.dumps(found))
