"""The async face of the workers: jobs go in, exits come out, and every job ends at its deadline.

The deadline is kept twice. A worker begins no exit that would not fit. The engine's own timer ends a job with the exit
that it has, even if the worker overruns or hangs.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from server.catalog import Catalog
from server.engine.device import Device
from server.engine.job import Job
from server.engine.messages import (
    Cancel,
    Command,
    Ended,
    Event,
    Exited,
    JobSpec,
    LoadPlan,
    ModelFacts,
    MoveDeadline,
    Stop,
)
from server.engine.place import Place
from server.engine.pool import RESTART_S, PoolListener, WorkerPool
from server.engine.shared_memory import Arena, Layout
from server.engine.worker_process import WorkerProcess
from server.errors import (
    NoExitError,
    ServerError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
    WorkerLostError,
)
from server.metrics import Metrics
from server.requests.budget import GRACE_S, LONE_GRACE_S
from server.scheduling.expected import Expected
from server.settings import Settings


class Engine:
    """Owns the worker pool, the memory shared with it, and the jobs that are open.

    `unloadable` is called with the reason if the models cannot be loaded, which another worker would not change.
    `launch` starts a worker. `deepest` says how deep the traffic lets jobs go now (None: as deep as each may); it is
    asked whenever a job comes, reaches an exit or ends.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        metrics: Metrics,
        unloadable: Callable[[str], None],
        launch: Callable[[LoadPlan], WorkerProcess],
        *,
        deepest: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.arena = Arena(settings.shared_memory_bytes)
        self.draining = False
        self.jobs: dict[int, Job] = {}
        listener = PoolListener(self._hear, self._lost, self._worker_ended, self._longest_step_s, unloadable)
        self.pool = WorkerPool(settings, catalog, metrics, self.arena, launch=launch, listener=listener)
        self._catalog = catalog
        self._metrics = metrics
        self._deepest = deepest
        metrics.watch(
            metrics.queue_depth, lambda: sum(job.stop is None and not job.exits for job in self.jobs.values())
        )
        metrics.watch(metrics.shared_memory, lambda: self.arena.taken_bytes)

    def start(self) -> None:
        """Start the workers; they are in `pool.ready` once every exit of every model is warm."""
        self.pool.start()

    def close(self) -> None:
        """End the workers, and every job that is left."""
        self.draining = True
        self.pool.stop()
        self.arena.close()

    @property
    def facts(self) -> dict[str, ModelFacts]:
        """See `WorkerPool.facts`."""
        return self.pool.facts

    @property
    def open_requests(self) -> int:
        """See `WorkerPool.open_requests`."""
        return self.pool.open_requests

    def busy(self, now_s: float) -> float:
        """See `WorkerPool.busy`."""
        return self.pool.busy(now_s)

    def readiness(self) -> dict[str, Any]:
        """The body of `GET /health/ready`."""
        serving = bool(self.pool.answering) and not self.draining
        state = "ready" if serving else "draining" if self.draining else self.pool.waits_for
        return {"ready": serving, "state": state, **self.pool.to_json()}

    def check_open(self) -> None:
        """Raises UnavailableError while no request can be taken at all."""
        if self.draining:
            raise UnavailableError("the server is shutting down; send the request to another one", "draining", 1.0)
        self.pool.check_ready()

    def check(self, expected: Expected, now_s: float) -> None:
        """Raises what `admit` would raise for a request that is known by its head."""
        self.check_open()
        self.pool.check(expected, now_s)

    def admit(self, expected: Expected, now_s: float) -> Place:
        """A place for a request that was checked and whose image is there, at the worker that will finish the required
        exit first. The caller releases it, however the request ends.

        Raises UnavailableError if there is no worker, or if with every one the request would be late because of others
        or would make others late.
        """
        return self.pool.admit(expected, now_s)

    def ready_s(self, expected: Expected, now_s: float) -> float | None:
        """See `WorkerPool.ready_s`."""
        return self.pool.ready_s(expected, now_s)

    # --- jobs ---

    def take(self, layout: Layout, owner: str) -> int:
        """Memory for an image and its maps: the offset of a block. `owner`: who asks. Raises UnavailableError if there
        is no room now, TooManyRequestsError if the owner has too much of it, TooLargeError if there never is."""
        if layout.total_bytes > self.arena.size_bytes:
            raise TooLargeError(
                f"the image and its maps need {layout.total_bytes:,} bytes; the limit is {self.arena.size_bytes:,} for "
                "all open requests together (--shared-memory-bytes): send a smaller image",
                "image_too_large",
            )
        if self.arena.refuses(layout.total_bytes, owner):
            raise TooManyRequestsError(
                f"the images and maps of {owner} would take more than half of the {self.arena.size_bytes:,} bytes for "
                "all open requests (--shared-memory-bytes); read the answers, and ask again",
                "client_limit",
                1.0,
            )
        offset = self.arena.take(layout.total_bytes, owner)
        if offset is None:
            raise UnavailableError(
                f"the image and its maps need {layout.total_bytes:,} bytes, more than is free of the "
                f"{self.arena.size_bytes:,} for all open requests (--shared-memory-bytes); send a smaller image, or "
                "ask again",
                "overloaded",
                1.0,
            )
        return offset

    def submit(self, spec: JobSpec, place: Place) -> Job:
        """Hand a job to the worker of `place`, whose key it has, or to another one if the image is larger than expected
        or that worker is lost. A server that drains still takes the jobs of requests that it let in before.

        The job owns its block from here on, and `release` gives it back. Raises UnavailableError if there is no worker
        for it; the block is then still the caller's.
        """
        now_s = time.monotonic()
        model = self._catalog.get(spec.model)
        shape = model.input_shape(spec.layout.height, spec.layout.width)
        deadline_s = spec.compute_deadline_s
        expected = replace(place.expected, shape=shape, deadline_s=deadline_s, prepare_s=0.0, delays_s=0.0)
        self.pool.check_again(place, expected, now_s)
        job = Job(spec, model, place, self.arena.view[spec.offset :], now_s)
        self.jobs[spec.key] = job
        self._say(job, spec)
        self._set_timer(job, spec.compute_deadline_s)
        self.pool.cap(self._deepest())
        return job

    def move_deadline(self, job: Job, compute_deadline_s: float) -> None:
        """Give a job another compute deadline, sooner or later; does nothing if it has ended. A compute deadline that
        has passed counts as now: its answer could not have been encoded before."""
        if job.stop is None:
            now_s = time.monotonic()
            compute_deadline_s = max(compute_deadline_s, now_s)
            self._set_timer(job, compute_deadline_s)
            job.place.move_deadline(compute_deadline_s, now_s)
            self._say(job, MoveDeadline(job.spec.key, compute_deadline_s))

    def finish(self, job: Job, stop: Stop, error: ServerError | None = None) -> None:
        """End a job for its reader; does nothing if it has ended. Its memory stays until the worker lets go of it."""
        if job.stop is not None:
            return
        job.stop, job.error, job.stopped_s = stop, error, time.monotonic()
        job.place.release(job.stopped_s)
        self.pool.cap(self._deepest())
        if job.timer is not None:
            job.timer.cancel()
        if job.with_worker:
            self._say(job, Cancel(job.spec.key))
        job.changed.set()

    def release(self, job: Job) -> None:
        """The reader lets go of a job: end it if it still runs, and free its memory once the worker lets go, too."""
        self.finish(job, Stop.DISCONNECTED)
        job.with_reader = False
        self._free(job)

    def _free(self, job: Job) -> None:
        if not job.with_worker and not job.with_reader and job.spec.key in self.jobs:
            del self.jobs[job.spec.key]
            self.arena.give(job.spec.offset, job.spec.layout.total_bytes)

    def _say(self, job: Job, command: Command) -> None:
        self.pool.say(job.place.device, command)

    # --- deadlines ---

    def _set_timer(self, job: Job, compute_deadline_s: float) -> None:
        if job.timer is not None:
            job.timer.cancel()
        left_s = max(0.0, compute_deadline_s - time.monotonic())
        job.timer = asyncio.get_running_loop().call_later(left_s, self._overdue, job)

    def _overdue(self, job: Job) -> None:
        if job.latest >= job.spec.required:
            self.finish(job, Stop.DEADLINE)
        else:
            grace_s = GRACE_S if self.open_requests > 1 else LONE_GRACE_S
            job.timer = asyncio.get_running_loop().call_later(grace_s, self._too_late, job)

    def _too_late(self, job: Job) -> None:
        self.finish(job, Stop.DEADLINE if job.exits else Stop.NO_EXIT)

    # --- workers ---

    def _held(self, device: Device) -> list[Job]:
        """The jobs that the worker of a device has."""
        return [job for job in self.jobs.values() if job.with_worker and job.place.device is device]

    def _longest_step_s(self, device: Device) -> float:
        """The longest time that the worker is expected to compute without a look at its mailbox."""
        return max((device.step_s(job.place.expected, job.latest + 1) for job in self._held(device)), default=0.0)

    def _hear(self, device: Device, event: Event) -> None:
        match event:
            case Exited() if event.key in self.jobs:
                self._exited(device, self.jobs[event.key], event)
            case Ended() if event.key in self.jobs:
                self._ended(self.jobs[event.key], event)

    def _exited(self, device: Device, job: Job, exited: Exited) -> None:
        name, metrics = job.spec.model, self._metrics
        metrics.stage.labels(name, exited.exit).observe(exited.stage_s)
        metrics.unsure.labels(name, exited.exit).observe(exited.active_share)
        metrics.macs.labels(name).inc(exited.macs - job.macs)
        job.macs = exited.macs
        self._learn(device, job, exited)
        if job.stop is not None:
            metrics.exits_wasted.labels(name).inc()
            return
        if not job.exits:
            metrics.queue.labels(name).observe(exited.started_s - job.submitted_s)
        metrics.time_to_exit.labels(name, exited.exit).observe(exited.finished_s - job.spec.arrived_s)
        job.exits.append(exited)
        job.changed.set()
        self.pool.cap(self._deepest())

    def _learn(self, device: Device, job: Job, exited: Exited) -> None:
        """Learn what the exit has cost, and that the worker owes less."""
        model, expected, stage_s = job.spec.model, job.place.expected, exited.stage_s
        typical_s = device.reached(expected, exited.exit, stage_s, job.active_share, exited.finished_s)
        if typical_s:
            self._metrics.cost_ratio.labels(model, exited.exit).observe(stage_s / typical_s)
        job.computed, job.active_share = exited.exit, exited.active_share
        job.place.backlog.reached(job.spec.key, exited.exit, exited.finished_s, exited.batch_left)

    def _ended(self, job: Job, ended: Ended) -> None:
        job.with_worker = False
        job.place.device.cut(job.place.expected, job.computed + 1, ended.stage_s, job.active_share)
        name, layout = job.spec.model, job.spec.layout
        if job.stop in (Stop.CANCELLED, Stop.DISCONNECTED):
            self._metrics.cancel.labels(name).observe(time.monotonic() - job.stopped_s)
        if job.exits:
            dense = self.facts[name].macs[-1] * job.model.area_ratio(layout.height, layout.width)
            self._metrics.macs_saved.labels(name).inc(max(0.0, dense - job.macs))  # exits after the answer cost too
        self.finish(job, ended.stop, _error(ended, job))
        self._free(job)

    def _lost(self, device: Device) -> None:
        """Answer the requests of a worker that is lost: with the exit that they have, or with a 503."""
        wait_s = 1.0 if self.pool.ready else RESTART_S
        for job in self._held(device):
            if job.latest >= job.spec.required:
                self.finish(job, Stop.DEADLINE)
            else:
                sentence = f"the worker was lost before exit {job.spec.required}; ask the next one in {wait_s:g} s"
                self.finish(job, Stop.ERROR, WorkerLostError(sentence, "worker_lost", wait_s))

    def _worker_ended(self, device: Device) -> None:
        """Free the memory of the jobs of a worker that has ended."""
        for job in self._held(device):
            job.with_worker = False
            self._free(job)


def _error(ended: Ended, job: Job) -> ServerError | None:
    if ended.stop is Stop.NO_EXIT and ended.needs_s:
        spent_s = time.monotonic() - job.spec.arrived_s
        spent_ms, needs_ms, left_ms = (1000 * seconds for seconds in (spent_s, ended.needs_s, ended.left_s))
        return NoExitError(
            f"not begun after {spent_ms:.0f} ms: exit {job.spec.required} takes {needs_ms:.0f} ms here, and "
            f"{left_ms:.0f} ms were left; give a later deadline_ms, or a smaller image",
            "no_exit",
        )
    if ended.stop is Stop.ERROR:
        return ServerError(f"the model failed on this image: {ended.error}", "model_failed")
    return None
