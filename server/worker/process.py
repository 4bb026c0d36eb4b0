"""The worker's loop: it runs one job for a slice of time, reads its mail, and runs the next slice."""

import logging
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from models.anytime import AnytimeModel, ExitMap, State
from server.catalog import input_shape
from server.engine.framing import framed
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
from server.scheduling.jobs import ScheduledJob
from server.scheduling.scheduler import Scheduler
from server.worker.loading import Loaded

logger = logging.getLogger("anytime.worker")


@dataclass
class RunningJob:
    """A job on the device.

    `state` is made when the first step is due, and dropped with the job, which frees all that it holds. `rendering`:
    the pieces that are left of the latest exit's map, or None.
    """

    scheduled: ScheduledJob
    state: State | None = None
    rendering: Iterator[ExitMap | None] | None = None
    started_s: float = 0.0


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
        self._unsent: list[Event] = []
        self.jobs: dict[int, RunningJob] = {}

    def run(self) -> None:
        """Run until the front end is gone, which raises EOFError or OSError."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Read the mail, and run the most urgent job for a slice."""
        for command in self._mail_read():
            self._obey(command)
        for ended in self._scheduler.ended(self._clock()):
            self._end(ended.job.spec.key, ended.stop, needs_s=ended.needs_s, left_s=ended.left_s)
        self._send()
        job = self._scheduler.next(self._clock())
        if job is not None:
            self._run_slice(self.jobs[job.spec.key])

    def _mail_read(self) -> Iterator[Command]:
        """The commands that have come; waits for one if there is no job."""
        if not len(self._scheduler):
            self._send()
            yield self._connection.recv()
        while self._mail.poll(0):
            yield self._connection.recv()

    def _queue(self, event: Event) -> None:
        """Queue an event for the next `_send`, so that the last exit and the end of a job go out in one write."""
        self._unsent.append(event)

    def _send(self) -> None:
        data = b"".join(map(framed, self._unsent))
        self._unsent.clear()
        while data:
            data = data[os.write(self._connection.fileno(), data) :]

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
                self._queue(Beat())

    def _add(self, spec: JobSpec) -> None:
        model = self._models[spec.model].model
        shape = input_shape(model.config, spec.layout.height, spec.layout.width)
        job = ScheduledJob(spec, shape, tuple(step.exit for step in model.steps))
        self._scheduler.add(job)
        self.jobs[spec.key] = RunningJob(job)

    def _end(
        self, key: int, stop: Stop, error: str | None = None, *, needs_s: float = 0.0, left_s: float = 0.0
    ) -> None:
        """Drop a job that the scheduler has let go of."""
        stage_s = self.jobs.pop(key).scheduled.stage_s
        self._queue(Ended(key, stop, error, needs_s, left_s, stage_s))

    def _run_slice(self, running: RunningJob) -> None:
        spec = running.scheduled.spec
        try:
            exited = self._advance(running)
        except torch.AcceleratorError as error:  # a device that has failed once does not work any more
            self._queue(Broken(str(error).splitlines()[0]))
            self._send()
            raise
        except Exception as error:  # the boundary: an image that a model fails on ends its job, not the worker
            logger.exception("job %d of %s failed", spec.key, spec.model)
            self._scheduler.cancel(spec.key)
            self._end(spec.key, Stop.ERROR, f"{type(error).__name__}: {error}")
        else:
            if exited is not None:
                self._queue(exited)

    def _advance(self, running: RunningJob) -> Exited | None:
        """Go on with a job for about one slice: with its next step, and once that completes an exit, with rendering it
        into its slot. Returns the event to send when the map is there."""
        job = running.scheduled
        spec, loaded = job.spec, self._models[job.spec.model]
        began_s = self._clock()
        slice_s = self._scheduler.slice_s(job, began_s)
        if running.state is None:
            running.started_s = began_s
            running.state = loaded.model.begin(spec.layout.image(self._memory[spec.offset :]), spec.box)
        exit_index = job.steps[job.next_step]
        if running.rendering is None:
            finished = loaded.model.advance([running.state], slice_s)
            if not finished or exit_index is None:
                now_s = self._clock()
                self._scheduler.ran(job, now_s - began_s, now_s, finished=finished)
                return None
            running.rendering = self._rendering(loaded.model, running.state, spec)
        for found in running.rendering:
            if found is not None:
                running.rendering = None
                return self._reached(running, running.state, began_s)
            if self._clock() - began_s >= slice_s:
                break
        now_s = self._clock()
        self._scheduler.ran(job, now_s - began_s, now_s, finished=False)
        return None

    def _reached(self, running: RunningJob, state: State, began_s: float) -> Exited:
        """An exit's map is on the host."""
        job, done = running.scheduled, state.latest()
        spec, loaded = job.spec, self._models[job.spec.model]
        enough, shown = loaded.good_enough(state, spec.quality), loaded.shown(state)
        now_s = self._clock()
        stage_s = job.stage_s + now_s - began_s
        self._scheduler.ran(
            job,
            now_s - began_s,
            now_s,
            active_share=done.active_share,
            shown=shown,
            good_enough=enough,
            final=done.final,
        )
        times = stage_s, running.started_s, now_s
        return Exited(spec.key, done.index, done.active_share, done.macs, *times, done.changed, done.final)

    def _rendering(self, model: AnytimeModel, state: State, spec: JobSpec) -> Iterator[ExitMap | None]:
        block, index, layout = self._memory[spec.offset :], state.latest().index, spec.layout
        array = layout.keypoints(block, index) if layout.joints else layout.labels(block, index)
        return model.rendering(state, spec.extra, (array, layout.extra_map(block, index) if spec.extra else None))
