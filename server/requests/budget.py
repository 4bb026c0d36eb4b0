"""B(x, t), what a request may spend, and what its exits are expected to cost. Pure: no clock, torch or asyncio.

All times are seconds; deadlines are absolute, on the monotonic clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]

GRACE_S = 0.004
"""A required exit may come so late and is still sent: it is worth more than the 504 that would be on time."""


@dataclass(frozen=True)
class Budget:
    """What one request may spend: every source of limits lowers it, so that the smallest wins."""

    arrived_s: float
    deadline_s: float
    max_exit: int

    def capped(self, seconds: float | None = None, max_exit: int | None = None) -> "Budget":
        """With at most `seconds` from arrival on, and no exit beyond `max_exit`. None: no limit from this source."""
        return replace(
            self,
            deadline_s=self.deadline_s if seconds is None else min(self.deadline_s, self.arrived_s + seconds),
            max_exit=self.max_exit if max_exit is None else min(self.max_exit, max_exit),
        )


@dataclass(frozen=True)
class TrafficCap:
    """The deepest exit that is begun while many jobs are open. `levels`: (open jobs, deepest exit), in any order."""

    levels: tuple[tuple[int, int], ...] = ()

    def deepest(self, open_jobs: int) -> int | None:
        return min((exit_index for jobs, exit_index in self.levels if open_jobs >= jobs), default=None)


class Quantile:
    """A quantile of a stream of values that moves slowly: exact over the first values, then by stochastic approximation
    (Robbins and Monro, 1951), each value moving it by at most half a per cent.

    Who plans with it comes to the same plan for nearly the same deadline, whatever noise the last few values had. What
    `RUN` values in a row stay below is forgotten, and the largest of them taken: the machine was slow, and is no more.
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
    """Seconds from the start of a job to each of its exits, learnt from what they took.

    The typical (median) seconds of each stage are kept by model and shape; a stage that was not seen at some shape is
    reckoned from the nearest one, in proportion to its area. How much longer than that slow jobs take is one factor a
    model, so that a machine that slows down is noticed by whatever runs. It is taken over whole jobs, as one hiccup
    is little in a job and much in a stage.
    """

    SLOW_SHARE = 0.95
    SLOW_LEAST = 1.05
    SLOW_FIRST = 1.25
    SPARE_S = 0.003
    SHAPES = 256

    def __init__(self) -> None:
        self._stages: dict[tuple[str, int], dict[Shape, Quantile]] = {}
        self._slowness: dict[str, Quantile] = {}

    def observe(self, model: str, shape: Shape, exit_index: int, stage_s: float) -> None:
        """The stage that ends with exit `exit_index` took `stage_s` of computation."""
        shapes = self._stages.setdefault((model, exit_index), {})
        typical = shapes.pop(shape, None) or Quantile(0.5)
        typical.add(stage_s)
        shapes[shape] = typical
        if len(shapes) > self.SHAPES:
            del shapes[next(iter(shapes))]  # the one that was not seen for longest

    def observe_cut(self, model: str, shape: Shape, exit_index: int, stage_s: float) -> None:
        """That stage was left unfinished after `stage_s`. If that is longer than it was known to take, it is learnt:
        else a stage that never fits would be begun again and again."""
        if 0 < self._stage_s(model, shape, exit_index) < stage_s:
            self.observe(model, shape, exit_index, stage_s)

    def judge(self, model: str, shape: Shape, exit_index: int, seconds: float) -> None:
        """A job that came to exit `exit_index` took `seconds` of computation until there."""
        typical_s = self.typical_s(model, shape, exit_index)
        if typical_s:
            # As if as many jobs as are counted exactly had been this slow: one hiccup proves nothing yet.
            first = [self.SLOW_FIRST] * Quantile.EXACT
            self._slowness.setdefault(model, Quantile(self.SLOW_SHARE, first)).add(seconds / typical_s)

    def typical_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """The median seconds from the start to exit `exit_index`; 0 for exit 0, and while nothing is known."""
        return sum(self._stage_s(model, shape, index) for index in range(1, exit_index + 1))

    def safe_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """Seconds that almost every job keeps (95 %): at least 5 % and 3 ms above the typical ones."""
        return self.slowness(model) * self.typical_s(model, shape, exit_index) + self.SPARE_S

    def slowness(self, model: str) -> float:
        """How much longer than typical ones almost no job takes (95 %)."""
        known = self._slowness.get(model)
        return max(known.value, self.SLOW_LEAST) if known else self.SLOW_LEAST

    def _stage_s(self, model: str, shape: Shape, exit_index: int) -> float:
        shapes = self._stages.get((model, exit_index), {})
        if not shapes:
            return 0.0
        area = math.prod(shape)
        nearest = shape if shape in shapes else min(shapes, key=lambda seen: abs(math.log(area / math.prod(seen))))
        return shapes[nearest].value * area / math.prod(nearest)
