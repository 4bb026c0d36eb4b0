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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch

from models.imaging.geometry import MULTIPLE, Size

LIMIT_S = 300
"""For a row, unless another is asked for."""


@dataclass(frozen=True)
class Task:
    """A runtime on a network. `active`: shares of positions after each exit; none: no masks."""

    runtime: str
    network: str
    size: Size
    active: tuple[float, ...] = ()
    repeats: int = 10
    seed: int = 0

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


def measured(task: Task, limit_s: float, measure: Callable[[Task], Timing] = measure) -> Timing:
    """By a process of its own. Raises RuntimeError if it fails, dies or takes longer than `limit_s`."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, measure, task))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit_s):
            raise RuntimeError(f"not done after {limit_s:.0f} s; --limit allows more")
        timing, failure = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if failure is not None:
        raise RuntimeError(failure)
    return cast("Timing", timing)


def _send(sender: Connection, measure: Callable[[Task], Timing], task: Task) -> None:
    try:
        sender.send((measure(task), None))
    except Exception as error:  # whatever a runtime raises, the other rows go on
        sender.send((None, f"{type(error).__name__}: {error}".splitlines()[0]))


def tasks(
    width: str, size: Size, active: tuple[float, ...], runtimes: Sequence[str], *, repeats: int, seed: int
) -> Iterator[Task]:
    """The anytime network under masks, at full density and without them; one-exit HRNet."""
    one, plain, masked = (f"{kind}-{width}-cityscapes" for kind in ("hrnet", "rh", "adpc"))
    if "sparse" in runtimes:
        for shares in active, (1.0,) * len(active):
            yield Task("triton", masked, size, shares, repeats, seed)
    for runtime, names in (
        ("triton", (plain, one) if "sparse" in runtimes else ()),
        ("torch", (plain, one)),
        ("compile", (one,)),
        ("onnxruntime", (one,)),
    ):
        if runtime == "triton" or runtime in runtimes:
            for name in names:
                yield Task(runtime, name, size, repeats=repeats, seed=seed)


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

    bench-gpu.json is written after every row. Raises ValueError without a GPU.
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
    for width in args.widths:
        for height, breadth in args.sizes:
            size = (height + -height % MULTIPLE, breadth + -breadth % MULTIPLE)
            active = tuple(args.active or shares[width])
            first = len(rows)
            for task in tasks(width, size, active, args.runtimes, repeats=args.repeats, seed=args.seed):
                try:
                    timing = measured(task, LIMIT_S if args.limit is None else args.limit)
                except RuntimeError as error:
                    report["left_out"][str(task)] = str(error)
                    say(f"{task}: left out: {error}")
                else:
                    rows.append((task, timing))
                    off = "" if timing.error is None else f"   error {timing.error:.1e}"
                    report["rows"].append({**asdict(task), **asdict(timing)})
                    say(f"{task}: {'  '.join(f'{ms:.3f}' for ms in timing.ms)} ms{off}")
                (folder / "bench-gpu.json").write_text(json.dumps(report, indent=1) + "\n")
            if line := speed_up(rows[first:]):
                say(line)
    if args.json:
        print(json.dumps(report))
    return 0 if rows else 1
