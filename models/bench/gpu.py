"""Side-by-side speed on a GPU: milliseconds to every exit, against the dense runtimes that one could pick instead.

`python -m models bench --device cuda` comes here. Every row is measured by a process of its own, so that one that
fails, hangs or takes all memory costs no other. No two of these processes live at once: one that prepares would slow
down another that measures. They are forked from one that has loaded the libraries and has not touched the GPU.
"""

import argparse
import importlib
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch

from models.imaging.geometry import MULTIPLE, Size

LIMIT_S = 300
"""For a row, unless another is asked for."""
SHORTEST_S, SHORTEST_COMPILED_S = 4.0, 20.0
"""A row that has less time than this is not begun; torch.compile takes longer before there is anything to measure."""
RUNTIMES = "models.bench.gpu_runtimes"
LABELS = {
    "triton": "Triton, fp16, CUDA graphs",
    "torch": "torch, fp16, CUDA graph",
    "eager": "torch, fp16, no graph",
    "compile": "torch.compile, fp16, CUDA graph",
    "onnxruntime": "ONNX Runtime, fp16",
}
"""What the runtime of a row is."""


@dataclass(frozen=True)
class GpuCase:
    """A runtime on a network. `active`: shares of positions after each exit; none: no masks. `tuned`: a file of layers
    that were measured before, which those of Triton's masked layers are added to; empty: the executor's own."""

    runtime: str
    network: str
    size: Size
    active: tuple[float, ...] = ()
    repeats: int = 10
    seed: int = 0
    tuned: str = ""

    @property
    def shortest_s(self) -> float:
        return SHORTEST_COMPILED_S if self.runtime == "compile" else SHORTEST_S

    @property
    def group(self) -> str:
        """The name of the group of rows that are compared with each other."""
        return f"{self.network.split('-')[1].upper()} {self.size[0]}x{self.size[1]}"

    def __str__(self) -> str:
        active = "".join(f" {share:.0%}" for share in self.active)
        return f"{self.size[0]}x{self.size[1]}  {LABELS[self.runtime]:31} {self.network}{active}"


@dataclass(frozen=True)
class GpuTiming:
    """Milliseconds from an input on the device to each exit's scores, or to the last one's: `ms` are medians,
    `least_ms` the least. Where these are far apart, something disturbed the measurement.

    `error`: largest difference from the fp32 reference / largest score. `choices`: how Triton computes each layer.
    """

    ms: list[float]
    least_ms: list[float]
    error: float | None = None
    choices: dict[str, str] = field(default_factory=dict)


def measure(task: GpuCase) -> GpuTiming:
    """In this process, which from then on has Triton and a GPU's context."""
    timing: GpuTiming = importlib.import_module(RUNTIMES).measure(task)
    return timing


