"""The scheduler: which step of which job runs next. Pure: no clock, torch or asyncio; its driver passes the time in.

Every job's first exit comes first, then exits that are required beyond it, then the job with the earliest deadline. A
further exit is begun only if it would be ready by the deadline at the safe estimate of `CostModel`.
"""

from dataclasses import dataclass, field

from server.engine.messages import JobSpec, Stop
from server.requests.budget import GRACE_S, TrafficCap
from server.scheduling.costs import CostModel, Shape


@dataclass
class ScheduledJob:
    """A job and its progress, as the scheduler sees it.

    `shape`: the network input's height and width, which decide the cost. `steps`: for each step of the model, the exit
    that it completes, or None. `compute_deadline_s`: the worker's copy of the deadline, which may move. `exit`: the
    latest exit, 0 before the first. `used_s`: seconds of computation so far, without the time that it waited.
    `good_enough`: the latest exit meets the quality that was asked for.
    """

    spec: JobSpec
    shape: Shape
    steps: tuple[int | None, ...]
    compute_deadline_s: float = field(init=False)
    next_step: int = 0
    exit: int = 0
    used_s: float = 0.0
    good_enough: bool = False

    def __post_init__(self) -> None:
        self.compute_deadline_s = self.spec.compute_deadline_s

    @property
    def urgency(self) -> tuple[int, float, int]:
        """The sort key: the smallest runs first."""
        rank = 0 if self.exit == 0 else 1 if self.exit < self.spec.required else 2
        return rank, self.compute_deadline_s, self.spec.key


class Scheduler:
    """The open jobs of one device."""

    FRESH_S = 10.0
    """Estimates refuse a job only if its model has reached an exit within this time. Otherwise a slow minute would be
    remembered for ever: every job would be refused, and none would show that the machine is fast again."""

    NOISE_S = 0.002
    """A start that differs from the usual one by less than this counts as usual. It is less than the reserve of
    `CostModel.safe_s`."""

    def __init__(self, costs: CostModel, cap: TrafficCap | None = None) -> None:
        self.costs = costs
        self._cap = cap or TrafficCap()
        self._jobs: dict[int, ScheduledJob] = {}
        self._reached_s: dict[str, float] = {}  # by model, when a job reached an exit last

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: ScheduledJob, now_s: float) -> float | None:
        """Take a job and return None, or refuse it and return the seconds after which it may be tried again.

        A job is refused if waiting for others would make it late; the seconds are then those until its turn. It is also
        refused if it would make another job late; the seconds are then those until every job has its required exit.
        """
        before, after = self._ready_s(), self._ready_s(job)
        ready_s, alone_s = after.pop(job.spec.key), self._typical_s(job, job.spec.required)
        if alone_s <= job.compute_deadline_s - now_s < ready_s:
            return ready_s - alone_s
        for key, other in self._jobs.items():
            left_s = other.compute_deadline_s - now_s
            if key in before and before[key] <= left_s < self.costs.margin(other.spec.model) * after[key]:
                return max(before.values())
        self._jobs[job.spec.key] = job
        return None

    def _ready_s(self, *more: ScheduledJob) -> dict[int, float]:
        """For each job that lacks its required exit, by key: the typical seconds until it has it. `more` jobs are
        counted as if they had been added."""
        work = []
        for job in (*self._jobs.values(), *more):
            required, key = job.spec.required, job.spec.key
            first_s, all_s = self._typical_s(job, 1), self._typical_s(job, required)
            if job.exit == 0:
                work.append(((0, job.compute_deadline_s, key), max(0.0, first_s - job.used_s)))
            if job.exit < required and required > 1:
                work.append(((1, job.compute_deadline_s, key), max(0.0, all_s - max(first_s, job.used_s))))
        ready_s, passed_s = {}, 0.0
        for (_, _, key), seconds in sorted(work):
            passed_s += seconds
            ready_s[key] = passed_s
        return ready_s

    def cancel(self, key: int) -> ScheduledJob | None:
        """Remove a job; returns it, or None if it has ended."""
        return self._jobs.pop(key, None)

    def move_deadline(self, key: int, compute_deadline_s: float) -> None:
        """Set another compute deadline; does nothing if the job has ended."""
        if key in self._jobs:
            self._jobs[key].compute_deadline_s = compute_deadline_s

    def ended(self, now_s: float) -> list[tuple[ScheduledJob, Stop]]:
        """Remove and return the jobs for which nothing more is to be done, each with the reason."""
        deepest = self._cap.deepest(len(self._jobs))
        found = [(job, stop) for job in self._jobs.values() if (stop := self._stop(job, now_s, deepest))]
        for job, _ in found:
            del self._jobs[job.spec.key]
        return found

    def next(self) -> ScheduledJob | None:
        """The job whose next step should run; None if there is none. Call `ended` first."""
        return min(self._jobs.values(), key=lambda job: job.urgency, default=None)

    def ran(self, job: ScheduledJob, seconds: float, now_s: float, *, good_enough: bool = False) -> None:
        """The next step of `job` has run. `good_enough`: its new exit meets the quality that was asked for."""
        job.used_s += seconds
        if exit_index := job.steps[job.next_step]:
            job.exit = exit_index
            self._reached_s[job.spec.model] = now_s
        job.next_step += 1
        job.good_enough = good_enough

    def _stop(self, job: ScheduledJob, now_s: float, deepest: int | None) -> Stop | None:
        spec = job.spec
        if job.next_step == len(job.steps):
            return Stop.COMPLETE
        if job.exit >= spec.required:
            if job.exit >= spec.max_exit:
                return Stop.MAX_EXIT
            at_exit = job.steps[job.next_step - 1] is not None
            if at_exit and job.exit >= spec.min_exit:
                if deepest is not None and job.exit >= deepest:
                    return Stop.MAX_EXIT
                if job.good_enough:
                    return Stop.QUALITY
            return None if self._fits(job, now_s) else Stop.DEADLINE
        if now_s > job.compute_deadline_s + GRACE_S or self._hopeless(job, now_s):
            return Stop.DEADLINE if job.exit else Stop.NO_EXIT
        return None

    def _fits(self, job: ScheduledJob, now_s: float) -> bool:
        """Whether the next exit will be ready by the deadline, at the safe estimate."""
        safe_s = self.costs.safe_s(job.spec.model, job.shape, job.exit + 1)
        deadline_s = job.compute_deadline_s
        return now_s < deadline_s and self._virtual_start_s(job, now_s) + safe_s <= deadline_s

    def _hopeless(self, job: ScheduledJob, now_s: float) -> bool:
        """Whether the required exit would be late, at the typical estimate."""
        if now_s - self._reached_s.get(job.spec.model, -self.FRESH_S) >= self.FRESH_S:
            return False
        typical_s = self._typical_s(job, job.spec.required)
        return self._virtual_start_s(job, now_s) + typical_s > job.compute_deadline_s

    def _typical_s(self, job: ScheduledJob, exit_index: int) -> float:
        return self.costs.typical_s(job.spec.model, job.shape, exit_index)

    def _virtual_start_s(self, job: ScheduledJob, now_s: float) -> float:
        """When the job would have started if it had not waited: now minus compute used, snapped to the usual start
        within `NOISE_S`.

        Decode jitter therefore cannot change which exit is reached on an idle device. If a job is earlier than usual by
        more than `NOISE_S`, only `NOISE_S` of that is given up, so that it reaches every exit that there is time for.
        """
        start_s = now_s - job.used_s
        usual_s = job.spec.usual_start_s
        return start_s if start_s > usual_s + self.NOISE_S else min(usual_s, start_s + self.NOISE_S)
