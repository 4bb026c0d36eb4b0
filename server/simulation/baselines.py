"""The disciplines that the server's own is compared with. All admit everything, know what stages usually take, and
answer with the newest exit that is there by the deadline. They differ in whose stage comes next.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

from server.scheduling.scheduler import SLICE_S
from server.simulation.device import SimulatedJob


class Baseline(ABC):
    """A discipline that looks at the jobs of the worker and chooses one."""

    def __init__(self) -> None:
        self.jobs: dict[int, SimulatedJob] = {}

    def admits(self, job: SimulatedJob, now_s: float) -> bool:
        return True

    def submit(self, job: SimulatedJob, now_s: float) -> None:
        self.jobs[job.request.key] = job

    def next(self, now_s: float) -> tuple[SimulatedJob | None, Iterable[SimulatedJob]]:
        ended = [job for job in self.jobs.values() if self.is_over(job, now_s)]
        for job in ended:
            del self.jobs[job.request.key]
        return (self.choose(now_s) if self.jobs else None), ended

    def slice_s(self, job: SimulatedJob, now_s: float) -> float:
        return SLICE_S

    def ran(self, job: SimulatedJob, seconds: float, now_s: float, *, exited: bool) -> None:  # noqa: B027
        """See `Discipline.ran`."""

    def remove(self, job: SimulatedJob, now_s: float) -> None:
        self.jobs.pop(job.request.key, None)

    def is_over(self, job: SimulatedJob, now_s: float) -> bool:
        """Whether nothing more is to be done for a job."""
        return job.exit == job.request.exits

    @abstractmethod
    def choose(self, now_s: float) -> SimulatedJob:
        """One of the jobs, of which there is at least one."""


class ToCompletion(Baseline):
    """Each job is computed to its last exit, even after its request was answered at its deadline."""

    def remove(self, job: SimulatedJob, now_s: float) -> None:
        """It is computed further."""


def by_deadline(job: SimulatedJob) -> tuple[float, int]:
    """The order of earliest deadline first (Liu and Layland, 1973)."""
    return job.compute_deadline_s, job.request.key


class Fifo(ToCompletion):
    """First in, first out."""

    def choose(self, now_s: float) -> SimulatedJob:
        return next(iter(self.jobs.values()))


class Edf(ToCompletion):
    """Earliest deadline first."""

    def choose(self, now_s: float) -> SimulatedJob:
        return min(self.jobs.values(), key=by_deadline)


class FifoCancelled(Baseline):
    """First in, first out; what is answered at its deadline is not computed further."""

    def choose(self, now_s: float) -> SimulatedJob:
        return next(iter(self.jobs.values()))


class FixedExit(Baseline):
    """Earliest deadline first to one exit, the same for all. A job that cannot reach it by its deadline is dropped.

    With the last exit this is EDF with drop.
    """

    def __init__(self, exit_index: int) -> None:
        super().__init__()
        self._exit = exit_index

    def is_over(self, job: SimulatedJob, now_s: float) -> bool:
        target = min(self._exit, job.request.exits)
        return job.exit >= target or now_s + job.usual_s(target) > job.compute_deadline_s

    def choose(self, now_s: float) -> SimulatedJob:
        return min(self.jobs.values(), key=by_deadline)


class LeastAttained(Baseline):
    """The job with the fewest exits, of these the one with the earliest deadline. A stage that cannot be ready by the
    deadline is not begun.

    It follows least attained service (Nuyens and Wierman, *The foreground-background queue*, 2008), in stages.
    """

    def is_over(self, job: SimulatedJob, now_s: float) -> bool:
        return super().is_over(job, now_s) or now_s + job.usual_s(job.exit + 1) > job.compute_deadline_s

    def choose(self, now_s: float) -> SimulatedJob:
        return min(self.jobs.values(), key=lambda job: (job.exit, *by_deadline(job)))


class StabilityScore(Baseline):
    """EdgeServing (Cao et al., arXiv:2605.05527, 2026): at every decision, the model and the exit to which its oldest
    job is run without interruption, so that the predicted effect on all waiting jobs is least.

    This follows the paper's abstract; its formula was not at hand. The effect of a decision that takes until t is the
    sum over all jobs of -log(time that is left at t / time from arrival to deadline), which grows without bound as a
    deadline comes near (the penalty in a public repository of the paper's name), plus `WEIGHT` times the utility that
    the exit misses. There are no batches here. A job that cannot reach exit 1 in time is dropped.
    """

    WEIGHT = 2.0
    """Of 1, 2, 3, 4, 6 and 10 the best on this simulator at loads 1x, 2x and 4x together."""
    NEAR = 0.01
    """The lower limit on the share of time that is left."""

    def __init__(self) -> None:
        super().__init__()
        self._chosen: tuple[SimulatedJob, int] | None = None

    def is_over(self, job: SimulatedJob, now_s: float) -> bool:
        if self._chosen and job is self._chosen[0]:
            return job.exit == self._chosen[1]
        return now_s + job.usual_s(1) > job.compute_deadline_s

    def choose(self, now_s: float) -> SimulatedJob:
        if self._chosen is None or self._chosen[0].request.key not in self.jobs:
            oldest: dict[str, SimulatedJob] = {}
            for job in self.jobs.values():
                oldest.setdefault(job.request.model.served.name, job)
            self._chosen = min(
                ((job, exit_index) for job in oldest.values() for exit_index in range(1, job.request.exits + 1)),
                key=lambda choice: self._effect(choice[0], choice[1], now_s),
            )
        return self._chosen[0]

    def _effect(self, job: SimulatedJob, exit_index: int, now_s: float) -> float:
        then_s = now_s + job.usual_s(exit_index)
        penalty = 0.0
        for other in self.jobs.values():
            due_s = other.compute_deadline_s
            penalty -= math.log(max(self.NEAR, (due_s - then_s) / (due_s - other.request.arrived_s)))
        missed = sum(gain.mean for gain in job.request.model.gains.exits[exit_index:])
        return penalty + self.WEIGHT * missed
