"""Compiles, on all cores, every Triton kernel that networks will launch, before a GPU is asked to run one.

`python -m models.bench.gpu_compile adpc-w48-cityscapes@512x1024 ... [--capability 90] [--processes N] [--tuned FILE]`

Needs Triton and no GPU, see `models.executors.gpu.compile`.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from models.commands.options import parse_size
from models.executors.gpu.compile import KernelLaunch, compile_all, launches_of
from models.executors.gpu.tuning import read
from models.network.adpc import AdpcNet
from models.network.families import config
from models.network.network import build_network


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models.bench.gpu_compile",
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
        allow_abbrev=False,
    )
    parser.add_argument("networks", nargs="+", help="a configuration and a size, such as adpc-w48-cityscapes@512x1024")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU, without the dot (default 90: H100)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tuned", type=Path, help="measured tiles, see models/executors/gpu/tuning.py")
    parser.add_argument("--gpu", default="", help="the name by which these are listed there")
    given = parser.parse_args(arguments)
    began_s = time.monotonic()
    tuned = read(given.tuned, given.gpu) if given.tuned else None
    launches: list[KernelLaunch] = []
    for each in given.networks:
        name, _, size = each.partition("@")
        network = build_network(config(name)).eval()
        assert isinstance(network, AdpcNet)
        launches += launches_of(network, parse_size(size), tuned)
    listed_s = time.monotonic() - began_s
    say = partial(print, file=sys.stderr, flush=True)
    try:
        count = compile_all(launches, given.processes, given.capability, say)
    except RuntimeError as error:
        say(str(error))
        return 1
    took_s = time.monotonic() - began_s - listed_s
    print(f"{count} kernels compiled in {took_s:.1f} s by {given.processes} processes; noted in {listed_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
