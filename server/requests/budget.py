"""The budget B(x, t) of a request, and what exits are expected to cost. Pure: no clock, torch or asyncio.

All times are in seconds; deadlines are absolute, on the monotonic clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]

GRACE_S = 0.004
"""A required exit may be this late and is still sent, since the alternative is a 504."""


@dataclass(frozen=True)
class Budget:
    """What one request may spend. Every source of limits can only lower it, so the smallest limit wins."""

    arrived_s: float
    deadline_s: float
    max_exit: int

    def capped(self, seconds: float | None = None, max_exit: int | None = None) -> "Budget":
        """This budget with at most `seconds` from arrival and no exit beyond `max_exit`; None is no limit."""
        return replace(
            self,
            deadline_s=self.deadline_s if seconds is None else min(self.deadline_s, self.arrived_s + seconds),
            max_exit=self.max_exit if max_exit is None else min(self.max_exit, max_exit),
        )


@dataclass(frozen=True)
class TrafficCap:
    """Limits the exit by the number of open jobs. `levels`: pairs of (open jobs, deepest exit), in any order."""

    levels: tuple[tuple[int, int], ...] = ()

    def deepest(self, open_jobs: int) -> int | None:
        """The deepest exit to begin while `open_jobs` jobs are open; None: any."""
        return min((exit_index for jobs, exit_index in self.levels if open_jobs >= jobs), default=None)


class Quantile:
    """A running estimate of a quantile that noise hardly moves.

    It is exact over the first `EXACT` values. After that it is a stochastic approximation (Robbins and Monro, 1951):
    each value moves it by at most half a per cent, so that two requests with the same deadline get the same exit.
    After `RUN` consecutive values below the estimate, it drops to their maximum: the machine has become faster.
    """

    EXACT = 16
    STEP = 0.005
    RUN = 32

    def __init__(self, share: float, first: Sequence[float] = ()) -> None:
        self._share = share
        self._first: list[float] = []
        self._below: list[float] = []
        self.value = 0.0
        for value in first:
            self.add(value)

    def add(self, value: float) -> None:
        if len(self._first) < self.EXACT:
            self._first.append(value)
            self.value = sorted(self._first)[math.ceil(self._share * len(self._first)) - 1]
        else:
            self._below = [*self._below, value] if value < self.value else []
            self.value *= 1 + self.STEP * (self._share - (value <= self.value))
            if len(self._below) == self.RUN:
                self.value = min(self.value, max(self._below))
                self._below = []


class Costs:
    """Seconds from the start of a job to each of its exits, learnt from the jobs before.

    The typical (median) seconds of each stage are kept by model and shape. The time of a stage at a shape that was not
    seen is scaled from the nearest shape by area. One factor for each model, its slowness, says how much longer slow
    jobs take, so that a machine that slows down shows in every shape at once. It is measured over whole jobs, where one
    hiccup weighs little.
    """

    SLOW_SHARE = 0.95
    """The share of jobs that are no slower than the safe estimate."""
    SLOW_LEAST = 1.05
    """The least slowness."""
    SLOW_FIRST = 1.25
    """The slowness that is assumed until jobs have shown another one."""
    SPARE_S = 0.003
    """Added to every safe estimate."""
    SHAPES = 256
    """Shapes that are remembered for each stage of a model."""

    def __init__(self) -> None:
        self._stages: dict[tuple[str, int], dict[Shape, Quantile]] = {}
        self._slowness: dict[str, Quantile] = {}

    def observe(self, model: str, shape: Shape, exit_index: int, stage_s: float) -> None:
        """Learn that the stage before exit `exit_index` took `stage_s` to compute."""
        shapes = self._stages.setdefault((model, exit_index), {})
        typical = shapes.pop(shape, None) or Quantile(0.5)
        typical.add(stage_s)
        shapes[shape] = typical
        if len(shapes) > self.SHAPES:
            del shapes[next(iter(shapes))]  # the shape that was not seen for longest

    def observe_cut(self, model: str, shape: Shape, exit_index: int, stage_s: float) -> None:
        """Learn from a stage that was left unfinished after `stage_s`, if it is known to take less.

        Without this, a stage that never fits would be begun again and again.
        """
        if 0 < self._stage_s(model, shape, exit_index) < stage_s:
            self.observe(model, shape, exit_index, stage_s)

    def judge(self, model: str, shape: Shape, exit_index: int, seconds: float) -> None:
        """Learn the slowness from a job that took `seconds` to compute up to exit `exit_index`."""
        typical_s = self.typical_s(model, shape, exit_index)
        if typical_s:
            # Start as if `EXACT` jobs had been this slow, so that one hiccup does not count for much.
            first = [self.SLOW_FIRST] * Quantile.EXACT
            self._slowness.setdefault(model, Quantile(self.SLOW_SHARE, first)).add(seconds / typical_s)

    def typical_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """Median seconds from the start of a job to exit `exit_index`; 0 for exit 0, and while nothing is known."""
        return sum(self._stage_s(model, shape, index) for index in range(1, exit_index + 1))

    def safe_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """Seconds that 95 % of the jobs do not exceed: at least 5 % and 3 ms above the typical ones."""
        return self.slowness(model) * self.typical_s(model, shape, exit_index) + self.SPARE_S

    def slowness(self, model: str) -> float:
        """The ratio to the typical seconds that 95 % of the jobs do not exceed."""
        measured = self._slowness.get(model)
        return max(measured.value, self.SLOW_LEAST) if measured else self.SLOW_LEAST

    def _stage_s(self, model: str, shape: Shape, exit_index: int) -> float:
        shapes = self._stages.get((model, exit_index), {})
        if not shapes:
            return 0.0
        area = math.prod(shape)
        nearest = shape if shape in shapes else min(shapes, key=lambda seen: abs(math.log(area / math.prod(seen))))
        return shapes[nearest].value * area / math.prod(nearest)
