"""`python -m models bench`: seconds to every exit, side by side with other runtimes, on a CPU or a GPU."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.bench import gpu
from models.bench.cases import ACTIVE, RUNTIMES, BenchCase, cases, in_precision, trained_cases
from models.bench.report import machine, plot, table
from models.bench.side_by_side import BenchResult, Measurements, measure
from models.commands.options import at_least_1, check_installed, parse_shares, parse_size
from models.data import datasets
from models.directory import resolve
from models.executors.registry import AUTO, PRECISIONS
from models.imaging.geometry import Size

WIDTHS = ("w18", "w48")
SIZES: tuple[Size, ...] = ((360, 480), (512, 1024), (1024, 2048))
REPEATS = 10
CPU_ONLY = ("model", "images", "sweep", "data", "threads", "precision", "profile", "memory", "no_check")
GPU_ONLY = ("limit", "within")
"""Options that mean nothing on the other device."""
RANDOM_ONLY = ("widths", "sizes", "active", "sweep", "no_check")
"""Options that mean nothing for a trained model, which has its own width, size and masks."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--widths", nargs="+", choices=sorted(ACTIVE), help=f"default: {' '.join(WIDTHS)}")
    parser.add_argument("--sizes", nargs="+", type=parse_size, metavar="HxW")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument(
        "--active",
        type=parse_shares,
        metavar="p1,p2,p3",
        help="active shares after exits 1, 2, 3; default: those that give the paper's operation counts",
    )
    parser.add_argument("--repeats", type=at_least_1, default=REPEATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="DIR", help="bench.json and bench.png are written there")
    parser.add_argument("--json", action="store_true")
    cpu = parser.add_argument_group("on a CPU")
    cpu.add_argument(
        "--model", metavar="NAME", help="a trained segmentation model, whose mIoU is measured too, on --data"
    )
    cpu.add_argument("--images", type=at_least_1, metavar="N", help="validation images of --model; default: all")
    cpu.add_argument(
        "--sweep", type=parse_shares, metavar="p,..", help="also measure these active shares, the same at every exit"
    )
    cpu.add_argument(
        "--data",
        metavar="DIR",
        help="data set of --model; else shape masks as CamVid's label maps, not as a drawn scene",
    )
    cpu.add_argument("--threads", type=at_least_1, help="default: torch's")
    cpu.add_argument("--precision", choices=PRECISIONS, help="only runtimes that are told to compute in it; auto: all")
    cpu.add_argument("--profile", action="store_true", help="also measure the phases of every step of our executor")
    cpu.add_argument(
        "--memory", action="store_true", help="also measure each runtime's peak memory, in its own process"
    )
    cpu.add_argument("--no-check", action="store_true", help="do not compare with the reference")
    on_gpu = parser.add_argument_group("on a GPU")
    on_gpu.add_argument("--limit", type=float, metavar="S", help=f"most seconds for a row; default: {gpu.LIMIT_S}")
    on_gpu.add_argument("--within", type=float, metavar="S", help="most seconds for all rows; default: no limit")


def main(args: argparse.Namespace) -> int:
    """Status 1 if a sparse run differs from the reference by more than 1e-4 of the largest score."""
    check_usage(args)
    args.widths, args.sizes = args.widths or WIDTHS, args.sizes or SIZES
    if args.device == "cuda":
        return gpu.main(args, ACTIVE)
    threads = args.threads or torch.get_num_threads()
    about = {"command": shlex.join(sys.argv), "seed": args.seed, "threads": threads, **machine()}
    if args.output is not None:
        check_installed("matplotlib")
        args.output.mkdir(parents=True, exist_ok=True)
    wanted = Measurements(args.repeats, check=not args.no_check, memory=args.memory, profile=args.profile)
    comparisons: list[list[BenchResult]] = []
    report: dict[str, Any] = {**about, "rows": []}
    for chosen in compared(args, threads):
        comparisons.append(measure(chosen, wanted))
        report["rows"] += [result.to_json() for result in comparisons[-1]]
        if not args.json:
            print("\n".join(table(comparisons[-1])), flush=True)
        if args.output is not None:  # now, because the next comparison may fail
            (args.output / "bench.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        print("\n".join(f"{name}: {value}" for name, value in about.items()))
    if args.output is not None:
        plot(comparisons, args.output / "bench.png")
    return 1 if any(result.wrong for results in comparisons for result in results) else 0


def compared(args: argparse.Namespace, threads: int) -> Iterator[list[BenchCase]]:
    """The cases of each comparison. Raises ValueError on a model that cannot be compared."""
    runtimes = args.runtimes
    if args.precision not in (None, AUTO):
        runtimes = in_precision(runtimes, args.precision)
    if args.model is not None:
        scenes = datasets.scenes(Path(args.data), "val")
        if args.images is not None and args.images > len(scenes):
            raise ValueError(f"--images is {args.images}; val of {args.data} has {len(scenes)}: give at most as many")
        height, width = scenes[0].image().shape[:2]
        images = args.images or len(scenes)
        yield list(
            trained_cases(
                resolve(args.model), (height, width), runtimes, data=args.data, images=images, threads=threads
            )
        )
        return
    for width in args.widths:
        for size in args.sizes:
            yield list(
                cases(
                    width,
                    size,
                    runtimes,
                    active=args.active or ACTIVE[width],
                    sweep=args.sweep or (),
                    seed=args.seed,
                    threads=threads,
                    data=args.data,
                )
            )


def check_usage(args: argparse.Namespace) -> None:
    """Raises argparse's error on options that mean nothing beside others, and on shares for another number of exits."""
    _refuse(args, CPU_ONLY if args.device == "cuda" else GPU_ONLY, f"--device {args.device}")
    if args.model is None:
        _refuse(args, ("images",), "random weights")
    else:
        _refuse(args, RANDOM_ONLY, "--model")
        if args.data is None:
            raise argparse.ArgumentError(None, "--model is scored on a data set; name its folder with --data")
    wanted = len(ACTIVE["w18"])
    if args.active is not None and len(args.active) != wanted:
        has = f"--active has {len(args.active)} of {wanted} shares"
        raise argparse.ArgumentError(None, f"{has}; give one after each exit but the last, as in 0.8,0.6,0.4")


def _refuse(args: argparse.Namespace, names: tuple[str, ...], beside: str) -> None:
    for name in names:
        value, option = getattr(args, name), name.replace("_", "-")
        if value is not None and value is not False:
            raise argparse.ArgumentError(None, f"--{option} means nothing with {beside}; leave it out")
