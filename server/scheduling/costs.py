"""What exits are expected to cost, learnt from the stages before. Pure: no clock, torch or asyncio. All times are in
seconds."""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from server.scheduling.quantile import Quantile, RecentQuantile

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StageCost:
    """What one stage costs at one shape: a line of a snapshot.

    `exit`: the exit that the stage leads to. `shape`: the network input's height and width. `half_s`: median seconds
    with half of the positions active, while the device has its usual pace. `slope`: see `ShareSlope`. `active_share`:
    the median active share before the stage.
    """

    model: str
    exit: int
    shape: Shape
    half_s: float
    slope: float
    active_share: float


class ShareSlope:
    """How the seconds of a stage follow the active share before it: those at one half times
    `1 + value * (share - 0.5)`.

    It is the slope of a least-squares line, with older stages forgotten step by step. Until active shares have varied,
    it stays at `PRIOR`: two thirds of a dense stage's time follow the share.
    """

    PRIOR = 1.0
    PRIOR_WEIGHT = 0.1
    """The prior weighs as much as ten stages whose active shares deviate by 0.1."""
    MEMORY = 0.99
    """What the stages before still weigh after one more."""
    STEEPEST = 1.9
    """With this slope, a stage of which nothing is active still takes a twentieth of the seconds at one half."""
    OUTLIER = 0.5
    """A stage that deviates from what is expected by more than this share counts as if it deviated by it."""

    def __init__(self, prior: float = PRIOR) -> None:
        self.value = self._prior = prior
        self._count = self._share = self._time = self._variance = self._covariance = 0.0

    def factor(self, active_share: float) -> float:
        """The ratio of the seconds at `active_share` to those at one half."""
        return 1 + self.value * (active_share - 0.5)

    def add(self, active_share: float, ratio: float) -> None:
        """Learn from a stage that took `ratio` times the seconds at one half."""
        usual = self.factor(active_share)
        ratio = min(max(ratio, usual * (1 - self.OUTLIER)), usual * (1 + self.OUTLIER))
        # Welford's update of means and centred sums, with the memory as the weight of what came before.
        self._count = self.MEMORY * self._count + 1
        from_share, from_time = active_share - self._share, ratio - self._time
        self._share += from_share / self._count
        self._time += from_time / self._count
        self._variance = self.MEMORY * self._variance + from_share * (active_share - self._share)
        self._covariance = self.MEMORY * self._covariance + from_share * (ratio - self._time)
        at_half = max(0.5, self._time - self.value * (self._share - 0.5))
        slope = (self._covariance / at_half + self._prior * self.PRIOR_WEIGHT) / (self._variance + self.PRIOR_WEIGHT)
        self.value = min(max(slope, 0.0), self.STEEPEST)


@dataclass
class _Stage:
    """One stage of a model: the median seconds at half of the positions by shape, and what the active share changes."""

    slope: ShareSlope = field(default_factory=ShareSlope)
    active_share: RecentQuantile = field(default_factory=lambda: RecentQuantile(0.5))
    half_s: dict[Shape, Quantile] = field(default_factory=dict)


