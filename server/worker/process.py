"""The worker's loop: it runs a job, or a batch of jobs, for a slice of time, and reads its mail before the next one."""

import logging
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
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
from server.worker.batches import NO_MEMORY
from server.worker.loading import Loaded, first_line

logger = logging.getLogger("anytime.worker")


@dataclass
class RunningJob:
    """A job on the device.

    `state` is made when the first step is due, and dropped with the job, which frees all that it holds. `rendering`:
    the pieces that are left of the latest exit's map, or None. `together`: the keys of the jobs in its batch, its own
    included, from the start of a step until the step, or the map of the exit that it completes, is done.
    """

    scheduled: ScheduledJob
    state: State | None = None
    rendering: Iterator[ExitMap | None] | None = None
    started_s: float = 0.0
    together: tuple[int, ...] = ()


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
        self._models = dict(models)
        self._scheduler = scheduler
        self._clock = clock
        self._unsent: list[Event] = []
        self.jobs: dict[int, RunningJob] = {}

    def run(self) -> None:
        """Run until the front end is gone, which raises EOFError or OSError."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Read the mail, and run the most urgent job for a slice, with others if that pays."""
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

    def _run_slice(self, chosen: RunningJob) -> None:
        """Go on with a job, and with those that take the step with it, for about one slice: with their next step, and
        once that completes an exit, with rendering it into the slot of each."""
        began_s = self._clock()
        batch = self._batch(chosen.scheduled, began_s)
        slice_s = self._scheduler.slice_s(chosen.scheduled, began_s)
        if chosen.rendering is None:
            self._attempt(batch, partial(self._advance, batch, slice_s))
        if chosen.rendering is None:
            return
        for each in batch:
            if each is not batch[0]:
                if self._clock() - began_s >= slice_s:
                    return
                self._send()  # the map before does not wait for this one
            since_s = began_s if len(batch) == 1 else self._clock()
            self._attempt([each], partial(self._render, each, since_s, began_s + slice_s))

    def _batch(self, job: ScheduledJob, now_s: float) -> list[RunningJob]:
        """A job and those that take its next step with it: if the step has begun, those that are left."""
        if not job.paused:
            max_batch = self._models[job.spec.model].max_batch_at(job.shape)
            found = (job, *self._scheduler.companions(job, max_batch, now_s))
            together = tuple(each.spec.key for each in found)
            for key in together:
                self.jobs[key].together = together
        return self._left(self.jobs[job.spec.key].together)

    def _left(self, together: tuple[int, ...]) -> list[RunningJob]:
        """The jobs of a batch that are still in it: they have neither ended nor got their map."""
        jobs = (self.jobs.get(key) for key in together)
        return [job for job in jobs if job is not None and job.together is together]

    def _attempt(self, batch: list[RunningJob], work: Callable[[], None]) -> None:
        """Work for jobs. What raises ends the job; of several, nobody knows whose image is to blame, so each goes on
        alone from where it stood."""
        began_s = self._clock()
        try:
            work()
        except torch.AcceleratorError as error:  # a device that has failed once does not work any more
            self._queue(Broken(first_line(error)))
            self._send()
            raise
        except Exception as error:  # the boundary: an image that a model fails on ends its job, not the worker
            reason, model = f"{type(error).__name__}: {error}", batch[0].scheduled.spec.model
            if len(batch) == 1:
                key = batch[0].scheduled.spec.key
                logger.exception("job %d of %s failed", key, model)
                self._scheduler.cancel(key)
                self._end(key, Stop.ERROR, reason)
                return
            logger.warning("%d jobs of %s failed together, and go on one by one: %s", len(batch), model, reason)
            if isinstance(error, NO_MEMORY):  # other programs have taken what there was while warming up
                self._models[model] = replace(self._models[model], max_batch=len(batch) // 2)
            for each in batch:
                each.together = (each.scheduled.spec.key,)
            self._charge(batch, began_s, finished=False)

    def _advance(self, batch: list[RunningJob], slice_s: float) -> None:
        """Go on with the step that the jobs of a batch wait for. The exit of a job alone is charged with its map."""
        began_s, job = self._clock(), batch[0].scheduled
        model = self._models[job.spec.model].model
        states = [self._state(each, model, began_s) for each in batch]
        finished = model.advance(states, slice_s)
        exited = finished and job.steps[job.next_step] is not None
        if exited:
            for each, state in zip(batch, states, strict=True):
                each.rendering = self._rendering(model, state, each.scheduled.spec)
        if not exited or len(batch) > 1:
            self._charge(batch, began_s, finished=finished and not exited)

    def _state(self, running: RunningJob, model: AnytimeModel, now_s: float) -> State:
        if running.state is None:
            spec = running.scheduled.spec
            running.started_s = now_s
            running.state = model.begin(spec.layout.image(self._memory[spec.offset :]), spec.box)
        return running.state

    def _charge(self, batch: list[RunningJob], began_s: float, *, finished: bool) -> None:
        """Charge each job of a batch an equal part of the seconds. An exit is not `finished` before its map is."""
        now_s = self._clock()
        for each in batch:
            seconds, map_left = (now_s - began_s) / len(batch), each.rendering is not None
            self._scheduler.ran(each.scheduled, seconds, now_s, finished=finished, map_left=map_left)

    def _render(self, running: RunningJob, began_s: float, until_s: float) -> None:
        """Go on with the map of an exit, for at least one piece; it is told when it is on the host. The job is charged
        the seconds since `began_s`."""
        assert running.rendering is not None and running.state is not None
        for found in running.rendering:
            if found is not None:
                self._queue(self._reached(running, running.state, began_s))
                return
            if self._clock() >= until_s:
                break
        self._charge([running], began_s, finished=False)

    def _reached(self, running: RunningJob, state: State, began_s: float) -> Exited:
        """An exit's map, with which the worker went on at `began_s`, is on the host."""
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
        batch_left = len(self._left(running.together)) - 1
        running.rendering, running.together = None, ()
        times = stage_s, running.started_s, now_s
        return Exited(spec.key, done.index, done.active_share, done.macs, *times, done.changed, done.final, batch_left)

    def _rendering(self, model: AnytimeModel, state: State, spec: JobSpec) -> Iterator[ExitMap | None]:
        block, index, layout = self._memory[spec.offset :], state.latest().index, spec.layout
        array = layout.keypoints(block, index) if layout.joints else layout.labels(block, index)
        return model.rendering(state, spec.extra, (array, layout.extra_map(block, index) if spec.extra else None))
