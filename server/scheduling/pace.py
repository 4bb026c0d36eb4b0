"""The pace at which a worker does what it owes. Pure: no clock."""

import math


class Pace:
    """What the required stages of a worker take from one to the next, compared with their typical seconds.

    They take longer: the front end needs the cores, too, for images and answers, and the worker hears and tells between
    two stages. Over many stages the mean counts, which hiccups raise and a median does not see. What `n` stages take
    deviates from `n` times the mean by its standard deviation times the root of `n`.
    """

    FIRST = 1.3
    """The ratio to the typical seconds that is assumed at first."""
    FIRST_DEVIATION_S = 0.0012
    """The standard deviation that is assumed at first, and the least one."""
    FIRST_WEIGHT = 16.0
    """The assumptions weigh as much as so many stages."""
    MEMORY = 0.99
    """What the stages before still weigh after one more."""
    OUTLIER = 5.0
    """A stage counts as this many times as long as it typically is, at most."""
    SURE = 2.6
    """So many standard deviations above the mean, 99.5 % of sums lie below, if they are normal."""

    def __init__(self) -> None:
        self._weight = self.FIRST_WEIGHT
        self._mean = self.FIRST
        self._square_s2 = self.FIRST_DEVIATION_S**2

    @property
    def factor(self) -> float:
        """The mean ratio of the seconds that stages take to their typical ones."""
        return self._mean

    def noise_s(self, stages: int) -> float:
        """What so many stages may take beyond the mean."""
        return self.SURE * max(self.FIRST_DEVIATION_S, math.sqrt(self._square_s2)) * math.sqrt(stages)

    def add(self, typical_s: float, took_s: float) -> None:
        """A stage that typically takes `typical_s` was there after `took_s`."""
        if typical_s <= 0:
            return
        ratio = min(took_s / typical_s, self.OUTLIER)
        deviation_s = (ratio - self._mean) * typical_s
        self._weight = self.MEMORY * self._weight + 1
        self._mean += (ratio - self._mean) / self._weight
        self._square_s2 += (deviation_s**2 - self._square_s2) / self._weight
