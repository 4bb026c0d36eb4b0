"""The scheduler: which step of which job runs next on a device. Pure: no clock, torch or asyncio; its driver passes the
time in.

While the load is light, all required exits would be in time and first exits soon, and no priority is higher than
another, jobs run by the earliest deadline alone, which completes them all if that is possible (Liu and Layland, 1973).
An exit that is in time by the typical estimate only is then tried, too: that costs no other job an exit that it
requires.

Otherwise every job's first exit comes first, then exits that are required beyond it, each by the earliest deadline.
What is left of the device's time, the *slack*, goes to further exits that would be ready by their deadline at the
safe estimate of `CostModel`: by priority, then to the clients that had least of the device lately, then where the
expected gain for each second is about the largest, by the earliest deadline.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from models.gains import Predictor
from server.engine.messages import Stop
from server.requests.budget import GRACE_S, LONE_GRACE_S
from server.scheduling.costs import CostModel
from server.scheduling.fairness import RecentSeconds
from server.scheduling.gains import GainModel
from server.scheduling.jobs import Rank, ScheduledJob, by_deadline

SLICE_S = 0.01
"""The worker asks the scheduler again after this time, so a newcomer waits no longer for what may come after it."""
SHORT_SLICE_S = 0.002
"""A slice that would pass the job's deadline is cut there, but not below this."""


@dataclass(frozen=True)
class Finished:
    """A job for which nothing more is to be done, and why.

    `needs_s`, `left_s`: if it was not begun because its required exit would have been late, the seconds that this
    takes, and those until its compute deadline.
    """

    job: ScheduledJob
    stop: Stop
    needs_s: float = 0.0
    left_s: float = 0.0


