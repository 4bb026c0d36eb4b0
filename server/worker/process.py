"""The worker's loop: it runs one step of one job, reads its mail, and runs the next step."""

import logging
import select
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch

from models.anytime import AnytimeModel, State
from server.catalog import input_shape
from server.engine.messages import (
    Beat,
    Broken,
    Cancel,
    Command,
    Ended,
    Event,
    Exited,
    JobSpec,
    MoveDeadline,
    Ping,
    Stop,
    TrafficCap,
)
from server.scheduling.scheduler import ScheduledJob, Scheduler
from server.worker.loading import Loaded

logger = logging.getLogger("anytime.worker")


@dataclass
class RunningJob:
    """A job on the device.

    `state` is made when the first step is due, and dropped with the job, which frees all that it holds. `stage_s` are
    the seconds computed since the latest exit, `until_exit_s` those until it.
    """

    scheduled: ScheduledJob
    state: State | None = None
    started_s: float = 0.0
    stage_s: float = 0.0
    until_exit_s: float = 0.0


class Worker:
    """The loop. `memory` is shared with the front end; `clock` gives monotonic seconds."""

    def __init__(
        self,
        connection: Connection,
        memory: memoryview,
        models: Mapping[str, Loaded],
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._mail = select.poll()  # `connection.poll` would make a new one every step
        self._mail.register(connection, select.POLLIN)
        self._memory = memory
        self._models = models
        self._scheduler = scheduler
        self._clock = clock
        self._jobs: dict[int, RunningJob] = {}

    def run(self) -> None:
        """Run until the front end is gone, which raises EOFError or OSError."""
        while True:
            for command in self._mail_read():
                self._obey(command)
            for ended, stop in self._scheduler.ended(self._clock()):
                self._end(ended.spec.key, stop)
            job = self._scheduler.next()
            if job is not None:
                self._step(self._jobs[job.spec.key])

    def _mail_read(self) -> Iterator[Command]:
        """The commands that have come; waits for one if there is no job."""
        if not len(self._scheduler):
            yield self._connection.recv()
        while self._mail.poll(0):
            yield self._connection.recv()

    def _say(self, event: Event) -> None:
        self._connection.send(event)

    def _obey(self, command: Command) -> None:
        match command:
            case JobSpec():
                self._add(command)
            case Cancel(key):
                if self._scheduler.cancel(key):
                    self._end(key, Stop.CANCELLED)
            case MoveDeadline(key, compute_deadline_s):
                self._scheduler.move_deadline(key, compute_deadline_s)
            case TrafficCap(max_exit):
                self._scheduler.deepest = max_exit
            case Ping():
                self._say(Beat())

    def _add(self, spec: JobSpec) -> None:
        model = self._models[spec.model].model
        shape = input_shape(model.config, spec.layout.height, spec.layout.width)
        job = ScheduledJob(spec, shape, tuple(step.exit for step in model.steps))
        wait_s = self._scheduler.add(job, self._clock())
        if wait_s is None:
            self._jobs[spec.key] = RunningJob(job)
        else:
            self._say(Ended(spec.key, Stop.REJECTED, wait_s))

    def _end(self, key: int, stop: Stop, error: str | None = None) -> None:
        """Drop a job that the scheduler has let go of, and learn from it."""
        running = self._jobs.pop(key)
        job, costs = running.scheduled, self._scheduler.costs
        costs.observe_cut(job.spec.model, job.shape, job.exit + 1, running.stage_s)
        self._say(Ended(key, stop, error=error))

    def _step(self, running: RunningJob) -> None:
        exited, spec = None, running.scheduled.spec
        try:
            exited = self._advance(running)
        except torch.AcceleratorError as error:  # a device that has failed once does not work any more
            self._say(Broken(str(error).splitlines()[0]))
            raise
        except Exception as error:  # the boundary: an image that a model fails on ends its job, not the worker
            logger.exception("job %d of %s failed", spec.key, spec.model)
            self._scheduler.cancel(spec.key)
            self._end(spec.key, Stop.ERROR, f"{type(error).__name__}: {error}")
        if exited is not None:
            self._say(exited)

    def _advance(self, running: RunningJob) -> Exited | None:
        """Run the next step. If it completes an exit, render that into its slot, and return the event to send."""
        job = running.scheduled
        spec, loaded = job.spec, self._models[job.spec.model]
        began_s = self._clock()
        if running.state is None:
            running.started_s = began_s
            image = spec.layout.image(self._memory[spec.offset :])
            running.state = loaded.model.begin(image, spec.box)
        loaded.model.advance([running.state])
        done = running.state.exit
        exit_index = job.steps[job.next_step]
        if exit_index is None or done is None:
            seconds = self._clock() - began_s
            running.stage_s += seconds
            self._scheduler.ran(job, seconds, began_s + seconds)
            return None
        self._render(loaded.model, running.state, spec)
        enough = loaded.good_enough(running.state, spec.quality)
        now_s = self._clock()
        running.stage_s += now_s - began_s
        self._scheduler.ran(job, now_s - began_s, now_s, good_enough=enough)
        self._scheduler.costs.observe(spec.model, job.shape, exit_index, running.stage_s)
        stage_s, running.stage_s, running.until_exit_s = running.stage_s, 0.0, job.used_s
        return Exited(spec.key, exit_index, done.active_share, done.macs, stage_s, running.started_s, now_s)

    def _render(self, model: AnytimeModel, state: State, spec: JobSpec) -> None:
        found = model.render(state, spec.extra)
        block = self._memory[spec.offset :]
        slot = spec.layout.keypoints if spec.layout.joints else spec.layout.labels
        np.copyto(slot(block, found.index), found.array)
        if found.extra is not None:
            np.copyto(spec.layout.extra_map(block, found.index), found.extra)
