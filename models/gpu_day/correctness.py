"""Checks that the `triton` executor is right at every exit. Subjects run side by side, each in its own process.

If a process dies, the subject goes on in a new one with the cases after the one that killed it. That case then runs
again alone, with every launch waited for and compared, so that the report can name the layer.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.gpu_day.stages import MissingError
from models.imaging.geometry import Size

Case = tuple[str, str]
"""A kind of masks and a mode; see `models.gpu_day.cases`."""

PROCESSES = 8
"""How many subjects run at once. They share the GPU, and compile their kernels on the host's cores."""
KINDS = {
    "plain": ("paper", "dense", "own", "full", "empty", "single", "corners", "scattered", "pair"),
    "graphs": ("paper", "own", "empty", "single", "full", "dense", "pair"),
}
"""The kinds of masks for each mode; those that find most faults come first."""
W18, W48, POSE = "adpc-w18-cityscapes", "adpc-w48-cityscapes", "adpc-w32-mpii"
# Those that find most faults come first: every network at a small size, then sizes at which faults were seen.
SUBJECTS: tuple[tuple[str, Size], ...] = (
    (W18, (256, 512)),
    (W48, (256, 512)),
    (POSE, (256, 256)),
    (W48, (512, 1024)),
    (W48, (1024, 2048)),
    (W18, (384, 480)),
    (W18, (512, 1024)),
    (W18, (1024, 2048)),
    (W48, (416, 544)),
    (POSE, (512, 1024)),
    (W18, (416, 544)),
    (POSE, (416, 544)),
    (W18, (32, 32)),
    (W48, (384, 480)),
)
FIRST = {"plain": 8, "graphs": len(SUBJECTS)}
"""How many subjects each mode runs. Mode plain, which runs first, tells faults of kernels from faults of graphs; a few
subjects are enough for that."""
SMALLEST_S = 8.0
"""No process is started when less time than this is left."""
PROGRAM = (sys.executable, "-m", "models.gpu_day.cases")


@dataclass(frozen=True)
class Found:
    """The fields of `models.gpu_day.cases.Finding`, as a process printed them."""

    differences: list[float]
    rounding: list[float]
    problems: list[str]

    def __str__(self) -> str:
        """The difference from float32 at the worst exit, then that of PyTorch's half precision."""
        worst = max(range(len(self.differences)), key=lambda index: _badness(self.differences[index]))
        return f"{self.differences[worst]:.1e}/{self.rounding[worst]:.1e}"


@dataclass
class Work:
    """A subject, the cases that are left to run, and the findings. `deaths`: cases whose process died, and why."""

    network: str
    size: Size
    left: list[Case]
    found: dict[Case, Found] = field(default_factory=dict)
    deaths: list[tuple[Case, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.network} {self.size[0]}x{self.size[1]}"


def correctness(deadline: float, line: Callable[[str], None], device: str, mode: str) -> bool:
    """Runs all subjects in a mode. Returns False if a case is wrong or killed its process, or if none ran."""
    if device == "cpu" and mode == "graphs":
        raise MissingError("without a GPU there are no CUDA graphs")
    if device == "cpu":
        works = [Work(W18, (32, 32), [("empty", mode)])]
    else:
        works = [Work(name, size, [(kind, mode) for kind in KINDS[mode]]) for name, size in SUBJECTS[: FIRST[mode]]]
    check = Check(deadline, line, device)
    line("for the worst exit of each case: difference from float32 / that of PyTorch's half precision")
    # Wrong cases are looked into while the other subjects run.
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(check.subject, works))
    wrong = [case for work in works for case, found in work.found.items() if found.problems]
    dead = [case for work in works for case, _ in work.deaths]
    done = sum(len(work.found) for work in works)
    left = sum(len(work.left) for work in works)
    line(f"{done} cases ran, {len(wrong)} are wrong, {len(dead)} ended their process, {left} were not reached")
    return bool(done) and not wrong and not dead