class Scheduler:
    """The open jobs of one device. It learns what their stages cost, and refuses nothing: see `Backlog` for that."""

    FAIR_S = 0.3
    """A client that had this much more of the device than another one still competes with it by gain."""
    HALF_LIFE_S = 20.0
    """Half-life, in seconds, of the device time that a client had."""
    LIGHT = 0.7
    """The load below which jobs run by deadline alone if they fit. The load is how many seconds of computation are
    asked for in a second, with all exits, at the pace that the device had when they were asked for. Above it, jobs that
    are still to come would miss their first exit."""
    LOAD_HALF_LIFE_S = 2.0
    """Half-life, in seconds, of a job in the load."""
    SOON_S = 0.2
    """If a first exit would be there later than so many seconds after its image, it does not wait for further exits of
    others."""
    SIMILAR = 0.7
    """Gains for each second above this share of the largest count as equal, and the deadline decides. A strict order
    would spend time on what can wait, and let earlier deadlines pass."""
    PACE_CHANGE = 0.01
    """The outlooks are renewed when the pace of the device has changed by this share."""

    def __init__(self, costs: CostModel, gains: GainModel | None = None) -> None:
        self.costs = costs
        self.deepest: int | None = None
        """The exit at which the traffic ends jobs; None: it ends none."""
        self._gains = gains or GainModel()
        self._jobs: dict[int, ScheduledJob] = {}
        self._had = RecentSeconds(self.HALF_LIFE_S)
        self._asked = RecentSeconds(self.LOAD_HALF_LIFE_S)
        self._paces: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: ScheduledJob) -> None:
        """Take a job."""
        self._jobs[job.spec.key] = job
        job.note_exit(self.costs, self._gains, {})
        job.look_ahead(self.costs)
        self._asked.add("", self.costs.slow_down * job.ahead_s[job.spec.max_exit], job.spec.usual_start_s)

    def cancel(self, key: int) -> ScheduledJob | None:
        """Remove a job; returns it, or None if it has ended."""
        return self._remove(key) if key in self._jobs else None

    def move_deadline(self, key: int, compute_deadline_s: float) -> None:
        """Set another compute deadline; does nothing if the job has ended."""
        if job := self._jobs.get(key):
            job.compute_deadline_s = compute_deadline_s
            job.look_ahead(self.costs)

    def ended(self, now_s: float) -> list[Finished]:
        """Remove and return the jobs for which nothing more is to be done.

        - Jobs that have their last exit end.
        - A job whose required exit would be late is given up if another job would be in time. Otherwise the attempt
          delays no other job, and it teaches what the exit takes. Jobs that end within a slice do not count.
        - A job whose deadline has passed is given up if the deadline of another job has not passed.
        - A further exit that would be late by the safe estimate is given up, unless the earliest deadline decides alone
          and the exit would be in time by the typical estimate.
        """
        found: list[Finished] = []
        given_up: list[ScheduledJob] = []
        unsafe: list[ScheduledJob] = []
        hopeless: list[ScheduledJob] = []
        late: list[ScheduledJob] = []
        hopeful, soon_s = False, now_s + SLICE_S
        more_s = LONE_GRACE_S - GRACE_S if len(self._jobs) == 1 else 0.0
        for job in self._jobs.values():
            if job.stop:
                found.append(Finished(job, job.stop))
            elif self.deepest is not None and self._is_deep(job, self.deepest):
                found.append(Finished(job, Stop.MAX_EXIT))
            elif now_s > job.outlook.latest_s + (more_s if job.exit < job.spec.required else 0.0):
                (unsafe if now_s <= job.outlook.unlikely_s else given_up).append(job)
            elif now_s > job.compute_deadline_s:
                late.append(job)
            elif now_s > job.outlook.hopeless_s:
                hopeless.append(job)
            elif job.compute_deadline_s > soon_s:
                hopeful = True
        if hopeful or any(job.compute_deadline_s > soon_s for job in hopeless):
            given_up += late
        if hopeful:
            given_up += hopeless
        found += [_given_up(job, now_s) for job in given_up]
        for each in found:
            self._remove(each.job.spec.key)
        if unsafe and not self._deadlines_decide(list(self._jobs.values()), now_s):
            found += [_given_up(self._remove(job.spec.key), now_s) for job in unsafe]
        return found

    def next(self, now_s: float) -> ScheduledJob | None:
        """The job whose next step should run; None if there is none. Call `ended` first."""
        return min(self._candidates(now_s), key=by_deadline, default=None)

    def companions(self, job: ScheduledJob, max_batch: int, now_s: float) -> list[ScheduledJob]:
        """The jobs whose next step is computed in one batch with that of `job`, which `next` has chosen. The batch has
        1, 2, 4 and so on jobs, at most `max_batch`. It never waits for more jobs to come.

        Companions wait for the same step of the same model at the same shape, and only deadlines decide between them
        and `job`. They join in the order of their deadlines, as long as every job of the batch is still in time by the
        safe estimate if the batch takes as long as its jobs one after the other. The same holds for every job that a
        companion overtakes.
        """
        if max_batch == 1 or not any(job.joins(other) for other in self._jobs.values() if other is not job):
            return []
        found: list[ScheduledJob] = []
        batch_s, due_s = job.next_exit(self.costs)
        passed_s = 0.0
        for other in sorted(self._candidates(now_s), key=by_deadline):
            if other is job:
                continue
            other_s, other_due_s = other.next_exit(self.costs)
            if job.joins(other) and now_s + batch_s + other_s <= min(due_s, other_due_s):
                found.append(other)
                batch_s, due_s = batch_s + other_s, min(due_s, other_due_s)
                if len(found) + 1 == max_batch:
                    break
            else:  # later ones of the batch would overtake it
                passed_s += other_s
                if now_s + batch_s + passed_s <= other_due_s:  # otherwise it would be late by the safe estimate anyway
                    due_s = min(due_s, other_due_s - passed_s)
        size = 1 << ((len(found) + 1).bit_length() - 1)
        return found[: size - 1]

    @staticmethod
    def slice_s(job: ScheduledJob, now_s: float) -> float:
        """The seconds that the job may run before the worker calls `ended` and `next` again."""
        return min(SLICE_S, max(SHORT_SLICE_S, job.compute_deadline_s - now_s))

    def ran(
        self,
        job: ScheduledJob,
        seconds: float,
        now_s: float,
        *,
        finished: bool = True,
        map_left: bool = False,
        active_share: float = 1.0,
        shown: Mapping[Predictor, float] | None = None,
        good_enough: bool = False,
        final: bool = False,
    ) -> None:
        """The next step of `job` has run for `seconds`; not `finished`: it goes on later. `map_left`: only the map of
        its exit is left to render.

        The rest matters if it completed an exit. `active_share`: what the exit leaves active. `shown`: what predicts
        the gain of the next one, see `GainModel.ahead`. `good_enough`: the exit meets the quality that was asked
        for. `final`: no later exit will differ.
        """
        job.used_s += seconds
        job.stage_s += seconds
        self._had.add(job.spec.client, seconds, now_s)
        exit_index = job.steps[job.next_step] if finished else None
        job.next_step += finished
        job.paused, job.map_left = not finished, map_left
        if exit_index is not None:
            self.costs.observe(job.spec.model, job.shape, exit_index, job.stage_s, job.active_share)
            job.exit, job.stage_s, job.active_share = exit_index, 0.0, active_share
            job.stop = Stop.COMPLETE if final else self._stop(job, good_enough)
            job.note_exit(self.costs, self._gains, shown or {})
            self._follow_pace(job.spec.model)
        job.look_ahead(self.costs)

    def _stop(self, job: ScheduledJob, good_enough: bool) -> Stop | None:
        """Why the latest exit is the last."""
        if job.next_step == len(job.steps):
            return Stop.COMPLETE
        if job.exit < job.spec.required:
            return None
        if job.exit >= job.spec.max_exit:
            return Stop.MAX_EXIT
        return Stop.QUALITY if good_enough and job.exit >= job.spec.min_exit else None

    @staticmethod
    def _is_deep(job: ScheduledJob, deepest: int) -> bool:
        """Whether traffic ends the job at its latest exit."""
        return job.stage_s == 0 and job.exit >= max(deepest, job.spec.min_exit, job.spec.required)

    def _follow_pace(self, model: str) -> None:
        pace = self.costs.slow_down * self.costs.margin(model)
        if abs(pace / self._paces.get(model, pace) - 1) > self.PACE_CHANGE:
            for job in self._jobs.values():
                job.look_ahead(self.costs)
            self._paces.clear()
        self._paces.setdefault(model, pace)

    def _remove(self, key: int) -> ScheduledJob:
        """Let go of a job, and learn from the stage that it leaves unfinished."""
        job = self._jobs.pop(key)
        if job.stage_s:
            self.costs.observe_cut(job.spec.model, job.shape, job.exit + 1, job.stage_s, job.active_share)
        return job

    def _candidates(self, now_s: float) -> list[ScheduledJob]:
        """The most urgent jobs: of these, the one with the earliest deadline runs next.

        If the earliest deadline decides alone (see `_deadlines_decide`), these are the jobs that have only a
        map left to render, so that no job of a batch waits for the next stage of another one; if there are none, these
        are all jobs. Otherwise these are the jobs of the most urgent rank; if that is the slack, see `_next_of_slack`.
        """
        jobs = list(self._jobs.values())
        if len(jobs) < 2:
            return jobs
        if self._deadlines_decide(jobs, now_s):
            return [job for job in jobs if job.map_left] or jobs
        first = min(job.rank for job in jobs)
        return self._next_of_slack(jobs, now_s) if first is Rank.SLACK else [job for job in jobs if job.rank is first]

    def _deadlines_decide(self, jobs: list[ScheduledJob], now_s: float) -> bool:
        """Whether the earliest deadline decides alone: the load is light, and `jobs`, which are all, have the same
        priority and fit (see `_fit`)."""
        one_priority = len({job.spec.priority for job in jobs}) == 1
        return one_priority and self._is_light(now_s) and self._fit(jobs, now_s)

    def _is_light(self, now_s: float) -> bool:
        """Whether the load is below `LIGHT`."""
        return self._asked.total(now_s) < self.LIGHT * self._asked.mean_age_s

    def _fit(self, jobs: list[ScheduledJob], now_s: float) -> bool:
        """Whether the earliest deadline may decide alone. It assumes that the device first renders the maps that are
        left, and then runs one job after the other, by their deadlines, each to its last exit or its deadline. Returns
        whether all required exits would then be in time by the safe estimate, and all first exits there within
        `SOON_S`."""
        ready_s, slow_down = now_s, self.costs.slow_down
        for job in sorted(jobs, key=lambda job: (not job.map_left, *by_deadline(job))):
            spec = job.spec
            if job.rank is Rank.FIRST_EXIT:
                first_s = ready_s + max(0.0, slow_down * job.ahead_s[1] - job.stage_s)
                if first_s > spec.usual_start_s + self.SOON_S:
                    return False
            if job.rank is not Rank.SLACK:
                safe_s = slow_down * self.costs.margin(spec.model) * job.ahead_s[spec.required - job.exit]
                if ready_s + max(0.0, safe_s - job.stage_s) + self.costs.SPARE_S > job.compute_deadline_s:
                    return False
            last_s = ready_s + slow_down * job.ahead_s[spec.max_exit - job.exit] - job.stage_s
            ready_s = max(ready_s, min(last_s, job.compute_deadline_s))
        return True

    def _next_of_slack(self, jobs: list[ScheduledJob], now_s: float) -> list[ScheduledJob]:
        """Of jobs that all have their required exit, those of the highest priority; of these, those that have begun
        their stage, else, of the clients that had least of the device, those whose gain for each second is about the
        largest."""
        highest = max(job.spec.priority for job in jobs)
        jobs = [job for job in jobs if job.spec.priority == highest]
        if begun := [job for job in jobs if job.stage_s]:
            jobs = begun
        clients = {job.spec.client for job in jobs}
        if len(clients) > 1:
            had_s = {client: self._had.of(client, now_s) for client in clients}
            limit_s = min(had_s.values()) + self.FAIR_S
            jobs = [job for job in jobs if had_s[job.spec.client] <= limit_s]
        if len(jobs) == 1:
            return jobs
        rates = [job.outlook.gain_rate(now_s) for job in jobs]
        limit = self.SIMILAR * max(rates)
        return [job for job, rate in zip(jobs, rates, strict=True) if rate >= limit]


def _given_up(job: ScheduledJob, now_s: float) -> Finished:
    """A job whose next exit would be late."""
    if job.used_s:
        return Finished(job, Stop.DEADLINE if job.exit else Stop.NO_EXIT)
    return Finished(job, Stop.NO_EXIT, job.outlook.needs_s, max(0.0, job.compute_deadline_s - now_s))
