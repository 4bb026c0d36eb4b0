"""The server's own discipline: its budgets, backlog, scheduler and cost models, driven by simulated requests."""

from collections.abc import Iterable, Mapping

from models.gains import Predictor
from server.engine.device import BUSY_HALF_LIFE_S
from server.engine.messages import JobSpec
from server.requests.budget import Asked, Traffic
from server.requests.policies import Policies
from server.scheduling.backlog import Backlog
from server.scheduling.costs import CostModel
from server.scheduling.expected import Expected
from server.scheduling.fairness import RecentSeconds
from server.scheduling.gains import GainModel
from server.scheduling.jobs import ScheduledJob
from server.scheduling.scheduler import Scheduler
from server.simulation.device import SimulatedJob
from server.simulation.workload import SimulatedModel


class Served:
    """`Policies` and `Backlog` in the front end, `Scheduler` in the worker, as the engine and the worker use them.

    Front end and worker have a cost model each. Both start with what a worker measures while it warms up.
    """

    def __init__(self, models: Mapping[str, SimulatedModel], policies: Policies, image_s: float) -> None:
        """`image_s`: see `FrontEnd.image_s`."""
        self._policies = policies
        self._image_s = image_s
        self._backlog = Backlog(warm_costs(models))
        gains = GainModel({name: model.gains for name, model in models.items()})
        self._scheduler = Scheduler(warm_costs(models), gains)
        self._open: dict[int, tuple[SimulatedJob, int]] = {}
        """Admitted jobs, and the last exit that each may have."""
        self._scheduled: dict[int, ScheduledJob] = {}
        self._busy = RecentSeconds(BUSY_HALF_LIFE_S)

    @property
    def open_jobs(self) -> list[SimulatedJob]:
        """Those that were admitted and have no answer yet."""
        return [job for job, _ in self._open.values()]

    def admits(self, job: SimulatedJob, now_s: float) -> bool:
        request = job.request
        budget = self._policies.budget(
            Asked(
                model=request.model.served.name,
                exits=request.exits,
                client=request.client,
                deadline_s=request.deadline_s - request.arrived_s,
                pixels=request.height * request.width,
            ),
            self._traffic(now_s, more=1),
        )
        job.deadline_s = min(job.deadline_s, request.arrived_s + budget.seconds)
        expected = self._expected(job)
        refusal = self._backlog.refusal(expected, now_s)
        self._backlog.ask(expected, now_s)
        if refusal:
            return False
        self._backlog.add(request.key, expected, now_s)
        lasting = budget.lasting
        self._open[request.key] = job, request.exits if lasting is None else lasting.max_exit or request.exits
        return True

    def submit(self, job: SimulatedJob, now_s: float) -> None:
        request = job.request
        spec = JobSpec(
            key=request.key,
            model=request.model.served.name,
            offset=0,
            layout=request.model.served.layout(request.height, request.width, extra=False),
            arrived_s=request.arrived_s,
            compute_deadline_s=job.compute_deadline_s,
            usual_start_s=now_s,
            max_exit=self._open[request.key][1],
            client=request.client,
            priority=request.priority,
        )
        scheduled = ScheduledJob(spec, request.shape, tuple(range(1, request.exits + 1)))
        self._scheduled[request.key] = scheduled
        self._scheduler.add(scheduled)
        self._backlog.update(request.key, self._expected(job), now_s)
        self._cap(now_s)

    def next(self, now_s: float) -> tuple[SimulatedJob | None, Iterable[SimulatedJob]]:
        ended = [self._open[finished.job.spec.key][0] for finished in self._scheduler.ended(now_s)]
        chosen = self._scheduler.next(now_s)
        return None if chosen is None else self._open[chosen.spec.key][0], ended

    def slice_s(self, job: SimulatedJob, now_s: float) -> float:
        return self._scheduler.slice_s(self._scheduled[job.request.key], now_s)

    def ran(self, job: SimulatedJob, seconds: float, now_s: float, *, exited: bool) -> None:
        request, scheduled = job.request, self._scheduled.get(job.request.key)
        self._busy.add("", seconds, now_s)
        if scheduled is None:
            return  # answered within the slice
        if not exited:
            self._scheduler.ran(scheduled, seconds, now_s, finished=False)
            return
        profile, index = request.profile, job.exit - 1
        shown: dict[Predictor, float] = {  # what a worker shows, see `Loaded.shown`
            "active_share": profile.active_share[index],
            "confidence": profile.confidence[index],
        }
        stage_s, active_share = scheduled.stage_s + seconds, scheduled.active_share
        self._scheduler.ran(scheduled, seconds, now_s, active_share=shown["active_share"], shown=shown)
        self._backlog.costs.observe(scheduled.spec.model, request.shape, job.exit, stage_s, active_share)
        self._backlog.reached(request.key, job.exit, now_s)
        self._cap(now_s)

    def remove(self, job: SimulatedJob, now_s: float) -> None:
        self._scheduler.cancel(job.request.key)
        self._backlog.remove(job.request.key, now_s)
        self._open.pop(job.request.key, None)
        self._scheduled.pop(job.request.key, None)
        self._cap(now_s)

    def _expected(self, job: SimulatedJob) -> Expected:
        request = job.request
        decode_s = self._image_s * job.image_parts
        return Expected(
            request.model.served.name,
            request.shape,
            1,
            job.compute_deadline_s,
            request.client,
            prepare_s=decode_s,
            delays_s=decode_s / 2,
        )

    def _traffic(self, now_s: float, more: int = 0) -> Traffic:
        return Traffic(len(self._open) + more, self._busy.total(now_s) / self._busy.mean_age_s, now_s)

    def _cap(self, now_s: float) -> None:
        """Tell the scheduler how deep the traffic lets jobs go."""
        if self._policies.of_moment:
            self._scheduler.deepest = self._policies.deepest(self._traffic(now_s))


def warm_costs(models: Mapping[str, SimulatedModel]) -> CostModel:
    """A cost model that has seen a few images of each model."""
    costs = CostModel()
    for name, model in models.items():
        shape = model.served.input_shape(*model.served.config.size)
        for profile in model.gains.profiles[:5]:
            shares = (1.0, *profile.active_share)
            for index, stage_ms in enumerate(profile.stage_ms):
                costs.observe(name, shape, index + 1, stage_ms / 1000, shares[index])
    return costs
