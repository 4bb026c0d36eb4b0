"""Tests admission together with the scheduler: requests and the worker are simulated, and the clock advances only by
the time that computation takes."""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
from test_backlog import SHAPE, STAGE_S, known_costs

from server.engine.messages import JobSpec
from server.engine.shared_memory import Layout
from server.requests.budget import GRACE_S
from server.scheduling.backlog import Backlog
from server.scheduling.expected import Expected
from server.scheduling.jobs import ScheduledJob
from server.scheduling.scheduler import Scheduler


@dataclass
class Request:
    """One request, and what became of it. `late_s`: how late its required exit was; None: it never came."""

    arrival_s: float
    left_s: float
    client: str = ""
    required: int = 1
    refused: bool = False
    late_s: float | None = None
    exit: int = 0

    @property
    def in_time(self) -> bool:
        return self.late_s is not None and self.late_s <= 0


class Loop:
    """A front end that admits, and a worker that computes each stage in two steps, in `stage_s` times chance."""

    PREPARE_S = 0.002

    def __init__(self, stage_s: float, seed: int = 0, slow_down: Callable[[float], float] = lambda _: 1.0) -> None:
        self.chance = random.Random(seed)
        self.stage_s = stage_s
        self.slow_down = slow_down
        self.scheduler = Scheduler(known_costs(stage_s))
        self.backlog = Backlog(known_costs(stage_s))
        self.now_s = 0.0
        self.coming: list[tuple[float, int]] = []
        self.begun: dict[int, float] = {}  # seconds left of a step

    def run(self, requests: Iterable[Request]) -> list[Request]:
        self.requests = sorted(requests, key=lambda request: request.arrival_s)
        self.asked = 0
        while self.turn():
            pass
        return self.requests

    def turn(self) -> bool:
        self.admit()
        while self.coming and self.coming[0][0] <= self.now_s:
            self.submit(*heapq.heappop(self.coming))
        for ended in self.scheduler.ended(self.now_s):
            self.begun.pop(ended.job.spec.key, None)
            self.backlog.remove(ended.job.spec.key, self.now_s)
        job = self.scheduler.next(self.now_s)
        if job is not None:
            self.compute(job)
            return True
        times_s = [self.coming[0][0]] if self.coming else []
        times_s += [self.requests[self.asked].arrival_s] if self.asked < len(self.requests) else []
        self.now_s = min(times_s, default=self.now_s)
        return bool(times_s)

    def admit(self) -> None:
        """Requests that have arrived meanwhile are admitted by their heads, also while the worker computes."""
        while self.asked < len(self.requests) and self.requests[self.asked].arrival_s <= self.now_s:
            request, key = self.requests[self.asked], self.asked
            self.asked += 1
            deadline_s, now_s = request.arrival_s + request.left_s, request.arrival_s
            asked = Expected("model", SHAPE, request.required, deadline_s, client=request.client)
            request.refused = self.backlog.refusal(asked, now_s) is not None
            self.backlog.ask(asked, now_s)
            if not request.refused:
                self.backlog.add(key, asked, now_s)
                heapq.heappush(self.coming, (now_s + self.PREPARE_S, key))

    def submit(self, now_s: float, key: int) -> None:
        request = self.requests[key]
        deadline_s = request.arrival_s + request.left_s
        self.backlog.update(key, Expected("model", SHAPE, request.required, deadline_s, client=request.client), now_s)
        spec = JobSpec(
            key,
            "model",
            0,
            Layout(*SHAPE, 4),
            request.arrival_s,
            deadline_s,
            now_s,
            4,
            request.required,
            client=request.client,
        )
        self.scheduler.add(ScheduledJob(spec, SHAPE, (None, 1, None, 2, None, 3, None, 4)))

    def compute(self, job: ScheduledJob) -> None:
        key, before = job.spec.key, job.exit
        if key not in self.begun:
            hiccup_s = self.chance.uniform(0.003, 0.01) if self.chance.random() < 0.005 else 0.0
            self.begun[key] = self.stage_s / 2 * self.slow_down(self.now_s) * self.chance.gauss(1.0, 0.03) + hiccup_s
        seconds = min(self.begun[key], self.scheduler.slice_s(job, self.now_s))
        self.begun[key] -= seconds
        finished = self.begun[key] <= 0
        stage_s = job.stage_s + seconds
        self.now_s += seconds
        self.admit()
        self.scheduler.ran(job, seconds, self.now_s, finished=finished)
        if finished:
            del self.begun[key]
        if job.exit == before:
            return
        self.backlog.costs.observe("model", SHAPE, job.exit, stage_s)
        self.backlog.reached(key, job.exit, self.now_s)
        request, late_s = self.requests[key], self.now_s - job.compute_deadline_s
        if late_s <= GRACE_S:
            request.exit = job.exit
        if job.exit == request.required:
            request.late_s = late_s