def timing(task: GpuCase, limit_s: float, measure: Callable[[GpuCase], GpuTiming] = measure) -> GpuTiming:
    """`measure` of `task` by a process of its own, which has ended when this returns.

    Raises RuntimeError if the process fails, dies or takes longer than `limit_s`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([RUNTIMES])
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, measure, task), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise RuntimeError(f"not done after {limit_s:.0f} s; --limit and --within allow more")
        found, failure = ours.recv()
    except (EOFError, OSError):
        process.join()
        raise RuntimeError(f"its process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if failure is not None:
        raise RuntimeError(failure)
    return cast("GpuTiming", found)


def measured(
    tasks: Iterable[GpuCase],
    limit_s: float,
    measure: Callable[[GpuCase], GpuTiming] = measure,
    *,
    within_s: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[GpuCase, GpuTiming | RuntimeError]]:
    """Each task, one after the other, within `limit_s` each and `within_s` together."""
    end_s = clock() + within_s
    for task in tasks:
        left_s = end_s - clock()
        if left_s < task.shortest_s:
            yield task, RuntimeError(f"{max(left_s, 0.0):.0f} s are left; --within {within_s:.0f} allows no more")
            continue
        try:
            found: GpuTiming | RuntimeError = timing(task, min(limit_s, left_s), measure)
        except RuntimeError as error:
            found = error
        yield task, found


def _measure(pipe: Connection, measure: Callable[[GpuCase], GpuTiming], task: GpuCase) -> None:
    told: tuple[GpuTiming | None, str | None]
    try:
        told = measure(task), None
    except Exception as error:  # whatever a runtime raises, the other rows go on
        told = None, f"{type(error).__name__}: {error}".splitlines()[0]
    with suppress(BrokenPipeError):  # whoever asked is gone
        pipe.send(told)


def tasks(
    width: str, size: Size, active: tuple[float, ...], runtimes: Sequence[str], *, repeats: int, seed: int, tuned: str
) -> tuple[list[GpuCase], list[GpuCase]]:
    """What the headline needs, the quickest first: the anytime network under masks and at full density, one-exit HRNet.

    Then what can be left: runtimes that are slow to begin or rarely installed, and the anytime network without masks.
    """
    one, plain, masked = (f"{kind}-{width}-cityscapes" for kind in ("hrnet", "rh", "adpc"))
    of = partial(GpuCase, size=size, repeats=repeats, seed=seed, tuned=tuned)
    wanted = {
        "sparse": [
            of("triton", masked, active=active), of("triton", masked, active=(1.0,) * len(active)), of("triton", one)
        ],
        "torch": [of("torch", one)],
    }  # fmt: skip
    rest = {
        "compile": [of("compile", one)],
        "onnxruntime": [of("onnxruntime", one)],
        "torch": [of("eager", one), of("torch", plain)],
        "sparse": [of("triton", plain)],
    }
    first, last = ([task for name in each if name in runtimes for task in each[name]] for each in (wanted, rest))
    return first, last


def speed_up(rows: Sequence[tuple[GpuCase, GpuTiming]]) -> str | None:
    """The first masked row against the fastest dense one-exit network, and the fastest of others' runtimes if that is
    not the same."""
    ours = next((timing.ms[-1] for task, timing in rows if task.active), None)
    dense = [(timing.ms[-1], task.runtime) for task, timing in rows if task.network.startswith("hrnet")]
    dense.sort(key=itemgetter(0))
    if ours is None or not dense:
        return None
    peers = [dense[0], *[pair for pair in dense if pair[1] != "triton"][:1]]
    names = ("the fastest dense one-exit network", "the fastest by another runtime")
    told = [
        f"{ms / ours:.2f}x faster than {name} ({LABELS[runtime]}: {ms:.3f} ms)"
        for name, (ms, runtime) in zip(names, dict.fromkeys(peers), strict=False)
    ]
    return f"{ours:.3f} ms under masks: {', '.join(told)}"


def shown(timing: GpuTiming) -> str:
    """The median to each exit, and what the fastest took."""
    median, least = ("  ".join(f"{ms:.3f}" for ms in each) for each in (timing.ms, timing.least_ms))
    off = "" if timing.error is None else f"   error {timing.error:.1e}"
    return f"{median} ms (least {least}){off}"


def main(args: argparse.Namespace, shares: Mapping[str, tuple[float, ...]]) -> int:
    """`args` of the bench command; `shares` by width, where none are given. Status 1 if nothing could be measured.

    bench-gpu.json is written after every row; tuned.json tells how Triton's layers are fastest, see
    `models.executors.gpu.tuning`. Raises ValueError without a GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU; benchmark with --device cpu")
    if args.runtimes == ["openvino"]:
        raise ValueError("openvino is measured with --device cpu; choose other --runtimes")
    folder = args.output or Path("bench-gpu")
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": shlex.join(sys.argv), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    say = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    say(json.dumps(about))
    rows: list[tuple[GpuCase, GpuTiming]] = []
    report: dict[str, Any] = {**about, "rows": [], "left_out": {}}
    first: list[GpuCase] = []
    last: list[GpuCase] = []
    for width in args.widths:
        planned = [
            tasks(
                width, (height + -height % MULTIPLE, breadth + -breadth % MULTIPLE),
                tuple(args.active or shares[width]), args.runtimes,
                repeats=args.repeats, seed=args.seed, tuned=str(folder / "tuned.json"),
            )
            for height, breadth in args.sizes
        ]  # fmt: skip
        # torch.compile takes long: at the first size it comes before the next network, elsewhere last.
        compiled = [task for task in planned[0][1] if task.runtime == "compile"]
        first += [*(task for each, _ in planned for task in each), *compiled]
        last += [task for _, each in planned for task in each if task not in compiled]
    limit_s = LIMIT_S if args.limit is None else args.limit
    within_s = float("inf") if args.within is None else args.within
    for task, found in measured([*first, *last], limit_s, within_s=within_s):
        if isinstance(found, RuntimeError):
            report["left_out"][str(task)] = str(found)
            say(f"{task}: left out: {found}")
        else:
            rows.append((task, found))
            report["rows"].append({**asdict(task), **asdict(found)})
            say(f"{task}: {shown(found)}")
        (folder / "bench-gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    for group in dict.fromkeys(task.group for task in first):
        if line := speed_up([(task, timing) for task, timing in rows if task.group == group]):
            say(f"{group}: {line}")
    if args.json:
        print(json.dumps(report))
    return 0 if rows else 1
