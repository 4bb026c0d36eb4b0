"""Running quantiles: what usual and slow durations are, learnt one by one. Pure."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence


class Quantile:
    """A running estimate of a quantile that noise hardly moves.

    It is exact over the first `EXACT` values. After that it is a stochastic approximation (Robbins and Monro, 1951):
    each value moves it by at most half a per cent, so that two requests with the same deadline get the same exit.
    After `run` consecutive values below the estimate, it drops to their maximum: the machine has become faster. The
    estimate is multiplied, so values must be above 0.
    """

    EXACT = 16
    STEP = 0.005
    RUN_CHANCE = 2**-32
    """The chance that `run` values in a row lie below the quantile although the machine has not changed."""

    def __init__(self, share: float, first: Sequence[float] = ()) -> None:
        """`share`: of the values that lie below the quantile, above 0 and below 1."""
        self.run = math.ceil(math.log(self.RUN_CHANCE) / math.log(share))
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
            if len(self._below) == self.run:
                self.value = min(self.value, max(self._below))
                self._below = []


class RecentQuantile:
    """The quantile of the latest `LATEST` values. It follows a change at once, where `Quantile` is steady."""

    LATEST = 128

    def __init__(self, share: float, first: Sequence[float] = ()) -> None:
        self._share = share
        self._latest = deque[float]()
        self._sorted: list[float] = []
        for value in first:
            self.add(value)

    @property
    def value(self) -> float:
        """0 until there is a value."""
        return self._sorted[math.ceil(self._share * len(self._sorted)) - 1] if self._sorted else 0.0

    def add(self, value: float) -> None:
        if len(self._latest) == self.LATEST:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)
