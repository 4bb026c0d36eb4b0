"""Seconds to every exit, side by side in one run: the sparse executor under masks and at full density, and dense
runtimes on the one-exit and the anytime network.

Every runtime has a process of its own, as where it is used, so that one that dies costs no other. Their repetitions are
interleaved, so that all of them meet the machine in the same state.
"""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.anytime import largest, score_difference
from models.bench import process
from models.bench.accuracy import Accuracy
from models.bench.cases import OWN, BenchCase
from models.bench.profile import StepProfile
from models.bench.workload import expected
from models.executors.onnx import TOLERANCE
from models.network.flops import gmacs


@dataclass
class BenchResult:
    """What a case took.

    `repetitions`: seconds to every exit, once for each repetition. `precision`: what the runtime chose to compute in.
    The rest is None where it was not looked for. `difference`: the largest difference from the reference's scores in
    float32, as a share of the largest score. `accuracy`: that of a trained model. `profile`: of the sparse executor.
    """

    case: BenchCase
    repetitions: list[list[float]] = field(default_factory=list)
    precision: str = "fp32"
    difference: float | None = None
    peak_bytes: int | None = None
    accuracy: Accuracy | None = None
    profile: list[StepProfile] | None = None

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
        counted = gmacs(self.case.config, *self.case.size, self.case.active) if self.accuracy is None else None
        return {
            "task": asdict(self.case),
            "passes": self.repetitions,
            "difference": None if self.difference is None or math.isnan(self.difference) else self.difference,
            "peak_bytes": self.peak_bytes,
            "precision": self.precision,
            "seconds": self.seconds,
            "gmacs": counted if self.accuracy is None else self.accuracy.gmacs,
            "miou": None if self.accuracy is None else self.accuracy.miou,
            "profile": None if self.profile is None else [asdict(step) for step in self.profile],
        }


@dataclass(frozen=True)
class Measurements:
    """What is measured. `check`: also compare random weights with the reference. `memory`: also measure the peak
    memory. `profile`: also measure the phases of the sparse executor."""

    repeats: int
    check: bool = True
    memory: bool = False
    profile: bool = False


def measure(cases: Sequence[BenchCase], wanted: Measurements) -> list[BenchResult]:
    """Measures the cases side by side. A case whose runtime is missing, fails or dies is left out, and a line says so.

    Raises ValueError if no case is left.
    """
    references: dict[tuple[str, tuple[float, ...]], list[Tensor]] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory()))
        folders = {case: root / str(index) for index, case in enumerate(cases)}
        processes = {
            runtime: stack.enter_context(process.process()) for runtime in dict.fromkeys(case.runtime for case in cases)
        }

        def prepare(result: BenchResult) -> None:
            case = result.case
            folders[case].mkdir()
            scores, result.precision = processes[case.runtime].submit(process.load, case, folders[case]).result()
            if wanted.check and case.model is None:
                key = (case.kind, case.active)
                if key not in references:
                    references[key] = expected(case)
                result.difference = largest(map(score_difference, map(torch.from_numpy, scores), references[key]))

        def repeat(result: BenchResult) -> None:
            own, number = processes[result.case.runtime], len(result.repetitions)
            result.repetitions.append(own.submit(process.timed, result.case, number).result())

        def examine(result: BenchResult) -> None:
            case, own = result.case, processes[result.case.runtime]
            if case.model is not None:
                result.accuracy = own.submit(process.scored, case).result()
            if wanted.profile and case.runtime in OWN and case.kind != "one exit":
                result.profile = own.submit(process.profiled, case, wanted.repeats).result()

        def measure_peak(result: BenchResult) -> None:
            with process.process() as alone:
                result.peak_bytes = alone.submit(process.peak, result.case, folders[result.case]).result()

        results = _succeeding([BenchResult(case) for case in cases], prepare, "prepare")
        for _ in tqdm(range(wanted.repeats), desc="measure", leave=False):
            results = _succeeding(results, repeat)
        results = _succeeding(results, examine, "examine")
        for own in processes.values():  # other processes would take memory and cores from those below
            own.shutdown()
        if wanted.memory:
            results = _succeeding(results, measure_peak, "memory")
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


def fastest(results: Sequence[BenchResult], kind: str, exit_index: int) -> BenchResult | None:
    """The dense runtime that is the fastest to an exit, whatever its precision; None if none ran."""
    dense = [result for result in results if result.case.kind == kind and result.case.runtime not in OWN]
    return min(dense, key=lambda result: result.seconds[exit_index], default=None)