class Check:
    """Runs subjects until `deadline`. It calls `line` from several threads. `program`: the command that runs the cases
    that it is given, as `models.gpu_day.cases` does."""

    def __init__(
        self, deadline: float, line: Callable[[str], None], device: str, program: Sequence[str] = PROGRAM
    ) -> None:
        self.deadline, self.line, self.device, self.program = deadline, line, device, program
        self._looked_into = 0
        self._lock = threading.Lock()

    def subject(self, work: Work) -> None:
        """Runs all cases of a subject. If a process dies, another one runs the rest."""
        while work.left and self.deadline - time.monotonic() > SMALLEST_S and len(work.deaths) < 3:
            before = len(work.left)
            self._run(work)
            if len(work.left) == before:
                self.line(f"{work}: its process did not begin a case, see the log")
                return
        if work.found:
            self.line(f"{work}: " + ", ".join(f"{kind} {found}" for (kind, _), found in work.found.items()))
        bad = [case for case, _ in work.deaths] + [case for case, found in work.found.items() if found.problems]
        if bad:
            self._look_into(work, bad[0])

    def _run(self, work: Work) -> None:
        began_s = time.monotonic()
        running: Case | None = None
        died = ""
        process = self._process(work, work.left, localise=False)
        for told in _lines(process):
            if "begins" in told:
                running = (told["begins"][0], told["begins"][1])
            elif "differences" in told and running is not None:
                work.found[running] = Found(told["differences"], told["rounding"], told["problems"])
                work.left.remove(running)
                for problem in told["problems"]:
                    self.line(f"WRONG {work} {running[0]} {running[1]}: {problem}")
                running = None
            elif "died" in told:
                died = told["died"]
        if running is not None:
            reason = died or f"its process ended with status {process.returncode}"
            if time.monotonic() >= self.deadline - 1:
                self.line(f"{work} {running[0]} {running[1]}: not done when the time was up")
                return
            self.line(f"DIED {work} {running[0]} {running[1]} after {time.monotonic() - began_s:.0f} s: {reason}")
            work.deaths.append((running, reason))
            work.left.remove(running)

    def _look_into(self, work: Work, case: Case) -> None:
        """Run a wrong case again in a fresh process, launch by launch, then under compute-sanitizer if it died."""
        with self._lock:
            self._looked_into += 1
            if self._looked_into > 4:
                return
        self._again(work, case, [])
        tool = shutil.which("compute-sanitizer") or _existing("/usr/local/cuda/bin/compute-sanitizer")
        if tool and any(case == dead for dead, _ in work.deaths) and self.deadline - time.monotonic() > 2 * SMALLEST_S:
            self._again(work, case, [tool, "--print-limit", "4"])

    def _again(self, work: Work, case: Case, prefix: Sequence[str]) -> None:
        if self.deadline - time.monotonic() < SMALLEST_S:
            self.line(f"{work} {case[0]} {case[1]}: no time to look into it")
            return
        name = f"again {work} {case[0]} {case[1]}{' ' + Path(prefix[0]).name if prefix else ''}"
        process = self._process(work, [case], localise=not prefix, prefix=prefix, blocking=True)
        for told in _lines(process, raw=bool(prefix)):
            if "line" in told:
                self.line(f"{name}: {told['line']}")
            elif "died" in told:
                self.line(f"{name}: {told['died']}")
            elif "problems" in told:
                self.line(f"{name}: {'; '.join(told['problems']) or 'right this time'}")

    def _process(
        self, work: Work, cases: Sequence[Case], *, localise: bool, prefix: Sequence[str] = (), blocking: bool = False
    ) -> "subprocess.Popen[str]":
        asked = {
            "network": work.network, "size": work.size, "tiny": self.device == "cpu", "device": self.device,
            "cases": cases, "localise": localise,
        }  # fmt: skip
        environ = {**os.environ, "OMP_NUM_THREADS": "2"}
        if blocking:
            environ["CUDA_LAUNCH_BLOCKING"] = "1"
        process = subprocess.Popen(
            [*prefix, *self.program, json.dumps(asked)],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environ, text=True,
        )  # fmt: skip
        timer = threading.Timer(max(0.0, self.deadline - time.monotonic()), process.kill)
        timer.daemon = True
        timer.start()
        return process


def _lines(process: "subprocess.Popen[str]", *, raw: bool = False) -> Iterator[dict[str, Any]]:
    """Yields each JSON object that a process prints, until it ends. With `raw`, yields its other lines too."""
    with process:
        assert process.stdout is not None
        for text in process.stdout:
            try:
                told = json.loads(text)
            except ValueError:
                told = None
            if isinstance(told, dict):
                yield told
            elif raw and text.startswith("=========") and text.strip("= \n"):
                yield {"line": text.strip("= \n")}


def _existing(path: str) -> str | None:
    return path if Path(path).exists() else None


def _badness(difference: float) -> float:
    return float("inf") if math.isnan(difference) else difference
