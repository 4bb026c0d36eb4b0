"""`python -m models bench`: seconds to every exit, side by side with other runtimes, on a CPU or a GPU."""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from models.bench import gpu
from models.bench.report import machine, plot, table
from models.bench.runtimes import RUNTIMES
from models.bench.side_by_side import ACTIVE, cases, measure
from models.commands.options import at_least_1, parse_shares, parse_size
from models.imaging.geometry import Size

SIZES: tuple[Size, ...] = ((360, 480), (512, 1024), (1024, 2048))
REPEATS = 10
CPU_ONLY, GPU_ONLY = ("sweep", "data", "threads", "memory", "no_check"), ("limit", "within")
"""Options that mean nothing on the other device."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--widths", nargs="+", choices=sorted(ACTIVE), default=["w18", "w48"])
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="HxW")
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
        "--sweep", type=parse_shares, metavar="p,..", help="also measure these active shares, the same at every exit"
    )
    cpu.add_argument("--data", metavar="DIR", help="shape the masks as CamVid's label maps; default: as a drawn scene")
    cpu.add_argument("--threads", type=int, help="default: torch's")
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
    if args.device == "cuda":
        return gpu.main(args, ACTIVE)
    threads = args.threads or torch.get_num_threads()
    about = {"command": shlex.join(sys.argv), "seed": args.seed, "threads": threads, **machine()}
    comparisons = []
    for width in args.widths:
        for size in args.sizes:
            chosen = cases(
                width,
                size,
                args.runtimes,
                active=args.active or ACTIVE[width],
                sweep=args.sweep or (),
                seed=args.seed,
                threads=threads,
                data=args.data,
            )
            comparisons.append(measure(list(chosen), args.repeats, check=not args.no_check, memory=args.memory))
            if not args.json:
                print("\n".join(table(comparisons[-1])), flush=True)
    report = {**about, "rows": [result.to_json() for results in comparisons for result in results]}
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        print("\n".join(f"{name}: {value}" for name, value in about.items()))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "bench.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        plot(comparisons, args.output / "bench.png")
    return 1 if any(result.wrong for results in comparisons for result in results) else 0


def check_usage(args: argparse.Namespace) -> None:
    """Raises argparse's error on options for the other device, and on shares for another number of exits."""
    for name in CPU_ONLY if args.device == "cuda" else GPU_ONLY:
        value, option = getattr(args, name), name.replace("_", "-")
        if value is not None and value is not False:
            raise argparse.ArgumentError(None, f"--{option} means nothing with --device {args.device}; leave it out")
    wanted = len(ACTIVE["w18"])
    if args.active is not None and len(args.active) != wanted:
        has = f"--active has {len(args.active)} of {wanted} shares"
        raise argparse.ArgumentError(None, f"{has}; give one after each exit but the last, as in 0.8,0.6,0.4")