class CostModel:
    """Seconds of the stages of every model on one device.

    A stage's *usual* seconds are a median by model, exit and shape, scaled by the active share before the stage. At a
    shape that was not seen they are scaled from the nearest one by area. *Typical* seconds are the usual ones times the
    slow-down: how the latest stages of all models compare with their usual seconds. It forgets a bad minute within
    `RECENT` stages; a pace that lasts becomes the usual one. *Safe* seconds are not exceeded by 95 % of the stages.
    """

    SAFE_SHARE = 0.95
    """The share of stages that are no slower than the safe estimate."""
    MARGIN_LEAST = 1.05
    """The least ratio of safe to typical seconds."""
    MARGIN_FIRST = 1.25
    """The ratio that is assumed until stages have shown another one."""
    SPARE_S = 0.003
    """A reserve, in seconds, that is added to every safe estimate. It is subtracted from the seconds of a stage before
    the margin is learnt."""
    RECENT = 9
    """The slow-down is the median of so many stages, so that a single hiccup does not count."""
    NOISE = 0.05
    """A slow-down that differs from 1 by less counts as 1, so that noise cannot change which exit is reached."""
    SHAPES = 256
    """Shapes that are remembered for each stage of a model."""

    def __init__(self) -> None:
        self.slow_down = 1.0
        self._stages: dict[tuple[str, int], _Stage] = {}
        first = [self.MARGIN_FIRST] * Quantile.EXACT
        self._margins = defaultdict[str, Quantile](lambda: Quantile(self.SAFE_SHARE, first))
        self._recent = deque([1.0] * self.RECENT, self.RECENT)

    def observe(
        self,
        model: str,
        shape: Shape,
        exit_index: int,
        stage_s: float,
        active_share: float = 1.0,
        *,
        unfinished: bool = False,
    ) -> float:
        """Learn that the stage before exit `exit_index` took `stage_s` to compute. Returns the typical seconds that
        were expected; 0 while nothing was known.

        `active_share`: that of the exit before, whose mask says what the stage computes; 1 for the first stage.
        `unfinished`: it would have taken longer, so it does not make the safe estimate smaller.
        """
        typical_s = self.stage_s(model, shape, exit_index, active_share)
        stage = self._stages.setdefault((model, exit_index), _Stage())
        half_s = stage.half_s.pop(shape, None)
        if half_s is not None and typical_s > 0:
            ratio = stage_s / half_s.value / self.slow_down
            self._recent.append(stage_s / (typical_s / self.slow_down))
            margin = (stage_s - self.SPARE_S) / typical_s
            if not unfinished or margin > self.margin(model):
                self._margins[model].add(max(1.0, margin))  # stages of less than `SPARE_S` would make it 0
            stage.slope.add(active_share, ratio)
        stage.active_share.add(active_share)
        stage.half_s[shape] = half_s = half_s or Quantile(0.5)
        half_s.add(stage_s / self.slow_down / stage.slope.factor(active_share))
        if len(stage.half_s) > self.SHAPES:
            del stage.half_s[next(iter(stage.half_s))]  # the shape that was not seen for longest
        self.slow_down = self._slow_down()
        return typical_s

    def observe_cut(self, model: str, shape: Shape, exit_index: int, stage_s: float, active_share: float = 1.0) -> None:
        """Learn from a stage that was left unfinished after `stage_s`, if it is known to take less.

        Without this, a stage that never fits would be begun again and again.
        """
        if 0 < self.stage_s(model, shape, exit_index, active_share) < stage_s:
            self.observe(model, shape, exit_index, stage_s, active_share, unfinished=True)

    def stage_s(self, model: str, shape: Shape, exit_index: int, active_share: float | None = None) -> float:
        """Typical seconds of the stage before exit `exit_index`; 0 while nothing is known. `active_share`: that of the
        exit before; None means the median one."""
        return self.slow_down * self._usual_s(model, shape, exit_index, active_share)

    def typical_s(
        self, model: str, shape: Shape, exit_index: int, after: int = 0, active_share: float | None = None
    ) -> float:
        """Typical seconds from exit `after` (0: the start of the job) to exit `exit_index`; 0 while nothing is known.
        `active_share`: that of exit `after`, if it is known."""
        return self.slow_down * self.usual_s(model, shape, exit_index, after, active_share)[-1]

    def usual_s(
        self, model: str, shape: Shape, exit_index: int, after: int = 0, active_share: float | None = None
    ) -> tuple[float, ...]:
        """As `typical_s` at the usual pace of the device, to every exit from `after`, with 0, to `exit_index`."""
        stages_s = (
            self._usual_s(model, shape, index, active_share if index == after + 1 else None)
            for index in range(after + 1, exit_index + 1)
        )
        return tuple(accumulate(stages_s, initial=0.0))

    def safe_s(
        self, model: str, shape: Shape, exit_index: int, after: int = 0, active_share: float | None = None
    ) -> float:
        """As `typical_s`, but seconds that 95 % do not exceed: at least 5 % and 3 ms above the typical ones."""
        return self.margin(model) * self.typical_s(model, shape, exit_index, after, active_share) + self.SPARE_S

    def margin(self, model: str) -> float:
        """The ratio to the typical seconds that 95 % of the stages do not exceed, but for `SPARE_S`."""
        return max(self._margins[model].value, self.MARGIN_LEAST)

    def snapshot(self, shapes: int = SHAPES) -> tuple[StageCost, ...]:
        """What is known of every stage, at the `shapes` shapes that were seen last."""
        return tuple(
            StageCost(model, exit_index, shape, half_s.value, stage.slope.value, stage.active_share.value)
            for (model, exit_index), stage in self._stages.items()
            for shape, half_s in list(stage.half_s.items())[-shapes:]
        )

    def restore(self, snapshot: Iterable[StageCost]) -> None:
        """Begin with what another cost model knew."""
        for cost in snapshot:
            stage = self._stages.setdefault((cost.model, cost.exit), _Stage())
            stage.slope = ShareSlope(cost.slope)
            stage.active_share = RecentQuantile(0.5, [cost.active_share])
            stage.half_s[cost.shape] = Quantile(0.5, [cost.half_s])

    def _slow_down(self) -> float:
        """The median of the recent ratios, moved towards 1 by up to `NOISE`."""
        median = statistics.median(self._recent)
        return max(1.0, median / (1 + self.NOISE)) if median > 1 else min(1.0, median * (1 + self.NOISE))

    def _usual_s(self, model: str, shape: Shape, exit_index: int, active_share: float | None) -> float:
        stage = self._stages.get((model, exit_index))
        if stage is None or not stage.half_s:
            return 0.0
        share = stage.active_share.value if active_share is None else active_share
        factor = stage.slope.factor(share)
        if shape in stage.half_s:
            return stage.half_s[shape].value * factor
        area = math.prod(shape)
        nearest = min(stage.half_s, key=lambda seen: abs(math.log(area / math.prod(seen))))
        return stage.half_s[nearest].value * factor * area / math.prod(nearest)
