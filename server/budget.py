"""B(x, t), what a request may spend, and what its exits are expected to cost. Pure: no clock, torch or asyncio.

All times are seconds; deadlines are absolute, on the monotonic clock.
"""

import math
from collections import deque
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


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

    RISE, FALL = 1.02, 0.9

    def __init__(self, share: float, first: float | None = None, window: int = 128) -> None:
        self._share = share
        self._latest: deque[float] = deque([] if first is None else [first], maxlen=window)
        self.value = first

    def add(self, value: float) -> None:
        self._latest.append(value)
        ordered = sorted(self._latest)
        found = ordered[math.ceil(self._share * len(ordered)) - 1]
        if self.value is None or not self.value * self.FALL <= found <= self.value * self.RISE:
            self.value = found


class Costs:
    """Seconds from the start of a job to each of its exits, learnt from what they took.

    The typical (median) seconds of each stage are kept by model and shape; how far the slow ones lie above them is one
    factor a model, so that a machine that slows down is noticed at any shape. A stage that was not seen at some shape
    is reckoned from the nearest one, in proportion to its area.
    """

    SLOW_SHARE = 0.98
    SLOW_LEAST = 1.05

    def __init__(self) -> None:
        self._stages: dict[tuple[str, int], dict[Shape, Quantile]] = {}
        self._slowdowns: dict[str, Quantile] = {}

    def observe(self, model: str, shape: Shape, exit_index: int, stage_s: float) -> None:
        """The stage that ends with exit `exit_index` took `stage_s` of computation."""
        shapes = self._stages.setdefault((model, exit_index), {})
        typical = shapes.get(shape)
        if typical is None or not typical.value:  # nothing to compare it with
            shapes[shape] = Quantile(0.5, stage_s, window=32)
            return
        self._slowdowns.setdefault(model, Quantile(self.SLOW_SHARE)).add(stage_s / typical.value)
        typical.add(stage_s)

    def typical_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """The median seconds from the start to exit `exit_index`; 0 for exit 0, and while nothing is known."""
        return sum(self._stage_s(model, shape, index) for index in range(1, exit_index + 1))

    def safe_s(self, model: str, shape: Shape, exit_index: int) -> float:
        """Seconds that almost every run keeps (98 %), at least 5 % above the typical ones."""
        slowdown = self._slowdowns.get(model)
        factor = max(slowdown.value or 0.0 if slowdown else 0.0, self.SLOW_LEAST)
        return factor * self.typical_s(model, shape, exit_index)

    def _stage_s(self, model: str, shape: Shape, exit_index: int) -> float:
        shapes = self._stages.get((model, exit_index), {})
        if not shapes:
            return 0.0
        area = math.prod(shape)
        nearest = shape if shape in shapes else min(shapes, key=lambda seen: abs(math.log(area / math.prod(seen))))
        return (shapes[nearest].value or 0.0) * area / math.prod(nearest)
