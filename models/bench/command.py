"""`python -m models bench`: seconds to every exit, side by side in one run: the sparse executor under given masks and
at full density, and dense runtimes on the one-exit and the anytime network.

Every runtime has a process of its own, as where it is used; one that dies costs no other. Their runs are interleaved,
so that they meet the same machine.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

from models.anytime import largest, score_difference
from models.bench import gpu
from models.bench.runtimes import RUNTIMES, Task, expected, load, peak, timed
from models.commands.options import parse_shares, parse_size
from models.executors.cpu.isa import Isa
from models.executors.onnx import TOLERANCE
from models.executors.processor import processor
from models.imaging.geometry import Size
from models.network.families import config
from models.network.flops import gmacs

ACTIVE = {"w18": (0.837, 0.741, 0.523), "w48": (0.807, 0.616, 0.370)}
"""Shares that give the multiply-adds of the paper's tables 1 and 3."""
SIZES: tuple[Size, ...] = ((360, 480), (512, 1024), (1024, 2048))
REPEATS = 10
CPU_ONLY, GPU_ONLY = ("sweep", "data", "threads", "memory", "no_check"), ("limit", "within")
"""Options that mean nothing on the other device."""
RUNTIME_DISTRIBUTIONS = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
}


@dataclass
class Row:
    """What a task took. `seconds`: medians to every exit. `difference`: from the reference, of the largest score; None
    where it was not looked for."""

    task: Task
    passes: list[list[float]] = field(default_factory=list)
    difference: float | None = None
    peak_bytes: int | None = None

    @property
    def seconds(self) -> list[float]:
        return [median(column) for column in zip(*self.passes, strict=True)]


def measure(tasks: Sequence[Task], repeats: int, *, check: bool, memory: bool) -> list[Row]:
    """The tasks side by side. Those whose runtime is not there, fails or dies are left out, with a line that says so.

    Raises ValueError if none is left.
    """
    references: dict[tuple[str, tuple[float, ...]], list[Tensor]] = {}
    with ExitStack() as stack:
        by_runtime = {runtime: stack.enter_context(process()) for runtime in dict.fromkeys(t.runtime for t in tasks)}

        def prepared(row: Row) -> None:
            task = row.task
            scores = by_runtime[task.runtime].submit(load, task).result()
            if check:
                key = (task.kind, task.active)
                if key not in references:
                    references[key] = expected(task)
                row.difference = largest(map(score_difference, map(torch.from_numpy, scores), references[key]))

        def passed(row: Row) -> None:
            row.passes.append(by_runtime[row.task.runtime].submit(timed, row.task).result())

        rows = _where([Row(task) for task in tasks], prepared, "prepare")
        for _ in tqdm(range(repeats), desc="measure", leave=False):
            rows = _where(rows, passed)
    if memory:
        rows = _where(rows, _measure_peak)
    if not rows:
        raise ValueError("none of the runtimes could be measured, see above; choose others with --runtimes")
    return rows


def _where(rows: Sequence[Row], do: Callable[[Row], None], progress: str | None = None) -> list[Row]:
    """Those rows with which `do` went well."""
    well = []
    for row in tqdm(rows, desc=progress, leave=False, disable=progress is None):
        try:
            do(row)
        except RuntimeError as error:  # BrokenProcessPool too: its process died
            print(f"left out: {row.task.runtime} ({error})", file=sys.stderr)
        else:
            well.append(row)
    return well


def _measure_peak(row: Row) -> None:
    with process() as alone:
        row.peak_bytes = alone.submit(peak, row.task).result()


