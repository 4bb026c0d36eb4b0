"""Seconds to every exit, side by side in one run: the sparse executor under given masks and at full density, and dense
runtimes on the one-exit and the anytime network.

Every runtime has a process of its own, as where it is used, so that one that dies costs no other. Their repetitions are
interleaved, so that all of them meet the machine in the same state.
"""

import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.anytime import largest, score_difference
from models.bench.runtimes import OWN, BenchCase, expected, load, peak, timed
from models.executors.onnx import TOLERANCE
from models.imaging.geometry import Size
from models.network.families import config
from models.network.flops import gmacs

ACTIVE = {"w18": (0.837, 0.741, 0.523), "w48": (0.807, 0.616, 0.370)}
"""Active shares by width that give the multiply-adds of the paper's tables 1 and 3."""


@dataclass
class BenchResult:
    """What a case took.

    `repetitions`: seconds to every exit, once for each repetition. `difference`: the largest difference from the
    reference's scores in float32, as a share of the largest score; None where it was not looked for. `peak_bytes`: None
    where it was not measured. `precision`: see `Prepared`.
    """

    case: BenchCase
    repetitions: list[list[float]] = field(default_factory=list)
    difference: float | None = None
    peak_bytes: int | None = None
    precision: str = "fp32"

    @property
    def seconds(self) -> list[float]:
        """The median to every exit."""
        return [median(column) for column in zip(*self.repetitions, strict=True)]

    @property
    def wrong(self) -> bool:
        """Whether our own executor in float32 differs from the reference, also by a score that is not a number."""
        return self.case.runtime == "sparse" and self.difference is not None and not self.difference <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """A difference that is not a number becomes None, which JSON can say."""
        return {
            "task": asdict(self.case),
            "passes": self.repetitions,
            "difference": None if self.difference is None or math.isnan(self.difference) else self.difference,
            "peak_bytes": self.peak_bytes,
            "precision": self.precision,
            "seconds": self.seconds,
            "gmacs": gmacs(config(self.case.config), *self.case.size, self.case.active),
        }


def cases(
    width: str,
    size: Size,
    runtimes: Sequence[str],
    *,
    active: tuple[float, ...],
    sweep: Sequence[float] = (),
    seed: int = 0,
    threads: int = 1,
    data: str | None = None,
) -> Iterator[BenchCase]:
    """The cases that are compared with each other. `active`: shares after exits 1 to 3. `sweep`: shares that the sparse
    executor also runs with, the same at every exit."""
    for runtime in runtimes:
        if runtime in OWN:
            for shares in (active, *((share,) * 3 for share in sweep)):
                yield BenchCase(runtime, "masked", width, size, shares, seed, threads, data)
        for kind in ("anytime", "one exit"):
            yield BenchCase(runtime, kind, width, size, (), seed, threads, data)


def measure(cases: Sequence[BenchCase], repeats: int, *, check: bool, memory: bool) -> list[BenchResult]:
    """Measures the cases side by side. A case whose runtime is missing, fails or dies is left out, and a line says so.

    `check`: also compare with the reference. `memory`: also measure the peak memory. Raises ValueError if no case is
    left.
    """
    references: dict[tuple[str, tuple[float, ...]], list[Tensor]] = {}
    with ExitStack() as stack:
        runtimes = dict.fromkeys(case.runtime for case in cases)
        processes = {runtime: stack.enter_context(process()) for runtime in runtimes}

        def prepare(result: BenchResult) -> None:
            case = result.case
            scores, result.precision = processes[case.runtime].submit(load, case).result()
            if check:
                key = (case.kind, case.active)
                if key not in references:
                    references[key] = expected(case)
                result.difference = largest(map(score_difference, map(torch.from_numpy, scores), references[key]))

        def repeat(result: BenchResult) -> None:
            result.repetitions.append(processes[result.case.runtime].submit(timed, result.case).result())

        results = _succeeding([BenchResult(case) for case in cases], prepare, "prepare")
        for _ in tqdm(range(repeats), desc="measure", leave=False):
            results = _succeeding(results, repeat)
    if memory:
        results = _succeeding(results, _measure_peak)
    if not results:
        raise ValueError("none of the runtimes could be measured, see above; choose others with --runtimes")
    return results


def _succeeding(
    results: Sequence[BenchResult], do: Callable[[BenchResult], None], description: str | None = None
) -> list[BenchResult]:
    """Does it to every result, and returns those with which it went well."""
    well = []
    for result in tqdm(results, desc=description, leave=False, disable=description is None):
        try:
            do(result)
        except RuntimeError as error:  # BrokenProcessPool too: its process died
            print(f"left out: {result.case.runtime} ({error})", file=sys.stderr)
        else:
            well.append(result)
    return well


def _measure_peak(result: BenchResult) -> None:
    with process() as alone:
        result.peak_bytes = alone.submit(peak, result.case).result()


@contextmanager
def process() -> Iterator[ProcessPoolExecutor]:
    """A fresh process, which has loaded nothing yet. Ctrl-C ends it at once."""
    spawn = multiprocessing.get_context("spawn")
    # The terminal interrupts all processes; the parent's one line is enough.
    with ProcessPoolExecutor(1, spawn, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
            raise


def fastest(results: Sequence[BenchResult], kind: str, exit_index: int) -> BenchResult | None:
    """The dense runtime that is the fastest to an exit, whatever its precision; None if none ran."""
    dense = [result for result in results if result.case.kind == kind and result.case.runtime not in OWN]
    return min(dense, key=lambda result: result.seconds[exit_index], default=None)
