"""The async face of a worker: jobs go in, exits come out, and every job ends at its deadline.

The deadline is kept twice. The worker begins no exit that would not fit. The engine's own timer ends a job with the
exit that it has, even if the worker overruns.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from models.executors.registry import REFERENCE
from server.catalog import Catalog
from server.engine.job import Job
from server.engine.messages import (
    Beat,
    Broken,
    Cancel,
    Chosen,
    Ended,
    Event,
    Exited,
    JobSpec,
    LoadPlan,
    ModelFacts,
    MoveDeadline,
    Ready,
    Stop,
    Unloadable,
)
from server.engine.shared_memory import Arena, Layout
from server.engine.worker_process import Supervisor, WorkerProcess
from server.errors import NoExitError, ServerError, TooLargeError, UnavailableError, WorkerLostError
from server.metrics import Metrics
from server.requests.budget import GRACE_S
from server.settings import Settings

logger = logging.getLogger("anytime.engine")

RESTART_S = 5.0
"""The wait that clients are told while a worker starts."""


class Engine:
    """Owns the worker, the memory shared with it, and the jobs that are open.

    `unloadable` is called with the reason if the models cannot be loaded, which another worker would not change.
    `launch` starts a worker.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        metrics: Metrics,
        unloadable: Callable[[str], None],
        launch: Callable[[LoadPlan], WorkerProcess],
    ) -> None:
        self.arena = Arena(settings.shared_memory_bytes)
        self.ready: Ready | None = None
        """The worker's readiness; None while there is no worker that can serve."""
        self.facts: Mapping[str, ModelFacts] = {}
        """The facts about each model, from the latest worker that was ready; the next worker need not find them out."""
        self.draining = False
        self.jobs: dict[int, Job] = {}
        self.supervisor = Supervisor(self._start_worker, self._hear, self._lost, self._worker_is_busy)
        self._settings = settings
        self._catalog = catalog
        self._metrics = metrics
        self._unloadable = unloadable
        self._launch = launch
        metrics.worker_up.labels(settings.device).set(0)
        metrics.watch(
            metrics.queue_depth, lambda: sum(job.stop is None and not job.exits for job in self.jobs.values())
        )
        metrics.watch(metrics.shared_memory, lambda: self.arena.taken_bytes)

    def start(self) -> None:
        """Start the worker; `ready` is set once every exit of every model is warm."""
        self.supervisor.start()

    def close(self) -> None:
        """End the worker, and every job that is left."""
        self.draining = True
        self.supervisor.stop()
        self.arena.close()

    def check_open(self) -> None:
        """Raises UnavailableError while no request can be taken at all."""
        if self.draining:
            raise UnavailableError("the server is shutting down; send the request to another one", "draining", 1.0)
        self._check_ready()

    def _check_ready(self) -> None:
        if self.ready is None:
            raise UnavailableError("the models are being loaded; ask again soon", "starting", RESTART_S)

    # --- jobs ---

    def take(self, layout: Layout) -> int:
        """Memory for an image and its maps: the offset of a block. Raises UnavailableError if there is no room now,
        TooLargeError if there never is."""
        if layout.total_bytes > self.arena.size_bytes:
            raise TooLargeError(
                f"the image and its maps need {layout.total_bytes:,} bytes; the limit is {self.arena.size_bytes:,} for "
                "all open requests together (--shared-memory-bytes): send a smaller image",
                "image_too_large",
            )
        offset = self.arena.take(layout.total_bytes)
        if offset is None:
            raise UnavailableError(
                f"the image and its maps need {layout.total_bytes:,} bytes, more than is free of the "
                f"{self.arena.size_bytes:,} for all open requests (--shared-memory-bytes); ask again",
                "overloaded",
                1.0,
            )
        return offset

    def submit(self, spec: JobSpec) -> Job:
        """Hand a job to the worker. A server that drains still takes the jobs of requests that it let in before.

        The job owns its block from here on, and `release` gives it back. Raises UnavailableError if there is no worker
        and NoExitError if the time is over already; the block is then still the caller's.
        """
        self._check_ready()
        now_s = time.monotonic()
        if spec.compute_deadline_s <= now_s:
            spent_ms = 1000 * (now_s - spec.arrived_s)
            raise NoExitError(
                f"receiving and decoding took {spent_ms:.0f} ms, which leaves none for exit 1; give more deadline_ms",
                "no_exit",
            )
        job = Job(spec, self._catalog.get(spec.model), self.arena.view[spec.offset :], now_s)
        self.supervisor.say(spec)  # before the worker counts as busy: its silence is timed from now on
        self.jobs[spec.key] = job
        self._set_timer(job, spec.compute_deadline_s)
        return job

    def move_deadline(self, job: Job, compute_deadline_s: float) -> None:
        """Give a job another compute deadline, sooner or later; does nothing if it has ended."""
        if job.stop is None:
            self._set_timer(job, compute_deadline_s)
            self.supervisor.say(MoveDeadline(job.spec.key, compute_deadline_s))

    def finish(self, job: Job, stop: Stop, error: ServerError | None = None) -> None:
        """End a job for its reader; does nothing if it has ended. Its memory stays until the worker lets go of it."""
        if job.stop is not None:
            return
        job.stop, job.error, job.stopped_s = stop, error, time.monotonic()
        if job.timer is not None:
            job.timer.cancel()
        if job.with_worker:
            self.supervisor.say(Cancel(job.spec.key))
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
            job.timer = asyncio.get_running_loop().call_later(GRACE_S, self._too_late, job)

    def _too_late(self, job: Job) -> None:
        self.finish(job, Stop.DEADLINE if job.exits else Stop.NO_EXIT)

    # --- the worker ---

    def _start_worker(self) -> WorkerProcess:
        if self.supervisor.starts > 1:
            self._metrics.worker_restarts.inc()
        settings = self._settings
        return self._launch(
            LoadPlan(
                models={model.name: str(model.directory.resolve()) for model in self._catalog},
                device=settings.device,
                executor=settings.executor,
                threads=settings.threads,
                known_s={name: facts.seconds for name, facts in self.facts.items()},
                chosen={name: facts.chosen for name, facts in self.facts.items()},
                traffic_cap=settings.traffic_levels,
                arena_fd=self.arena.fd,
                arena_bytes=self.arena.size_bytes,
                log_level=settings.log_level.upper(),
                precision=settings.precision,
            )
        )

    def _worker_is_busy(self) -> bool:
        return any(job.with_worker for job in self.jobs.values())

    def _hear(self, event: Event) -> None:
        match event:
            case Ready():
                self._now_ready(event)
            case Exited() if event.key in self.jobs:
                self._exited(self.jobs[event.key], event)
            case Ended() if event.key in self.jobs:
                self._ended(self.jobs[event.key], event)
            case Broken(reason):
                self._broken(reason)
            case Unloadable(reason):
                self._unloadable(reason)
            case Beat():
                pass

    def _now_ready(self, ready: Ready) -> None:
        self.ready, self.facts = ready, ready.models
        self._metrics.worker_up.clear()
        self._metrics.worker_up.labels(ready.device).set(1)
        self._metrics.executor_info.clear()
        self._metrics.precision_info.clear()
        for name, facts in ready.models.items():
            chosen = facts.chosen
            self._metrics.executor_info.labels(name, ready.device, chosen.executor).set(1)
            self._metrics.precision_info.labels(name, chosen.precision).set(1)

    def _broken(self, reason: str) -> None:
        """Let the next worker run the reference executor in place of those that may have broken the device."""
        logger.error("the device failed: %s", reason)
        self.facts = {
            name: facts
            if facts.chosen.executor == REFERENCE
            else replace(facts, chosen=Chosen(REFERENCE, f"{facts.chosen.executor} broke the device: {reason}"))
            for name, facts in self.facts.items()
        }

    def _exited(self, job: Job, exited: Exited) -> None:
        name, metrics = job.spec.model, self._metrics
        metrics.stage.labels(name, exited.exit).observe(exited.stage_s)
        metrics.unsure.labels(name, exited.exit).observe(exited.active_share)
        metrics.macs.labels(name).inc(exited.macs - job.macs)
        job.macs = exited.macs
        if job.stop is not None:
            metrics.exits_wasted.labels(name).inc()
            return
        if not job.exits:
            metrics.queue.labels(name).observe(exited.started_s - job.submitted_s)
        metrics.time_to_exit.labels(name, exited.exit).observe(exited.finished_s - job.spec.arrived_s)
        job.exits.append(exited)
        job.changed.set()

    def _ended(self, job: Job, ended: Ended) -> None:
        job.with_worker = False
        name, layout = job.spec.model, job.spec.layout
        if job.stop in (Stop.CANCELLED, Stop.DISCONNECTED):
            self._metrics.cancel.labels(name).observe(time.monotonic() - job.stopped_s)
        if job.exits:
            dense = self.facts[name].macs[-1] * job.model.area_ratio(layout.height, layout.width)
            self._metrics.macs_saved.labels(name).inc(max(0.0, dense - job.macs))  # exits after the answer cost too
        self.finish(job, ended.stop, _error(ended, job.spec.required))
        self._free(job)

    def _lost(self) -> None:
        """End every job of a worker that is gone: with the exit that it has, or with a 503."""
        if self.ready is not None:
            self._metrics.worker_up.labels(self.ready.device).set(0)
        self.ready = None
        for job in list(self.jobs.values()):
            job.with_worker = False
            if job.latest >= job.spec.required:
                self.finish(job, Stop.DEADLINE)
            else:
                first = job.spec.required
                sentence = f"the worker was lost before exit {first}; another one is being started, ask again soon"
                self.finish(job, Stop.ERROR, WorkerLostError(sentence, "worker_lost", RESTART_S))
            self._free(job)


def _error(ended: Ended, required: int) -> ServerError | None:
    if ended.stop is Stop.REJECTED:
        wait_s = max(1.0, math.ceil(ended.wait_s))
        sentence = (
            f"{ended.wait_s * 1000:.0f} ms of work wait before exit {required}, more than deadline_ms leaves; ask later"
        )
        return UnavailableError(sentence, "overloaded", wait_s)
    if ended.stop is Stop.ERROR:
        return ServerError(f"the model failed on this image: {ended.error}", "model_failed")
    return None
