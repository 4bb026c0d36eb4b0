"""Admission by the backlog: by hand, and in the loop with a scheduler, on a clock that only computation moves."""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from server.engine.messages import JobSpec
from server.engine.shared_memory import Layout
from server.requests.budget import GRACE_S
from server.scheduling.backlog import Backlog, Expected
from server.scheduling.costs import CostModel
from server.scheduling.jobs import ScheduledJob
from server.scheduling.quantile import Quantile
from server.scheduling.scheduler import SLICE_S, Scheduler

SHAPE = (64, 96)
STAGE_S = 0.02
SAFE_S = 1.05 * STAGE_S
SPARE_S = CostModel.SPARE_S


def known_costs(stage_s: float = STAGE_S) -> CostModel:
    """Every stage takes `stage_s`, so reliably that the safe estimate is the least one: 5 % and 3 ms more."""
    costs = CostModel()
    for exit_index in range(1, 5):
        for _ in range(1 + Quantile.RUN // 4):
            costs.observe("model", SHAPE, exit_index, stage_s)
    return costs


def expected(left_s: float, required: int = 1, client: str = "", prepare_s: float = 0.0) -> Expected:
    return Expected("model", SHAPE, required, left_s, client=client, prepare_s=prepare_s)


def owing(*requests: Expected, now_s: float = 0.0) -> Backlog:
    """A backlog of admitted requests, whose images are with the worker."""
    backlog = Backlog(known_costs())
    for key, each in enumerate(requests):
        backlog.add(key, each, now_s)
        backlog.update(key, each, now_s)
    return backlog


# --- by hand ---


@pytest.mark.parametrize(
    ("owed", "asked", "ready_s"),
    [
        ([], expected(1.0), SAFE_S + SPARE_S),
        ([], expected(1.0, required=3), 3 * SAFE_S + SPARE_S * 2**0.5),
        ([], expected(1.0, prepare_s=0.1), 0.1 + SAFE_S + SPARE_S),
        ([expected(0.5)], expected(1.0), 2 * SAFE_S + SPARE_S * 2**0.5),  # after the earlier deadline
        ([expected(1.0)], expected(0.5), SLICE_S + SAFE_S + SPARE_S),  # before it, once its slice is over
        ([expected(0.5, required=2)], expected(1.0), 2 * SAFE_S + SPARE_S * 2**0.5),  # first exits come first
        ([expected(0.5), expected(0.6, required=2)], expected(1.0, required=2), 5 * SAFE_S + SPARE_S * 5**0.5),
    ],
)
def test_ready_after_what_comes_before_and_the_own_work(owed: list[Expected], asked: Expected, ready_s: float) -> None:
    assert owing(*owed).ready_s(asked, 0.0) == pytest.approx(ready_s)


def test_nothing_known_is_ready_at_once() -> None:
    assert Backlog(CostModel()).ready_s(expected(1.0), 0.0) == pytest.approx(SPARE_S)


def test_what_the_worker_has_done_is_not_owed_any_more() -> None:
    backlog = owing(expected(0.5), expected(0.6, required=2))
    both_s = 4 * SAFE_S + SPARE_S * 2.0
    assert backlog.ready_s(expected(1.0, required=1), 0.0) == pytest.approx(3 * SAFE_S + SPARE_S * 3**0.5)
    assert backlog.ready_s(expected(1.0, required=2), 0.0) == pytest.approx(both_s + SAFE_S + SPARE_S * (5**0.5 - 2.0))
    assert backlog.ready_s(expected(1.0), 0.01) == pytest.approx(3 * SAFE_S - 0.01 + SPARE_S * 3**0.5)
    assert backlog.ready_s(expected(1.0), 0.4) == pytest.approx(2 * SAFE_S + SPARE_S * 3**0.5)  # no more than the stage
    backlog.reached(0, 1, 0.02)
    assert backlog.ready_s(expected(1.0), 0.02) == pytest.approx(2 * SAFE_S + SPARE_S * 2**0.5)
    backlog.reached(1, 1, 0.04)
    backlog.reached(1, 2, 0.06)
    assert backlog.ready_s(expected(1.0), 0.06) == pytest.approx(SLICE_S + SAFE_S + SPARE_S)  # a slice of slack runs
    for key in (0, 1, 2):
        backlog.remove(key, 0.06)
        backlog.reached(key, 1, 0.06)
        backlog.update(key, expected(9.0), 0.06)
    assert len(backlog) == 0 and backlog.ready_s(expected(1.0), 0.06) == pytest.approx(SAFE_S + SPARE_S)


def test_an_image_that_is_larger_than_expected_counts_as_what_it_is() -> None:
    backlog = owing(expected(0.5))
    backlog.update(0, Expected("model", (128, 96), 1, 0.5), 0.0)
    assert backlog.ready_s(expected(1.0), 0.0) == pytest.approx(3 * SAFE_S + SPARE_S * 2**0.5)
    backlog.update(0, Expected("model", (128, 96), 1, 1.5), 0.0)  # and a deadline that has moved
    assert backlog.ready_s(expected(1.0), 0.0) == pytest.approx(SLICE_S + SAFE_S + SPARE_S)


def test_what_others_would_make_late_is_refused_with_the_wait() -> None:
    backlog = owing(*[expected(0.2)] * 3)
    needs_s = 4 * SAFE_S + SPARE_S * 2
    assert backlog.refusal(expected(0.2 + 1e-6), 0.0) is None
    refusal = backlog.refusal(expected(needs_s - 0.002), 0.0)
    assert refusal is None  # it would come first
    late = Backlog(known_costs())
    for key in range(3):
        late.add(key, expected(0.05 + 0.01 * key), 0.0)
    found = late.refusal(expected(0.085), 0.0)
    assert found is not None
    assert (found.needs_s, found.left_s, found.wait_s) == pytest.approx((needs_s, 0.085, needs_s - 0.085))
    assert late.refusal(expected(0.085 + found.wait_s), 0.0) is None


def test_what_would_make_others_late_is_refused_until_they_have_what_they_require() -> None:
    backlog = owing(*[expected(3.5 * STAGE_S)] * 3)
    found = backlog.refusal(expected(2.1 * STAGE_S), 0.0)
    assert found is not None and found.wait_s == pytest.approx(3 * SAFE_S)
    assert found.needs_s < found.left_s
    assert backlog.refusal(expected(6.0 * STAGE_S), 0.0) is None  # comes after them


def test_what_is_required_beyond_exit_1_is_protected_too() -> None:
    backlog = owing(expected(5.0 * STAGE_S, required=3))
    assert backlog.refusal(expected(20.0 * STAGE_S), 0.0) is None
    backlog.add(7, expected(20.0 * STAGE_S), 0.0)
    assert backlog.refusal(expected(20.0 * STAGE_S), 0.0) is not None  # its first exit would come first


@pytest.mark.parametrize("left_s", [-1.0, 0.3 * STAGE_S])
def test_an_idle_worker_takes_everything(left_s: float) -> None:
    assert Backlog(known_costs()).refusal(expected(left_s), 0.0) is None
    assert owing(expected(0.9 * SLICE_S)).refusal(expected(left_s), 0.0) is None  # ends within a slice


def test_a_request_that_would_be_late_even_alone_is_taken_by_nobody_who_has_other_work() -> None:
    backlog = owing(expected(0.5))
    found = backlog.refusal(expected(0.9 * STAGE_S), 0.0)
    assert found is not None and found.wait_s == pytest.approx(0.5)
    backlog.reached(0, 1, 0.02)
    assert backlog.refusal(expected(0.02 + 0.9 * STAGE_S), 0.02) is not None
    assert backlog.refusal(expected(0.02 + 1.01 * STAGE_S), 0.02) is None  # slack is no reason to refuse


def test_those_who_cannot_be_helped_are_no_reason_to_refuse() -> None:
    for stages, taken in ((2.5, False), (1.9, True)):
        backlog = owing(expected(stages * STAGE_S, required=2))
        assert (backlog.refusal(expected(9.0), 0.0) is None) == taken  # its first exit comes before the second one


def test_who_had_more_leaves_room_when_more_is_asked_than_can_be_done() -> None:
    """Two clients, of which one had nine tenths: within half of its time it must be ready."""
    backlog = Backlog(known_costs())
    for number in range(300):
        now_s, client = 0.01 * (number - 200), "little" if number % 10 == 0 else "much"
        backlog.refusal(expected(now_s + 1.0, client=client), now_s)  # twice what the device can do
        backlog.add(number, expected(now_s + 1.0, client=client), now_s)
        backlog.remove(number, now_s)
    for key in range(4):
        backlog.add(key, expected(1.09 + 0.001 * key, client="little"), 1.0)
    ready_s = 5 * SAFE_S + SPARE_S * 5**0.5
    for client, factor in (("little", 1.0), ("much", 2.0)):
        assert backlog.refusal(expected(1.0 + factor * ready_s + 0.001, client=client), 1.0) is None
        found = backlog.refusal(expected(1.0 + factor * ready_s - 0.001, client=client), 1.0)
        assert found is not None and found.wait_s < 0.002
    later_s = 1.0 + 20 * Backlog.ASKED_HALF_LIFE_S  # nobody asks for too much any more
    backlog.add(9, expected(later_s + 0.04), later_s)
    assert backlog.refusal(expected(later_s + 0.08, client="much"), later_s) is None


def test_a_worker_counts_its_part_of_what_several_workers_are_asked_for() -> None:
    """A client that had all leaves no room as long as two workers can do what it and another one ask for."""
    for workers, taken in ((1, False), (2, True)):
        backlog = Backlog(known_costs(), workers)
        for number in range(300):
            now_s, client = 0.015 * (number - 300), "much" if number % 2 else "refused"
            backlog.refusal(expected(now_s + 1.0, client=client), now_s)
            if client == "much":
                backlog.add(number, expected(now_s + 1.0, client=client), now_s)
                backlog.remove(number, now_s)
        backlog.add(0, expected(0.05), 0.0)
        backlog.add(1, expected(0.06), 0.0)
        assert (backlog.refusal(expected(0.09, client="much"), 0.0) is None) == taken


def test_what_is_asked_again_counts_once() -> None:
    """By its head and with its image: two workers can do what is asked for once, not what is asked for twice."""
    for again, taken in ((False, False), (True, True)):
        backlog = Backlog(known_costs(), workers=2)
        for number in range(300):
            now_s = 0.015 * (number - 300)
            backlog.refusal(expected(now_s + 1.0, client="refused" if number % 2 else "much"), now_s)
            backlog.refusal(expected(now_s + 1.0, client="refused" if number % 2 else "much"), now_s, again=again)
            if number % 2 == 0:
                backlog.add(number, expected(now_s + 1.0, client="much"), now_s)
                backlog.remove(number, now_s)
        backlog.add(0, expected(0.05), 0.0)
        backlog.add(1, expected(0.06), 0.0)
        assert (backlog.refusal(expected(0.09, client="much"), 0.0) is None) == taken


# --- in the loop ---


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
            if not request.refused:
                self.backlog.add(key, asked, now_s)
                heapq.heappush(self.coming, (now_s + self.PREPARE_S, key))

    def submit(self, now_s: float, key: int) -> None:
        request = self.requests[key]
        deadline_s = request.arrival_s + request.left_s
        self.backlog.update(key, Expected("model", SHAPE, request.required, deadline_s, client=request.client), now_s)
        spec = JobSpec(
            key, "model", 0, Layout(*SHAPE, 4), 0.0, deadline_s, now_s, 4, request.required, client=request.client
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


def test_a_bad_time_is_forgotten() -> None:
    """For two seconds, everything takes three times as long."""
    requests = poisson(25, 5.0, (0.05, 0.3))
    Loop(STAGE_S, slow_down=lambda now_s: 3.0 if 1.0 < now_s < 3.0 else 1.0).run(requests)
    after = [request for request in requests if request.arrival_s > 3.3]
    assert sum(request.refused for request in requests) > 5
    assert sum(request.exit >= 1 for request in after) >= 0.98 * len(after)
