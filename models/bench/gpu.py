"""Side-by-side speed on a GPU: milliseconds to every exit, against the dense runtimes that one could pick instead.

`python -m models bench --device cuda` comes here. Every row is measured by a process of its own, so that one that
fails, hangs or takes all memory costs no other.
"""

import argparse
import importlib
import json
import multiprocessing
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch

from models.imaging.geometry import MULTIPLE, Size

LIMIT_S = 300
"""For a row, unless another is asked for."""


@dataclass(frozen=True)
class Task:
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
    def group(self) -> str:
        """Of the rows that are compared with each other."""
        return f"{self.size[0]}x{self.size[1]}  {self.network.split('-')[1]}"

    def __str__(self) -> str:
        active = "".join(f" {share:.0%}" for share in self.active)
        return f"{self.size[0]}x{self.size[1]}  {self.runtime:12} {self.network}{active}"


@dataclass(frozen=True)
class Timing:
    """`ms`: median milliseconds from an input on the device to each exit's scores, or to the last one's.

    `error`: largest difference from the fp32 reference / largest score. `choices`: how Triton computes each layer.
    """

    ms: list[float]
    error: float | None = None
    choices: dict[str, str] = field(default_factory=dict)


def measure(task: Task) -> Timing:
    """In this process, which from then on has Triton and a GPU's context."""
    timing: Timing = importlib.import_module("models.bench.gpu_runtimes").measure(task)
    return timing


class Row:
    """A process that is to measure `task`: it loads what it needs at once, and waits to be asked before it takes the
    GPU, so that the next rows' processes can load while one measures."""

    def __init__(self, task: Task, measure: Callable[[Task], Timing] = measure) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_measure, args=(theirs, measure, task), daemon=True)
        self._process.start()
        theirs.close()

    def timing(self, limit_s: float) -> Timing:
        """Raises RuntimeError if the process fails, dies or takes longer than `limit_s`; ends it in any case."""
        try:
            self._pipe.send(None)
            if not self._pipe.poll(limit_s):
                raise RuntimeError(f"not done after {limit_s:.0f} s; --limit allows more")
            timing, failure = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"its process ended with status {self._process.exitcode}") from None
        finally:
            self.end()
        if failure is not None:
            raise RuntimeError(failure)
        return cast("Timing", timing)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def measured(
    tasks: Iterable[Task], limit_s: float, measure: Callable[[Task], Timing] = measure, ahead: int = 2
) -> Iterator[tuple[Task, Timing | RuntimeError]]:
    """Each task, by a process of its own, one after the other; `ahead` of them load meanwhile."""
    left = iter(tasks)
    rows = deque((task, Row(task, measure)) for task in islice(left, ahead + 1))
    try:
        while rows:
            task, row = rows.popleft()
            try:
                found: Timing | RuntimeError = row.timing(limit_s)
            except RuntimeError as error:
                found = error
            rows += ((task, Row(task, measure)) for task in islice(left, 1))
            yield task, found
    finally:
        for _, row in rows:
            row.end()


def _measure(pipe: Connection, measure: Callable[[Task], Timing], task: Task) -> None:
    try:
        importlib.import_module("models.bench.gpu_runtimes")
    except ImportError as error:
        failure: str | None = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        failure = None
    pipe.recv()
    if failure is not None:
        pipe.send((None, failure))
        return
    try:
        pipe.send((measure(task), None))
    except Exception as error:  # whatever a runtime raises, the other rows go on
        pipe.send((None, f"{type(error).__name__}: {error}".splitlines()[0]))


def tasks(
    width: str, size: Size, active: tuple[float, ...], runtimes: Sequence[str], *, repeats: int, seed: int, tuned: str
) -> tuple[list[Task], list[Task]]:
    """What the headline needs, the quickest first: the anytime network under masks and at full density, one-exit HRNet.

    Then what can be left: the anytime network without masks, and runtimes that are slow to begin or rarely installed.
    """
    one, plain, masked = (f"{kind}-{width}-cityscapes" for kind in ("hrnet", "rh", "adpc"))
    of = partial(Task, size=size, repeats=repeats, seed=seed, tuned=tuned)
    wanted = {
        "sparse": [
            of("triton", masked, active=active), of("triton", masked, active=(1.0,) * len(active)), of("triton", one)
        ],
        "torch": [of("torch", one)],
    }  # fmt: skip
    rest = {
        "sparse": [of("triton", plain)],
        "torch": [of("torch", plain)],
        "onnxruntime": [of("onnxruntime", one)],
        "compile": [of("compile", one)],
    }
    first, last = ([task for name in each if name in runtimes for task in each[name]] for each in (wanted, rest))
    return first, last


def speed_up(rows: Sequence[tuple[Task, Timing]]) -> str | None:
    """The first masked row against the fastest dense one-exit network."""
    ours = next((timing.ms[-1] for task, timing in rows if task.active), None)
    dense = [(timing.ms[-1], task) for task, timing in rows if task.network.startswith("hrnet")]
    if ours is None or not dense:
        return None
    ms, task = min(dense, key=lambda pair: pair[0])
    return f"{ms / ours:.2f}x faster under masks than the fastest one-exit network ({task.runtime})"


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
    rows: list[tuple[Task, Timing]] = []
    report: dict[str, Any] = {**about, "rows": [], "left_out": {}}
    first: list[Task] = []
    last: list[Task] = []
    for width in args.widths:
        for height, breadth in args.sizes:
            size = (height + -height % MULTIPLE, breadth + -breadth % MULTIPLE)
            found = tasks(
                width, size, tuple(args.active or shares[width]), args.runtimes,
                repeats=args.repeats, seed=args.seed, tuned=str(folder / "tuned.json"),
            )  # fmt: skip
            first += found[0]
            last += found[1]
    for task, timing in measured([*first, *last], LIMIT_S if args.limit is None else args.limit):
        if isinstance(timing, RuntimeError):
            report["left_out"][str(task)] = str(timing)
            say(f"{task}: left out: {timing}")
        else:
            rows.append((task, timing))
            off = "" if timing.error is None else f"   error {timing.error:.1e}"
            report["rows"].append({**asdict(task), **asdict(timing)})
            say(f"{task}: {'  '.join(f'{ms:.3f}' for ms in timing.ms)} ms{off}")
        (folder / "bench-gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    for group in dict.fromkeys(task.group for task in first):
        if line := speed_up([(task, timing) for task, timing in rows if task.group == group]):
            say(f"{group}: {line}")
    if args.json:
        print(json.dumps(report))
    return 0 if rows else 1
