"""The process that owns a device: it runs one step of one job, hears what the front end has to say, and runs the next.

`python -m server.worker` is started by `link.py`, never by hand. The front end does not import this module: torch lives
here.
"""

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch

from models.anytime import AnytimeModel, State
from server.engine.messages import (
    Beat,
    Broken,
    Cancel,
    Command,
    Ended,
    Event,
    Exited,
    Move,
    Plan,
    Ready,
    Stop,
    Submit,
    Unloadable,
)
from server.engine.shared_memory import attach, settle_garbage
from server.requests.budget import Costs, TrafficCap
from server.worker.loading import Loaded, facts, input_shape, load_models, warm_up
from server.worker.scheduler import Scheduler, Task

logger = logging.getLogger("anytime.worker")

NICE = 5
"""The front end must be heard while every core computes."""


@dataclass
class Running:
    """A job on the device. `state` is made when its first step is due; dropping it frees what it holds."""

    command: Submit
    task: Task
    state: State | None = None
    started_s: float = 0.0
    stage_s: float = 0.0
    until_exit_s: float = 0.0


class Worker:
    """The loop. `block` is the memory shared with the front end; `clock` gives monotonic seconds."""

    BEAT_S = 1.0

    def __init__(
        self,
        connection: Connection,
        block: memoryview,
        models: Mapping[str, Loaded],
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._mail = select.poll()  # `connection.poll` would make one anew every step
        self._mail.register(connection, select.POLLIN)
        self._block = block
        self._models = models
        self._scheduler = scheduler
        self._clock = clock
        self._jobs: dict[int, Running] = {}
        self._spoke_s = clock()

    def run(self) -> None:
        """Until the front end is gone: raises EOFError or OSError then."""
        while True:
            for command in self._heard():
                self._obey(command)
            for ended, stop in self._scheduler.ended(self._clock()):
                self._end(ended.key, stop)
            task = self._scheduler.next()
            if task is not None:
                self._step(self._jobs[task.key])

    def _heard(self) -> Iterator[Command]:
        """What has been said since; waits for it when there is nothing to do."""
        if not len(self._scheduler):
            yield self._connection.recv()
        while self._mail.poll(0):
            yield self._connection.recv()

    def _say(self, event: Event) -> None:
        self._connection.send(event)
        self._spoke_s = self._clock()

    def _obey(self, command: Command) -> None:
        if isinstance(command, Submit):
            self._add(command)
        elif isinstance(command, Cancel):
            if self._scheduler.cancel(command.key):
                self._end(command.key, Stop.CANCELLED)
        elif isinstance(command, Move):
            self._scheduler.move(command.key, command.deadline_s)

    def _add(self, command: Submit) -> None:
        model = self._models[command.model].model
        task = Task(
            key=command.key,
            model=command.model,
            shape=input_shape(model.config, command.layout.height, command.layout.width),
            steps=tuple(step.exit for step in model.steps),
            deadline_s=command.deadline_s,
            usual_s=command.usual_s,
            required=command.required,
            min_exit=command.min_exit,
            max_exit=command.max_exit,
        )
        wait_s = self._scheduler.add(task, self._clock())
        if wait_s is None:
            self._jobs[command.key] = Running(command, task)
        else:
            self._say(Ended(command.key, Stop.REJECTED, wait_s))

    def _end(self, key: int, stop: Stop, error: str | None = None) -> None:
        job = self._jobs.pop(key)
        costs, model, shape, reached = self._scheduler.costs, job.command.model, job.task.shape, job.task.exit
        if reached:
            costs.judge(model, shape, reached, job.until_exit_s)
        costs.observe_cut(model, shape, reached + 1, job.stage_s)
        self._say(Ended(key, stop, error=error))

    def _step(self, job: Running) -> None:
        exited = None
        try:
            exited = self._advance(job)
        except torch.AcceleratorError as error:  # nothing works on a device after it has failed once
            self._say(Broken(str(error).splitlines()[0]))
            raise
        except Exception as error:  # whatever a model raises on one image is that job's end, not the worker's
            logger.exception("job %d of %s failed", job.command.key, job.command.model)
            self._scheduler.cancel(job.command.key)
            self._end(job.command.key, Stop.ERROR, f"{type(error).__name__}: {error}")
        if exited is not None:
            self._say(exited)
        elif self._clock() - self._spoke_s > self.BEAT_S:
            self._say(Beat())

    def _advance(self, job: Running) -> Exited | None:
        """Run the next step. Returns what is to be said of the exit that it completes, whose map lies in its slot."""
        command, task = job.command, job.task
        loaded = self._models[command.model]
        began_s = self._clock()
        if job.state is None:
            job.started_s = began_s
            image = command.layout.image(self._block[command.offset :])
            job.state = loaded.model.begin(image, command.box)
        loaded.model.advance([job.state])
        done = job.state.exit
        exit_index = task.steps[task.next_step]
        if exit_index is None or done is None:
            seconds = self._clock() - began_s
            job.stage_s += seconds
            self._scheduler.ran(task, seconds, began_s + seconds)
            return None
        self._render(loaded.model, job.state, command)
        enough = loaded.good_enough(job.state, command.quality)
        now_s = self._clock()
        job.stage_s += now_s - began_s
        self._scheduler.ran(task, now_s - began_s, now_s, good_enough=enough)
        self._scheduler.costs.observe(command.model, task.shape, exit_index, job.stage_s)
        stage_s, job.stage_s, job.until_exit_s = job.stage_s, 0.0, task.used_s
        return Exited(command.key, exit_index, done.unsure, done.macs, stage_s, job.started_s, now_s)

    def _render(self, model: AnytimeModel, state: State, command: Submit) -> None:
        found = model.render(state, command.extra)
        block = self._block[command.offset :]
        slot = command.layout.keypoints if command.layout.joints else command.layout.labels
        np.copyto(slot(block, found.index), found.array)
        if found.extra is not None:
            np.copyto(command.layout.extra_map(block, found.index), found.extra)


def main(fd: int) -> int:
    """Serve the front end at the other end of the socket `fd`; what to load is its first message."""
    # Ctrl-C and a supervisor's SIGTERM reach the whole group; the front end finishes its requests, then ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICE)
    with Connection(fd) as connection:
        try:
            plan: Plan = connection.recv()
            logging.basicConfig(level=plan.log_level, format="%(levelname)s:     %(name)s %(message)s")
            costs = Costs()
            try:
                models = load_models(plan)
            except (ValueError, OSError) as error:
                connection.send(Unloadable(str(error)))
                return 1
            for name, loaded in models.items():
                warm_up(name, loaded.model, costs, plan.known.get(name))
            first = next(iter(models.values())).model
            told = {name: facts(name, loaded, costs) for name, loaded in models.items()}
            connection.send(Ready(first.device, first.executor, told))
            block = attach(plan.arena_fd, plan.arena_bytes)
            settle_garbage()
            Worker(connection, block, models, Scheduler(costs, TrafficCap(plan.traffic_cap))).run()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return 0  # the front end is gone; so are its requests
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