def process() -> ProcessPoolExecutor:
    """One that has done nothing yet."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def fastest(rows: Sequence[Row], kind: str, exit_index: int) -> float:
    """Seconds of the fastest dense runtime to an exit; nan if none ran."""
    dense = [row.seconds[exit_index] for row in rows if row.task.kind == kind and row.task.runtime != "sparse"]
    return min(dense, default=float("nan"))


def table(rows: Sequence[Row]) -> Iterator[str]:
    task = rows[0].task
    yield f"HRNet-{task.width.upper()} at {task.size[0]}x{task.size[1]}: milliseconds to every exit, medians"
    heads = "".join(f"{head:>9}" for head in ("exit 1", "2", "3", "4"))
    yield f"  {'runtime':<12}{'network':<28}{heads}{'speed-up':>10}{'difference':>12}{'peak MiB':>10}"
    one = fastest(rows, "one exit", -1)
    for row in rows:
        active = ", ".join(f"{share:.0%}" for share in row.task.active)
        times = [f"{1000 * second:.1f}" for second in row.seconds]
        times = times if len(times) > 1 else ["", "", "", *times]
        off = "" if row.difference is None else f"{row.difference:.1e}"
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
        yield (
            f"  {row.task.runtime:<12}{row.task.kind + (f' {active}' if active else ''):<28}"
            + "".join(f"{text:>9}" for text in times)
            + f"{one / row.seconds[-1]:>9.2f}x{off:>12}{memory:>10}"
        )
    full = next((row.seconds for row in rows if row.task.runtime == "sparse" and row.task.kind == "anytime"), None)
    if full is None:
        return
    yield f"  sparse exit 1 takes {full[0] / fastest(rows, 'anytime', 0):.2f} of the fastest dense runtime's time"
    for row in rows:
        shares = set(row.task.active)
        if len(shares) == 1:
            stages = (row.seconds[-1] - row.seconds[0]) / (full[-1] - full[0])
            yield f"  the stages after exit 1 take {stages:.3f} of their time when {shares.pop():.0%} are active"


def plot(cases: Sequence[Sequence[Row]], path: Path) -> None:
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, len(cases), figsize=(5 * len(cases), 4), squeeze=False, layout="constrained")
    for axis, rows in zip(axes[0], cases, strict=True):
        for row in rows:
            exits = range(1, len(row.seconds) + 1) if len(row.seconds) > 1 else [4]
            style = "o-" if row.task.runtime == "sparse" else "x--"
            axis.plot(exits, row.seconds, style, label=f"{row.task.runtime}, {row.task.kind}")
        task = rows[0].task
        axis.set(title=f"{task.width.upper()}, {task.size[0]}x{task.size[1]}", xlabel="exit", ylabel="seconds")
        axis.set_xticks(range(1, 5))
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def machine() -> dict[str, str | int | None]:
    """What ran what."""
    versions = {}
    for package, distributions in RUNTIME_DISTRIBUTIONS.items():
        versions[package] = "not installed"
        for distribution in distributions:
            with suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(distribution)
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "kernels": Isa.find().name,
        "python": platform.python_version(),
        **versions,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--widths", nargs="+", choices=sorted(ACTIVE), default=["w18", "w48"])
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="HxW")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--active", type=parse_shares, metavar="p1,p2,p3", help="default: the paper's operation counts")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="DIR", help="bench.json and bench.png are written there")
    parser.add_argument("--json", action="store_true")
    cpu = parser.add_argument_group("on a CPU")
    cpu.add_argument("--sweep", type=parse_shares, metavar="p,..", help="also these shares at every exit")
    cpu.add_argument("--data", metavar="DIR", help="CamVid, whose label maps shape the masks; default: a drawn scene")
    cpu.add_argument("--threads", type=int, help="default: torch's")
    cpu.add_argument("--memory", action="store_true", help="also the peak memory of each, in a process of its own")
    cpu.add_argument("--no-check", action="store_true", help="do not compare with the reference")
    on_gpu = parser.add_argument_group("on a GPU")
    on_gpu.add_argument("--limit", type=float, metavar="S", help=f"seconds for each row; default: {gpu.LIMIT_S}")
    on_gpu.add_argument("--within", type=float, metavar="S", help="seconds for all rows; default: as many as they take")


def main(args: argparse.Namespace) -> int:
    """Status 1 if a sparse run differs from the reference by more than 1e-4 of the largest score.

    Raises ValueError if no runtime could be measured, and argparse's error on options for the other device.
    """
    for name in CPU_ONLY if args.device == "cuda" else GPU_ONLY:
        value, option = getattr(args, name), name.replace("_", "-")
        if value is not None and value is not False:
            raise argparse.ArgumentError(None, f"--{option} means nothing with --device {args.device}; leave it out")
    if args.device == "cuda":
        return gpu.main(args, ACTIVE)
    threads = args.threads or torch.get_num_threads()
    about = {"command": shlex.join(sys.argv), "seed": args.seed, "threads": threads, **machine()}
    cases = []
    for width in args.widths:
        for size in args.sizes:
            active = args.active or ACTIVE[width]
            of = partial(Task, width=width, size=size, seed=args.seed, threads=threads, data=args.data)
            tasks = []
            for runtime in args.runtimes:
                if runtime == "sparse":
                    shares = [active, *((share,) * 3 for share in args.sweep or ())]
                    tasks += [of(runtime, "masked", active=found) for found in shares]
                tasks += [of(runtime, "anytime"), of(runtime, "one exit")]
            cases.append(measure(tasks, args.repeats, check=not args.no_check, memory=args.memory))
            if not args.json:
                print("\n".join(table(cases[-1])), flush=True)
    report = {
        **about,
        "rows": [{**asdict(row), "seconds": row.seconds, "gmacs": _gmacs(row.task)} for rows in cases for row in rows],
    }
    print(json.dumps(report) if args.json else "\n".join(f"{name}: {value}" for name, value in about.items()))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(cases, args.output / "bench.png")
    return 1 if any(wrong(row) for rows in cases for row in rows) else 0


def wrong(row: Row) -> bool:
    """Whether our own executor differs from the reference, by a score that is not a number too."""
    return row.task.runtime == "sparse" and row.difference is not None and not row.difference <= TOLERANCE


def _gmacs(task: Task) -> list[float]:
    return gmacs(config(task.config), *task.size, task.active)
