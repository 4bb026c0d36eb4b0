"""The simulated server: a front end and one worker, which share a device, as a simulation of discrete events.

The front end does one thing at a time, answers before images, and slows the worker down meanwhile. A discipline admits
requests, and says whose next stage the worker computes. The worker asks it again after every slice and every exit.
Under every discipline, a request is answered with its newest finished exit when the discipline releases it, and at the
latest at its compute deadline: its deadline less the reserve, see `AnswerReserve`.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from server.requests.budget import GRACE_S, LONE_GRACE_S
from server.requests.reserve import AnswerReserve
from server.simulation.workload import FrontEnd, SimulatedRequest

LATE_S = 0.005
"""An answer that is later than this has missed its deadline, and is worth nothing."""


class SimulatedJob:
    """The computation of a request. `exit`: the newest exit, 0 for none. `spent_s`: seconds that the worker has given
    to the stage after it. `left_s`: those that the stage still needs, which no discipline knows. `answered`: the exit
    of the answer; None while the request waits for one. `answerable_s`: when its reply could have begun. `deadline_s`:
    when the reply is due, by the request and by its budget. `answer_s`: the seconds that the reply is expected to
    need. `image_parts`: what is left of the image to receive and decode. `seated`: the request was admitted and has not
    ended.
    """

    __slots__ = (
        "answer_s",
        "answerable_s",
        "answered",
        "deadline_s",
        "due",
        "exit",
        "image_parts",
        "left_s",
        "request",
        "seated",
        "spent_s",
    )

    def __init__(self, request: SimulatedRequest) -> None:
        self.request = request
        self.deadline_s = request.deadline_s
        self.answer_s = 0.0
        self.due = 0  # the number of the event at its compute deadline
        self.answerable_s = math.inf
        self.seated = False
        self.exit = 0
        self.spent_s = 0.0
        self.left_s = request.stage_s[0]
        self.answered: int | None = None
        self.image_parts = request.image_parts

    @property
    def compute_deadline_s(self) -> float:
        """The deadline less the reserve."""
        budget_s = self.deadline_s - self.request.arrived_s
        return self.deadline_s - AnswerReserve.kept_s(self.answer_s, budget_s)

    def usual_s(self, exit_index: int) -> float:
        """Seconds that it usually takes from here to an exit."""
        stages_s = self.request.usual_s[self.exit : exit_index]
        return sum(stages_s) - min(self.spent_s, stages_s[0])


class Discipline(Protocol):
    """The decisions of a simulated server: which requests it admits, and whose stage it computes next."""

    def admits(self, job: SimulatedJob, now_s: float) -> bool:
        """Whether to take a request, of which the head is there."""

    def submit(self, job: SimulatedJob, now_s: float) -> None:
        """The image of a request that was admitted is with the worker."""

    def next(self, now_s: float) -> tuple[SimulatedJob | None, Iterable[SimulatedJob]]:
        """The job whose next stage to go on with, and those to answer as they are."""

    def slice_s(self, job: SimulatedJob, now_s: float) -> float:
        """How long it goes on before the discipline is asked again."""

    def ran(self, job: SimulatedJob, seconds: float, now_s: float, *, exited: bool) -> None:
        """The worker has computed for a job. `exited`: that completed an exit."""

    def remove(self, job: SimulatedJob, now_s: float) -> None:
        """A request was answered or given up. Its discipline may still have its job computed."""


@dataclass(frozen=True)
class RequestOutcome:
    """How a request ended. `exit`: of the answer, 0 for none. `end_s`: when its last byte was sent, or it was refused.
    `given_up`: the client did not want it any more.
    """

    request: SimulatedRequest
    exit: int
    end_s: float
    given_up: bool = False

    @property
    def in_time(self) -> bool:
        """Whether the client got an answer in time."""
        return self.exit > 0 and not self.given_up and self.end_s <= self.request.deadline_s + LATE_S

    @property
    def utility(self) -> float:
        """What the answer was worth; 0 if it was not in time. An answer in time may be worth 0, too."""
        return self.request.utility(self.exit) if self.in_time else 0.0


def simulate(requests: Sequence[SimulatedRequest], discipline: Discipline, front_end: FrontEnd) -> list[RequestOutcome]:
    """How each request ends, in the order of `requests`."""
    server = SimulatedServer(discipline, front_end)
    for request in requests:
        server.expect(request)
    server.run()
    return [server.outcomes[request.key] for request in requests]


class SimulatedServer:
    """The events to come, the front end's work to do, and the worker's slice."""

    def __init__(self, discipline: Discipline, front_end: FrontEnd) -> None:
        self.outcomes: dict[int, RequestOutcome] = {}
        self._discipline = discipline
        self._front_end = front_end
        self._reserve = AnswerReserve()
        self._reserve.learn(front_end.reply_s, alone=True)
        self._seated = 0
        self._alone: SimulatedJob | None = None  # the job that was seated last, if no other one was seated by then
        self._now_s = 0.0
        self._number = count()
        self._events: list[tuple[float, int, Callable[[SimulatedJob], None], SimulatedJob]] = []
        self._replies: deque[SimulatedJob] = deque()
        self._images: deque[SimulatedJob] = deque()
        self._heads: deque[SimulatedJob] = deque()
        self._working = False  # the front end
        self._running: SimulatedJob | None = None
        self._began_s = self._since_s = self._slice_s = self._slice_left_s = 0.0
        self._speed = 1.0
        self._slice_end = 0  # the number of the event that ends the slice
        self._cancelled: set[int] = set()  # the numbers of events that do not happen

    def expect(self, request: SimulatedRequest) -> None:
        self._at(request.arrived_s, self._arrive, SimulatedJob(request))

    def run(self, until_s: float = math.inf) -> None:
        """Everything that happens up to a time."""
        events = self._events
        while events and events[0][0] <= until_s:
            self._now_s, number, action, job = heapq.heappop(events)
            if number in self._cancelled:
                self._cancelled.remove(number)
            else:
                action(job)

    def _at(self, when_s: float, action: Callable[[SimulatedJob], None], job: SimulatedJob) -> int:
        number = next(self._number)
        heapq.heappush(self._events, (when_s, number, action, job))
        return number

    # --- the front end ---

    def _arrive(self, job: SimulatedJob) -> None:
        if job.request.give_up_s < math.inf:
            self._at(job.request.give_up_s, self._give_up, job)
        self._heads.append(job)
        self._work()

    def _work(self) -> None:
        """Begin what the front end has to do, if it does nothing."""
        if self._working:
            return
        costs = self._front_end
        if self._replies:
            self._at(self._now_s + costs.reply_s, self._replied, self._replies.popleft())
        elif self._heads:
            self._at(self._now_s + costs.head_s, self._read_head, self._heads.popleft())
        elif self._images:
            self._at(self._now_s + costs.image_s, self._read_part, self._images.popleft())
        else:
            self._pace(1.0)
            return
        self._working = True
        self._pace(costs.speed_left)

    def _worked(self) -> None:
        self._working = False
        self._work()

    def _read_head(self, job: SimulatedJob) -> None:
        if job.answered is None:
            job.answer_s = self._reserve.seconds(alone=not self._seated)
            if self._discipline.admits(job, self._now_s):
                self._seat(job)
                self._images.append(job)
                self._set_due(job)
            else:
                job.answered = 0
                self._record(job)
        self._worked()

    def _read_part(self, job: SimulatedJob) -> None:
        job.image_parts -= 1
        if job.answered is None:
            if job.image_parts:
                self._images.append(job)
            else:
                if job.compute_deadline_s > self._now_s:  # the event at the compute deadline is still to come
                    self._cancelled.add(job.due)
                    job.answer_s = self._reserve.seconds(alone=self._alone is job)
                    self._set_due(job)
                self._discipline.submit(job, self._now_s)
                if self._running is None:
                    self._turn()
        self._worked()

    def _replied(self, job: SimulatedJob) -> None:
        self._reserve.learn(self._now_s - job.answerable_s, alone=self._alone is job)
        if job.request.key not in self.outcomes:  # the client has not given up meanwhile
            self._record(job)
        self._worked()

    # --- deadlines and seats ---

    def _set_due(self, job: SimulatedJob) -> None:
        job.due = self._at(max(self._now_s, job.compute_deadline_s), self._due, job)

    def _seat(self, job: SimulatedJob) -> None:
        self._alone = None if self._seated else job
        job.seated = True
        self._seated += 1

    def _leave_seat(self, job: SimulatedJob) -> None:
        self._seated -= job.seated
        job.seated = False

    # --- ends ---

    def _due(self, job: SimulatedJob) -> None:
        """The compute deadline has come. A first exit may be a little later."""
        if job.answered is None:
            if job.exit:
                self._answer(job)
            else:
                grace_s = GRACE_S if self._seated > 1 else LONE_GRACE_S
                self._at(self._now_s + grace_s, self._overdue, job)

    def _overdue(self, job: SimulatedJob) -> None:
        if job.answered is None:
            self._answer(job)

    def _give_up(self, job: SimulatedJob) -> None:
        if job.request.key not in self.outcomes:
            if job.answered is None:
                job.answered = 0
                self._discipline.remove(job, self._now_s)
            self._leave_seat(job)
            self.outcomes[job.request.key] = RequestOutcome(job.request, job.answered, self._now_s, given_up=True)

    def _answer(self, job: SimulatedJob) -> None:
        """Reply with the newest exit, though the worker may be within a slice of the next one."""
        job.answered, job.answerable_s = job.exit, self._now_s
        self._discipline.remove(job, self._now_s)
        if job.answered:
            self._replies.append(job)
            self._work()
        else:
            self._record(job)

    def _record(self, job: SimulatedJob) -> None:
        self._leave_seat(job)
        self.outcomes[job.request.key] = RequestOutcome(job.request, job.answered or 0, self._now_s)

    # --- the worker ---

    def _turn(self) -> None:
        """Begin the next slice, or wait."""
        job, ended = self._discipline.next(self._now_s)
        for each in ended:
            if each.answered is None:
                self._answer(each)
        self._running = job
        if job is not None:
            self._began_s = self._since_s = self._now_s
            self._slice_s = self._slice_left_s = min(self._discipline.slice_s(job, self._now_s), job.left_s)
            self._slice_end = self._at(self._now_s + self._slice_left_s / self._speed, self._end_slice, job)

    def _pace(self, speed: float) -> None:
        """The worker goes on at another speed."""
        if speed == self._speed:
            return
        if self._running is not None:
            self._slice_left_s = max(0.0, self._slice_left_s - self._speed * (self._now_s - self._since_s))
            self._since_s = self._now_s
            self._cancelled.add(self._slice_end)
            self._slice_end = self._at(self._now_s + self._slice_left_s / speed, self._end_slice, self._running)
        self._speed = speed

    def _end_slice(self, job: SimulatedJob) -> None:
        self._running = None
        seconds, exited = self._now_s - self._began_s, self._slice_s >= job.left_s
        if exited:
            job.exit += 1
            job.spent_s, job.left_s = 0.0, 0.0 if job.exit == job.request.exits else job.request.stage_s[job.exit]
        else:
            job.spent_s, job.left_s = job.spent_s + seconds, job.left_s - self._slice_s
        self._discipline.ran(job, seconds, self._now_s, exited=exited)
        self._turn()
