"""The pace of workers: how many times their usual seconds stages take under load. Pure: the caller passes the time
in."""

import math


class Pace:
    """The ratio of the time from one required exit to the next to the typical seconds of the stage between them.

    It is above 1: the front end needs the cores, too, for images and answers, and the worker hears and tells between
    two stages. Over many stages the mean counts, which hiccups raise and a median does not see. What `n` stages take
    exceeds `n` times the mean by a deviation that grows with the root of `n`. The stages of the latest second count
    most. When load sets in after a pause, no stage is so recent, and the pace of earlier load counts.

    How many deviations a promise must leave is learnt from the promises, as in adaptive conformal inference (Gibbs and
    Candes, 2021): each one that was broken adds to their number, each one that was kept takes a little from it, so that
    in the long run the share `BROKEN_SHARE` is broken, however stages are distributed and correlated.
    """

    HALF_LIFE_S = 0.7
    """Half-life, in seconds, of the weight of a stage in the pace."""
    FIRST = 1.3
    """The ratio to the typical seconds that is assumed before any load."""
    FIRST_DEVIATION_S = 0.0012
    """The deviation that is assumed before any load, and the lower limit of the measured one."""
    EARLIER_WEIGHT = 6.0
    """The weight of earlier load beside recent stages, in stages."""
    EARLIER_STAGES = 500
    """The pace of earlier load is a moving average over about so many stages."""
    EARLIER_HALF_LIFE_S = 60.0
    """Half-life, in seconds, of the pace of earlier load. It decays towards what is assumed before any load."""
    OUTLIER = 5.0
    """The ratio of one stage is clipped to this."""
    BROKEN_SHARE = 0.001
    """The share of promises that may be broken."""
    DEVIATIONS = 6.0
    """The number of deviations at first. It is large, because leaving too much room at the start costs little."""
    DEVIATIONS_LIMITS = 1.5, 10.0
    STEP = 1.0
    """What a broken promise adds to their number."""

    def __init__(self) -> None:
        self._weight = self._ratios = self._squares_s2 = 0.0
        self._earlier, self._earlier_square_s2 = self.FIRST, self.FIRST_DEVIATION_S**2
        self._since_s = -math.inf
        self._deviations = self.DEVIATIONS

    def factor(self, now_s: float) -> float:
        """The mean ratio of the seconds that stages take to their typical ones."""
        self._forget(now_s)
        return (self._ratios + self._earlier * self.EARLIER_WEIGHT) / (self._weight + self.EARLIER_WEIGHT)

    def noise_s(self, now_s: float) -> float:
        """The seconds to leave for the noise of one stage: so many upper semideviations. Only stages above the mean
        count, because shorter ones make no request late."""
        self._forget(now_s)
        squares_s2 = self._squares_s2 + self._earlier_square_s2 * self.EARLIER_WEIGHT
        deviation_s = math.sqrt(squares_s2 / (self._weight + self.EARLIER_WEIGHT))
        return self._deviations * max(self.FIRST_DEVIATION_S, deviation_s)

    def add(self, typical_s: float, took_s: float, now_s: float, stages: int = 1) -> None:
        """Learn from a batch of `stages` stages: they typically take `typical_s` in all, and took `took_s`."""
        if typical_s <= 0:
            return
        ratio = min(took_s / typical_s, self.OUTLIER)
        longer_s = max(0.0, ratio - self.factor(now_s)) * typical_s
        self._squares_s2 += longer_s**2
        self._ratios += stages * ratio
        self._weight += stages
        share = min(1.0, stages / self.EARLIER_STAGES)
        self._earlier += share * (ratio - self._earlier)
        self._earlier_square_s2 += share * (longer_s**2 / stages - self._earlier_square_s2)

    def promised(self, *, kept: bool) -> None:
        """A request that was admitted had its required exit in time, or not."""
        least, most = self.DEVIATIONS_LIMITS
        change = self.STEP * ((0.0 if kept else 1.0) - self.BROKEN_SHARE)
        self._deviations = min(most, max(least, self._deviations + change))

    def forgive(self) -> None:
        """Forget that many promises were broken lately, because the worker that broke them is gone."""
        self._deviations = min(self._deviations, self.DEVIATIONS)

    def _forget(self, now_s: float) -> None:
        passed_s = now_s - self._since_s
        if passed_s <= 0:
            return
        self._since_s = now_s
        kept = math.exp2(-passed_s / self.HALF_LIFE_S)
        self._weight, self._ratios, self._squares_s2 = kept * self._weight, kept * self._ratios, kept * self._squares_s2
        kept, first_s2 = math.exp2(-passed_s / self.EARLIER_HALF_LIFE_S), self.FIRST_DEVIATION_S**2
        self._earlier = self.FIRST + kept * (self._earlier - self.FIRST)
        self._earlier_square_s2 = first_s2 + kept * (self._earlier_square_s2 - first_s2)
