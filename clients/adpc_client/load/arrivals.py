"""Arrival processes: endless sequences of the times at which requests are due, in seconds from the start."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import count
from typing import Protocol


class Arrivals(Protocol):
    """A process of arrivals."""

    def moments(self, chance: random.Random) -> Iterator[float]:
        """The times of arrival in ascending order. `chance` draws them."""


@dataclass(frozen=True)
class ConstantArrivals:
    """One after the other at equal distances, like a metronome."""

    rate_per_s: float

    def moments(self, chance: random.Random) -> Iterator[float]:
        return (index / self.rate_per_s for index in count())


@dataclass(frozen=True)
class PoissonArrivals:
    """Independent users: the gaps are exponential."""

    rate_per_s: float

    def moments(self, chance: random.Random) -> Iterator[float]:
        return _sums(chance.expovariate(self.rate_per_s) for _ in count())


@dataclass(frozen=True)
class GammaArrivals:
    """Independent gaps with a gamma distribution. `variation` is their coefficient of variation (standard deviation /
    mean): below 1 arrivals are more regular than Poisson arrivals, above 1 they cluster."""

    rate_per_s: float
    variation: float

    def moments(self, chance: random.Random) -> Iterator[float]:
        shape = self.variation**-2
        return _sums(chance.gammavariate(shape, 1 / (shape * self.rate_per_s)) for _ in count())


@dataclass(frozen=True)
class BurstArrivals:
    """A Markov-modulated Poisson process of two states (MMPP): calm and burst.

    A burst has `factor` times the rate of the calm and lasts `burst_s` on average; bursts take `share` of the time.
    Over both, the rate is `rate_per_s`.
    """

    rate_per_s: float
    factor: float
    share: float
    burst_s: float

    def moments(self, chance: random.Random) -> Iterator[float]:
        calm_per_s = self.rate_per_s / (1 - self.share + self.share * self.factor)
        calm_s = self.burst_s * (1 - self.share) / self.share
        at_s, burst = 0.0, chance.random() < self.share
        while True:
            end_s = at_s + chance.expovariate(1 / (self.burst_s if burst else calm_s))
            rate_per_s = calm_per_s * (self.factor if burst else 1.0)
            while (at_s := at_s + chance.expovariate(rate_per_s)) < end_s:
                yield at_s
            at_s, burst = end_s, not burst  # memoryless: the gap that the change cut off is drawn anew


def camera_frames(cameras: int, frames_per_s: float, chance: random.Random) -> Iterator[tuple[float, str]]:
    """The moments of all cameras' frames, in order, and which camera's: `0`, `1`, ... They start out of step."""
    starts_s = [chance.uniform(0, 1 / frames_per_s) for _ in range(cameras)]
    return merge(*(_frames(str(camera), start_s, frames_per_s) for camera, start_s in enumerate(starts_s)))


def _frames(camera: str, start_s: float, frames_per_s: float) -> Iterator[tuple[float, str]]:
    return ((start_s + index / frames_per_s, camera) for index in count())


def _sums(gaps: Iterator[float]) -> Iterator[float]:
    at_s = 0.0
    for gap in gaps:
        at_s += gap
        yield at_s
