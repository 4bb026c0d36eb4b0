"""The server's own policy: its scheduler, backlog and cost models, driven by simulated requests."""

from collections.abc import Iterable, Mapping

from server.engine.messages import JobSpec
from server.scheduling.backlog import Backlog, Expected
from server.scheduling.costs import CostModel
from server.scheduling.gains import GainModel
from server.scheduling.jobs import ScheduledJob
from server.scheduling.scheduler import Scheduler
from server.simulation.device import SimulatedJob
from server.simulation.workload import SimulatedModel, SimulatedRequest


class Served:
    """Admission by `Backlog` in the front end, `Scheduler` in the worker, each with its own cost model, as they serve.

    The cost models start with what a worker measures while it warms up.
    """

    def __init__(self, models: Mapping[str, SimulatedModel], prepare_s: float) -> None:
        self._prepare_s = prepare_s
        self._backlog = Backlog(warm_costs(models))
        self._scheduler = Scheduler(
            warm_costs(models), gains=GainModel({name: model.gains for name, model in models.items()})
        )
        self._costs = self._backlog.costs
        self._jobs: dict[int, tuple[SimulatedJob, ScheduledJob]] = {}

    def admits(self, job: SimulatedJob, now_s: float) -> bool:
        expected = self._expected(job, self._prepare_s)
        if self._backlog.refusal(expected, now_s):
            return False
        self._backlog.add(job.request.key, expected, now_s)
        return True

    def submit(self, job: SimulatedJob, now_s: float) -> None:
        request = job.request
        layout = request.model.served.layout(request.height, request.width, extra=False)
        spec = JobSpec(
            key=request.key,
            model=request.model.served.name,
            offset=0,
            layout=layout,
            arrived_s=request.arrived_s,
            compute_deadline_s=job.compute_deadline_s,
            usual_start_s=now_s,
            max_exit=request.exits,
            client=request.client,
            priority=request.priority,
        )
        scheduled = ScheduledJob(spec, request.shape, tuple(range(1, request.exits + 1)))
        self._jobs[request.key] = job, scheduled
        self._backlog.update(request.key, self._expected(job, 0.0), now_s)
        self._scheduler.add(scheduled)

    def next(self, now_s: float) -> tuple[SimulatedJob | None, Iterable[SimulatedJob]]:
        ended = [self._jobs[finished.job.spec.key][0] for finished in self._scheduler.ended(now_s)]
        scheduled = self._scheduler.next(now_s) if len(self._scheduler) else None
        return (self._jobs[scheduled.spec.key][0] if scheduled else None), ended

    def ran(self, job: SimulatedJob, seconds: float, now_s: float, *, exited: bool) -> None:
        if job.request.key not in self._jobs:
            return  # answered within the slice
        request, scheduled = job.request, self._jobs[job.request.key][1]
        if not exited:
            self._scheduler.ran(scheduled, seconds, now_s, finished=False)
            return
        profile, index = request.profile, job.exit - 1
        stage_s, active_share = scheduled.stage_s + seconds, scheduled.active_share
        shown = {
            "active_share": profile.active_share[index],
            "confidence": profile.confidence[index],
            **({"change": profile.change[index]} if index else {}),
        }
        self._scheduler.ran(scheduled, seconds, now_s, active_share=profile.active_share[index], shown=shown)
        self._costs.observe(scheduled.spec.model, request.shape, job.exit, stage_s, active_share)
        self._backlog.reached(request.key, job.exit, now_s)

    def remove(self, job: SimulatedJob, now_s: float) -> None:
        self._scheduler.cancel(job.request.key)
        self._backlog.remove(job.request.key, now_s)
        self._jobs.pop(job.request.key, None)

    def _expected(self, job: SimulatedJob, prepare_s: float) -> Expected:
        request: SimulatedRequest = job.request
        return Expected(
            request.model.served.name,
            request.shape,
            1,
            job.compute_deadline_s,
            request.priority,
            request.client,
            prepare_s,
        )


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
