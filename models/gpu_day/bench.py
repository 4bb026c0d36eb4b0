"""Rows of `python -m models bench --device cuda`, the most telling first, with less starting of processes."""

import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.bench.gpu import Task, Timing, measure, speed_up, tasks
from models.gpu_day.stages import MissingError
from models.imaging.geometry import Size

ACTIVE = {"w18": (0.837, 0.741, 0.523), "w48": (0.807, 0.616, 0.370)}
"""As in `python -m models bench`: shares that give the multiply-adds of the paper's tables."""
CASES: tuple[tuple[str, Size], ...] = (
    ("w48", (1024, 2048)),
    ("w48", (512, 1024)),
    ("w18", (1024, 2048)),
    ("w18", (512, 1024)),
)
REPEATS = 20
LOST = 4
"""Status of a process that has told of its last row, and whose context on the GPU is of no more use."""


def rows(runtimes: Sequence[str]) -> list[Task]:
    """In order of value: of each case what speed-up needs, then the rest."""
    found = [
        list(tasks(width, size, ACTIVE[width], ("sparse", *runtimes), repeats=REPEATS, seed=0)) for width, size in CASES
    ]
    first = [task for case in found for task in case if _telling(task)]
    return first + [task for case in found for task in case if task not in first]


def _telling(task: Task) -> bool:
    masked = bool(task.active) and min(task.active) < 1
    return masked or (task.runtime == "torch" and task.network.startswith("hrnet"))


def bench(  # noqa: PLR0917 - a job is given them by name
    output: Path, deadline: float, line: Callable[[str], None], device: str, runtimes: Sequence[str], name: str
) -> bool:
    """Every row whose time comes; `name`.json is written after each. Rows share a process until it dies of one."""
    left = [task for task in rows(runtimes) if task.runtime in runtimes]
    if device == "cpu":
        raise MissingError(f"{len(left)} rows need a GPU; the first would be {left[0]}")
    done: list[tuple[Task, Timing]] = []
    failures = 0
    while left and deadline - time.monotonic() > 10:
        for told in _measured(left, deadline):
            task = left.pop(0)
            if "failure" in told:
                failures += 1
                line(f"{task}: left out: {told['failure']}")
                continue
            timing = Timing(**told["timing"])
            done.append((task, timing))
            off = "" if timing.error is None else f"   error {timing.error:.1e}"
            line(f"{task}: {'  '.join(f'{ms:.3f}' for ms in timing.ms)} ms{off}")
            found = [{**asdict(each), **asdict(timing)} for each, timing in done]
            (output / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    for width, size in CASES:
        own = [row for row in done if row[0].size == size and f"-{width}-" in row[0].network]
        if text := speed_up(own):
            line(f"{width} {size[0]}x{size[1]}: {text}")
    line(f"{len(done)} rows, {failures} left out, {len(left)} not reached")
    return bool(done) and not failures


def _measured(left: Sequence[Task], deadline: float) -> Iterator[dict[str, Any]]:
    """What a process finds of each task, until it is through or dead."""
    process = subprocess.Popen(
        [sys.executable, "-m", "models.gpu_day.bench", json.dumps([asdict(task) for task in left])],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith('{"'):
            yield json.loads(text)
    status = process.wait()
    timer.cancel()
    if status not in (0, LOST) and time.monotonic() < deadline:
        yield {"failure": f"its process ended with status {status}"}


def main(argv: Sequence[str]) -> int:
    import torch  # noqa: PLC0415 - the parent needs none of it

    for each in json.loads(argv[0]):
        task = Task(**{**each, "size": tuple(each["size"]), "active": tuple(each["active"])})
        try:
            found: dict[str, Any] = {"timing": asdict(measure(task))}
        except Exception as error:  # whatever a runtime raises, the other rows go on
            traceback.print_exc()
            found = {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(found), flush=True)
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
