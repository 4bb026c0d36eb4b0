"""A job as the scheduler sees it: its progress, and the outlook on its further exits. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from models.gains import Predictor
from server.engine.messages import JobSpec, Stop
from server.requests.budget import GRACE_S
from server.scheduling.costs import CostModel, Shape
from server.scheduling.gains import GainModel

NOISE_S = 0.002
"""A start that differs from the usual one by less than this counts as usual. It is less than the reserve of
`CostModel.safe_s`."""


class Rank(IntEnum):
    """What a job waits for, the most urgent first."""

    FIRST_EXIT = 0
    REQUIRED_EXIT = 1
    SLACK = 2
    """The job has reached its required exit. The device computes its further exits only while no other job waits for a
    required exit."""


@dataclass(frozen=True)
class Outlook:
    """What can be expected of a job until it runs again. Times are absolute, so that most decisions only compare them.

    `latest_s`: after this time, the next exit would be late by the safe estimate. A required exit may be late by
    `GRACE_S`; `Scheduler` gives a job without others more. `unlikely_s`: after this time, the next exit would be late
    by the typical estimate, too, by more than `NOISE_S`; it is the same as `latest_s` for a required exit.
    `hopeless_s`: after this time, the required exit would be late; infinite once it is there. `needs_s`: typical
    seconds until the required exit, or the next one. `rates`: pairs of a time and the largest expected gain for each
    second of computation until then, in the order of time. It falls when a deeper exit does not fit any more.
    """

    latest_s: float
    unlikely_s: float
    hopeless_s: float
    needs_s: float
    rates: tuple[tuple[float, float], ...] = ()

    def gain_rate(self, now_s: float) -> float:
        for until_s, rate in self.rates:
            if now_s <= until_s:
                return rate
        return 0.0


@dataclass
class ScheduledJob:
    """A job and its progress.

    `shape`: the network input's height and width, which decide the cost. `steps`: for each step of the model, the exit
    that it completes, or None. `compute_deadline_s`: the worker's copy of the deadline, which may move. `exit`: the
    latest exit, 0 before the first. `active_share`: what that exit leaves active. `used_s`: seconds of computation so
    far, without the time that it waited; `stage_s`: those since the latest exit; of a step that several jobs take
    together, each is charged an equal part. `paused`: its next step has begun. `map_left`: of that step, only the map
    of its exit is left to render. `stop`: why the latest exit is the last, or None.

    Noted at every exit: `behind_s` are usual seconds from the start to the latest exit, `ahead_s[k]` those from there
    to the k-th exit after it (`ahead_s[0]` is 0), `gains[k]` the utility that this exit adds.
    """

    spec: JobSpec
    shape: Shape
    steps: tuple[int | None, ...]
    compute_deadline_s: float = field(init=False)
    next_step: int = 0
    exit: int = 0
    active_share: float = 1.0
    used_s: float = 0.0
    stage_s: float = 0.0
    paused: bool = False
    map_left: bool = False
    stop: Stop | None = None
    behind_s: float = 0.0
    ahead_s: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    outlook: Outlook = field(init=False)
    rank: Rank = field(init=False)

    def __post_init__(self) -> None:
        self.compute_deadline_s = self.spec.compute_deadline_s

    def note_exit(self, costs: CostModel, gains: GainModel, shown: Mapping[Predictor, float]) -> None:
        """Note what the exits after the latest one are expected to take and to add."""
        exits = max((index for index in self.steps if index), default=0)
        if self.ahead_s:
            self.behind_s += self.ahead_s[1]
        self.ahead_s = costs.usual_s(self.spec.model, self.shape, exits, self.exit, self.active_share)
        self.gains = (0.0, *gains.ahead(self.spec.model, exits, self.exit, shown))

    def look_ahead(self, costs: CostModel) -> None:
        """Renew the outlook: the job has run, its deadline has moved, or the pace of the device has changed."""
        spec, typical = self.spec, costs.slow_down
        safe = typical * costs.margin(spec.model)
        self.rank = Rank.SLACK
        if self.exit < spec.required:
            self.rank = Rank.REQUIRED_EXIT if self.exit else Rank.FIRST_EXIT
            ahead_s = self.ahead_s[spec.required - self.exit]
            latest_s = self.compute_deadline_s + GRACE_S
            self.outlook = Outlook(
                latest_s,
                latest_s,
                self._latest_s(typical * (self.behind_s + ahead_s)),
                max(0.0, typical * ahead_s - self.stage_s),
            )
            return
        rates: list[tuple[float, float]] = []
        best = 0.0
        for ahead_s, gain in zip(self.ahead_s[1 : 1 + spec.max_exit - self.exit], self.gains[1:], strict=False):
            latest_s = min(
                self._latest_s(safe * (self.behind_s + ahead_s) + costs.SPARE_S),
                self.compute_deadline_s - max(0.0, safe * ahead_s - self.stage_s),
            )
            best = max(best, gain / max(1e-3, typical * ahead_s - self.stage_s))
            rates.insert(0, (latest_s, best))
        if not rates:
            self.outlook = Outlook(-math.inf, -math.inf, math.inf, 0.0)
            return
        needs_s = max(0.0, typical * self.ahead_s[1] - self.stage_s)
        unlikely_s = min(
            self._latest_s(typical * (self.behind_s + self.ahead_s[1])),
            self.compute_deadline_s - needs_s + NOISE_S,
        )
        self.outlook = Outlook(rates[-1][0], unlikely_s, math.inf, needs_s, rates=tuple(rates))

    def joins(self, other: "ScheduledJob") -> bool:
        """Whether the next step of both could be computed in one batch."""
        return (
            self.next_step == other.next_step
            and self.shape == other.shape
            and self.spec.model == other.spec.model
            and not self.paused
            and not other.paused
        )

    def next_exit(self, costs: CostModel) -> tuple[float, float]:
        """The safe seconds until the next exit, without `SPARE_S`, and the time by which it must be there so that the
        required exit is still in time."""
        safe = costs.slow_down * costs.margin(self.spec.model)
        stage_s = safe * self.ahead_s[1]
        further_s = safe * self.ahead_s[max(1, self.spec.required - self.exit)] - stage_s
        return max(0.0, stage_s - self.stage_s), self.compute_deadline_s - costs.SPARE_S - further_s

    def _latest_s(self, total_s: float) -> float:
        """The latest time at which the job is still in time, if it takes `total_s` from its virtual start.

        The virtual start is when the job would have started if it had not waited: now minus compute used. It is snapped
        to the usual start within `NOISE_S`, so that decode jitter cannot change which exit is reached on an idle
        device. If a job is earlier than usual by more than `NOISE_S`, only `NOISE_S` of that is given up, so that it
        reaches every exit that there is time for.
        """
        start_s, usual_s = self.compute_deadline_s - total_s, self.spec.usual_start_s
        return self.used_s + (max(usual_s + NOISE_S, start_s) if start_s >= usual_s else start_s - NOISE_S)


def by_deadline(job: ScheduledJob) -> tuple[float, int]:
    """The order of earliest deadline first."""
    return job.compute_deadline_s, job.spec.key
