"""Where the sparse executor's time goes: by phase of each step, beside the machine's peak."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.anytime import AnytimeModel, Step
from models.bench import workload
from models.bench.cases import BenchCase
from models.executors.cpu.executor import SparseExecutor
from models.imaging.geometry import Frame

PEAK_SIDES = (256, 512)
"""The benchmark multiplies square matrices with these sides to measure the peak rate of the machine. They fit into the
cache of a core."""
PEAK_TRIALS = 30
SHOWN = 0.02
"""Phases below this share of their step are added up in the table."""


@dataclass(frozen=True)
class PhaseProfile:
    """A phase of a step. `gmacs_per_s`: billions of multiply-adds a second, of convolutions at active positions as if
    each was computed directly; 0 if it has none. `of_peak`: that as a share of the machine's peak in the phase's
    precision. Winograd's tiles save multiply-adds, so that it may be above 1."""

    does: str
    ms: float
    gmacs_per_s: float
    of_peak: float


@dataclass(frozen=True)
class StepProfile:
    """A step, with its phases from the longest to the shortest."""

    step: str
    ms: float
    phases: tuple[PhaseProfile, ...]


def profile(case: BenchCase, model: AnytimeModel | None, repeats: int) -> list[StepProfile]:
    """The medians of `repeats` runs, after a first one that does not count."""
    assert isinstance(model, SparseExecutor)
    runs = [_follow(case, model, number) for number in (0, *range(repeats))][1:]
    peaks = {int8: peak(case.threads, int8=int8) for int8 in (False, True)}
    found = []
    for step in model.steps:
        seconds, macs = (np.median(values, 0) for values in zip(*(run[step] for run in runs), strict=True))
        told = zip(model.network.describe(step), seconds, macs, strict=True)
        phases = sorted((_phase(*each, peaks) for each in told), key=lambda phase: -phase.ms)
        found.append(StepProfile(step.name, sum(phase.ms for phase in phases), tuple(phases)))
    return found


def _follow(
    case: BenchCase, model: SparseExecutor, number: int
) -> dict[Step, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Runs the input of that number. Returns the seconds and the multiply-adds of each phase, by step."""
    state, given = model.start(workload.inputs(case, number), Frame(*case.size)), workload.masks(case)
    network, macs = model.network, {}
    network.phase_times = {}
    for step in model.steps:
        model.advance([state])
        macs[step] = np.array(network.phase_macs(step, state.progress), np.float64)
        if step.exit is not None and step.exit <= len(given):
            model.override(state, given[step.exit - 1], shrinking=True)
    times, network.phase_times = network.phase_times, None
    return {step: (times[step], macs[step]) for step in model.steps}


def _phase(does: str, seconds: float, macs: float, peaks: Mapping[bool, float]) -> PhaseProfile:
    rate = macs / seconds / 1e9
    return PhaseProfile(does, 1000 * seconds, rate, rate / peaks["convolve_u8" in does])


def peak(threads: int, *, int8: bool) -> float:
    """Billions of multiply-adds a second in the fastest product of matrices that torch computes."""
    torch.set_num_threads(threads)
    best = 0.0
    for side in PEAK_SIDES:
        a, b = (torch.ones(side, side, dtype=torch.int8 if int8 else torch.float32) for _ in range(2))
        multiply = torch._int_mm if int8 else torch.mm
        multiply(a, b)
        for _ in range(PEAK_TRIALS):
            begin = time.perf_counter()
            multiply(a, b)
            best = max(best, side**3 / (time.perf_counter() - begin) / 1e9)
    return best


def lines(profiled: Sequence[StepProfile]) -> Iterator[str]:
    """A line for each step and for each of its longer phases."""
    yield f"    {'ms':>8}{'of step':>9}{'GMAC/s':>8}{'of peak':>9}  phase"
    for step in profiled:
        yield f"    {step.ms:8.2f}{'':26}  {step.step}"
        short_ms = 0.0
        for phase in step.phases:
            if phase.ms < SHOWN * step.ms:
                short_ms += phase.ms
                continue
            rate = f"{phase.gmacs_per_s:8.0f}{phase.of_peak:9.0%}" if phase.gmacs_per_s else " " * 17
            yield f"    {phase.ms:8.2f}{phase.ms / step.ms:9.0%}{rate}    {phase.does}"
        if short_ms:
            yield f"    {short_ms:8.2f}{short_ms / step.ms:9.0%}{'':17}    all shorter phases"
