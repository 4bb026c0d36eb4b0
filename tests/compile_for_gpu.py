"""Compiles, without a GPU, all kernels that would run on one: `python tests/compile_for_gpu.py CAPABILITY [WIDTH]`, for
example 90 w48. Prints a line of JSON for each, with what its machine code uses.

The kernels are compiled beforehand, as `models.executors.gpu.compile` does, and then found where they are launched;
`found_in_cache` says so. Launches are compiled and not run. With a width, it compiles every candidate tile of the
Cityscapes network of that width, which takes minutes; without one, the first tile of a tiny network. This is not a test
by itself, because a process that interprets kernels cannot compile any.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiny
import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from models.executors.gpu import compile as compiler
from models.executors.gpu import ops
from models.executors.gpu.compile import AbsentGpu
from models.executors.gpu.executor import TritonExecutor
from models.executors.gpu.layers import TritonConvolution, candidate_tiles
from models.executors.gpu.program import BatchProgram
from models.imaging.geometry import Frame
from models.network.adpc import AdpcNet
from models.network.families import config
from models.network.network import build_network

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:\d+ LOCAL:(?P<local>\d+)")
MATRIX = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync)\b")
SIZE = (32, 64)
"""Of the input; it does not change the machine code."""

compiled: dict[str, dict[str, Any]] = {}
"""The kernels that were compiled, by their hash."""
launch, convolve = JITFunction.run, ops.convolve


def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> object:
    before = cached()
    kernel = launch(self, *args, grid=grid, warmup=True, **options)
    if kernel.hash not in compiled:
        constants = {name: value for name, value in options.items() if name.isupper() or name.startswith("num_")}
        compiled[kernel.hash] = {
            "kernel": self.fn.__name__,
            "constants": constants,
            "found_in_cache": cached() == before,
            "shared": kernel.metadata.shared,
            "mma": len(MATRIX.findall(kernel.asm["ptx"])),
            **usage(kernel.asm["cubin"]),
        }
    return kernel


def cached() -> set[str]:
    """The names of what Triton's cache holds; empty if there is no such folder yet."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton/cache"))
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def usage(cubin: bytes) -> dict[str, int]:
    """How many registers a kernel uses, and how many bytes it spills to stack and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", file.name], text=True)
    found = USAGE.search(told)
    assert found is not None, told
    return {name: int(value) for name, value in found.groupdict().items()}


def with_every_tile(conv: TritonConvolution, x: torch.Tensor, out: torch.Tensor, *args: Any, **options: Any) -> None:
    for tile in candidate_tiles(conv, out.shape[0] * out.shape[1] * out.shape[2]):
        convolve(conv, x, out, *args, **options | {"tile": tile})


def serving(network: AdpcNet, height: int, width: int) -> None:
    """Runs every step with masked convolutions over rows, then with all of them dense."""
    for dense in (frozenset(), frozenset({"any"})):
        with (
            patch.object(ops, "layer_name", lambda conv, x: "any"),
            patch.object(BatchProgram, "dense_layers", lambda program, index, share, dense=dense: dense),
        ):
            executor = TritonExecutor(network, "cpu")
            state = executor.start(torch.zeros(1, 3, height, width), Frame(height, width))
            for _ in executor.steps:
                executor.advance([state])


def training() -> None:
    fused_gpu = importlib.import_module("models.training.fused.gpu")
    x = torch.zeros(1, 32, 16, 16, dtype=torch.float16).to(memory_format=torch.channels_last)
    for backward in (False, True):
        fused_gpu.launch(x, x, torch.zeros(256, dtype=torch.uint8), torch.ones(1), 7, backward=backward)


def main(capability: int, width: str | None) -> None:
    if width is None:
        # Plain heads and a last module of one branch have the fewest variants of kernels. The two networks differ in
        # nothing but whether 16 divides the number of outputs.
        plain = replace(tiny.POSE, heads="plain", backbone=replace(tiny.POSE.backbone, fuse_upsample="bilinear"))
        networks = [tiny.network(replace(plain, outputs=outputs)) for outputs in (16, 17)]
        compiler.candidate_tiles = lambda conv, positions: candidate_tiles(conv, positions)[:1]
    else:
        networks = [build_network(config(f"adpc-{width}-cityscapes")).eval()]
        ops.convolve = with_every_tile
    launches = [launch for network in networks for launch in compiler.launches_of(network, SIZE)]
    compiler.compile_all(launches, len(os.sched_getaffinity(0)), capability, print)
    driver.set_active(AbsentGpu(capability))
    JITFunction.run = compile_only
    for network in networks:
        serving(network, *SIZE)
    training()
    for found in compiled.values():
        print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if sys.argv[2:] else None)
