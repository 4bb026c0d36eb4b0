"""B(x, t), what a request may spend, and what its exits are expected to cost. Pure: no clock, torch or asyncio.

All times are seconds; deadlines are absolute, on the monotonic clock.
"""

import math
from collections import deque
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
    """A quantile of the latest values that holds still: it moves only when it is off by more than a few per cent.

    It follows upwards sooner than downwards: who plans with it should not be late, nor change plans for noise.
    """

    RISE, FALL = 1.08, 0.85

    def __init__(self, share: float, first: Sequence[float] = (), window: int = 128) -> None:
        self._share = share
        self._latest: deque[float] = deque(maxlen=window)
        self.value = 0.0
        for value in first:
            self.add(value)

    def add(self, value: float) -> None:
        self._latest.append(value)
        ordered = sorted(self._latest)
        found = ordered[math.ceil(self._share * len(ordered)) - 1]
        if not self.value * self.FALL <= found <= self.value * self.RISE:
            self.value = found


class Costs:
    """Seconds from the start of a job to each of its exits, learnt from what they took.

    The typical (median) seconds of each stage are kept by model and shape; a stage that was not seen at some shape is
    reckoned from the nearest one, in proportion to its area. How much longer than that slow jobs take is one factor a
    model, so that a machine that slows down is noticed by whatever runs. It is taken over whole jobs, as one hiccup
    is little in a job and much in a stage.
    """

    SLOW_SHARE = 0.95
    SLOW_LEAST = 1.05
    SPARE_S = 0.003
    SHAPES = 256

    def __init__(self) -> None:
        self._stages: dict[tuple[str, int], dict[Shape, Quantile]] = {}
        self._slowness: dict[str, Quantile] = {}

    def observe(self, model: str, shape: Shape, exit_index: int, stage_s: float) -> None:
        """The stage that ends with exit `exit_index` took `stage_s` of computation."""
        shapes = self._stages.setdefault((model, exit_index), {})
        typical = shapes.pop(shape, None) or Quantile(0.5, [], window=64)
        typical.add(stage_s)
        shapes[shape] = typical
        if len(shapes) > self.SHAPES:
            del shapes[next(iter(shapes))]  # the one that was not seen for longest

    def judge(self, model: str, shape: Shape, exit_index: int, seconds: float) -> None:
        """A job that came to exit `exit_index` took `seconds` of computation until there."""
        typical_s = self.typical_s(model, shape, exit_index)
        if typical_s:
            # As if twenty jobs had gone well before the first: one that did not proves nothing yet.
            slowness = self._slowness.setdefault(model, Quantile(self.SLOW_SHARE, [self.SLOW_LEAST] * 20, window=128))
            slowness.add(seconds / typical_s)

    def typical_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """The median seconds from the start to exit `exit_index`; 0 for exit 0, and while nothing is known."""
        return sum(self._stage_s(model, shape, index) for index in range(1, exit_index + 1))

    def safe_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """Seconds that almost every job keeps (95 %): at least 5 % and 3 ms above the typical ones."""
        slowness = self._slowness.get(model)
        factor = max(slowness.value, self.SLOW_LEAST) if slowness else self.SLOW_LEAST
        return factor * self.typical_s(model, shape, exit_index) + self.SPARE_S

    def _stage_s(self, model: str, shape: Shape, exit_index: int) -> float:
        shapes = self._stages.get((model, exit_index), {})
        if not shapes:
            return 0.0
        area = math.prod(shape)
        nearest = shape if shape in shapes else min(shapes, key=lambda seen: abs(math.log(area / math.prod(seen))))
        return shapes[nearest].value * area / math.prod(nearest)