def poisson(  # noqa: PLR0917
    rate: float, seconds: float, left_s: tuple[float, float], client: str = "", seed: int = 0, required: int = 1
) -> list[Request]:
    """Requests that come at random, `rate` in a second, with deadlines that are evenly distributed."""
    chance, requests, now_s = random.Random(seed), [], 0.0
    while (now_s := now_s + chance.expovariate(rate)) < seconds:
        requests.append(Request(now_s, chance.uniform(*left_s), client, required))
    return requests


def jain(values: list[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1 / n if one has all."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def test_a_lone_camera_is_never_refused_and_half_of_its_frames_are_in_time() -> None:
    """Its frames come as fast as exit 1 takes, in which time they should be ready."""
    stage_s = 0.06
    frame_s = stage_s + Loop.PREPARE_S
    requests = Loop(stage_s).run(Request(number * frame_s, frame_s) for number in range(200))
    assert not any(request.refused for request in requests)
    assert sum(request.in_time for request in requests) >= 0.45 * len(requests)
    assert sum(request.exit >= 1 for request in requests) >= 0.9 * len(requests)  # the others are late by a little


def test_after_a_burst_the_next_request_is_answered() -> None:
    for seed in range(8):
        chance = random.Random(seed)
        burst = [Request(0.0005 * number, chance.uniform(0.05, 0.3), str(number % 5)) for number in range(200)]
        last = Request(0.45 + chance.uniform(0.0, 0.1), 1.5 * STAGE_S, "new")
        requests = Loop(STAGE_S, seed).run([*burst, last])
        assert last.in_time and sum(request.refused for request in requests) > 150


def test_goodput_does_not_fall_under_overload_and_who_is_admitted_is_served() -> None:
    """The device can do 50 requests a second."""
    answered = []
    for rate in (25, 100, 400):
        requests = Loop(STAGE_S).run(poisson(rate, 3.0, (0.05, 0.3)))
        admitted = [request for request in requests if not request.refused]
        assert sum(request.exit >= 1 for request in admitted) >= 0.995 * len(admitted)
        answered.append(sum(request.exit >= 1 for request in requests) / 3.0)
    assert answered[0] > 0.99 * len(poisson(25, 3.0, (0.05, 0.3))) / 3.0
    assert min(answered[1:]) > 0.95 / STAGE_S


def test_exits_that_are_required_beyond_the_first_come_in_time_under_overload() -> None:
    mixed = [each for number in (1, 2, 3) for each in poisson(50, 3.0, (0.1, 0.4), seed=number, required=number)]
    admitted = [request for request in Loop(STAGE_S).run(mixed) if not request.refused]
    assert {request.required for request in admitted} == {1, 2, 3}
    assert sum(request.exit >= request.required for request in admitted) >= 0.98 * len(admitted)


def test_thirty_cameras_get_equal_parts_of_a_device_that_could_serve_five() -> None:
    """They keep their places in time, so that without fairness the same ones would always win."""
    chance = random.Random(1)
    phases_s = [chance.uniform(0.0, 0.1) for _ in range(30)]
    frames = [
        Request(phase_s + 0.1 * number, 0.1, str(camera))
        for camera, phase_s in enumerate(phases_s)
        for number in range(80)
    ]
    served = Counter(request.client for request in Loop(STAGE_S).run(frames) if request.exit)
    assert sum(served.values()) > 0.95 * 8.0 / STAGE_S
    assert jain([served[str(camera)] for camera in range(30)]) > 0.95


@pytest.mark.parametrize(("rate", "left_s"), [(12, (0.1, 0.1)), (25, (0.05, 0.3))])
def test_a_client_that_asks_ten_times_as_much_leaves_the_other_its_half(
    rate: float, left_s: tuple[float, float]
) -> None:
    small, alone = (poisson(rate, 4.0, left_s, "small") for _ in range(2))
    Loop(STAGE_S).run(alone)
    Loop(STAGE_S).run([*small, *poisson(10 * rate, 4.0, left_s, "large", seed=1)])
    fair = min(sum(request.exit >= 1 for request in alone), 0.5 * 4.0 / STAGE_S)
    assert sum(request.exit >= 1 for request in small) >= 0.9 * fair


def test_what_a_client_had_while_nobody_asked_for_more_does_not_count() -> None:
    """It had the device to itself, until another one came that asks for ten times as much."""
    small = poisson(20, 12.0, (0.1, 0.1), "small")
    large = [Request(8.0 + request.arrival_s, 0.1, "large") for request in poisson(200, 4.0, (0.1, 0.1), seed=1)]
    Loop(STAGE_S).run([*small, *large])
    beside = [request for request in small if request.arrival_s > 8.0]
    assert sum(request.exit >= 1 for request in beside) >= 0.9 * len(beside)


def test_a_bad_time_is_forgotten() -> None:
    """For two seconds, everything takes three times as long."""
    requests = poisson(25, 5.0, (0.05, 0.3))
    Loop(STAGE_S, slow_down=lambda now_s: 3.0 if 1.0 < now_s < 3.0 else 1.0).run(requests)
    after = [request for request in requests if request.arrival_s > 3.3]
    assert sum(request.refused for request in requests) > 5
    assert sum(request.exit >= 1 for request in after) >= 0.98 * len(after)
