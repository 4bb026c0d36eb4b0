"""The scheduler against a clock that only its own steps move."""

import itertools

import pytest

from server.engine.messages import JobSpec, Stop
from server.engine.shared_memory import Layout
from server.requests.budget import GRACE_S, TrafficCap
from server.scheduling.costs import CostModel
from server.scheduling.gains import GainModel
from server.scheduling.jobs import NOISE_S, ScheduledJob
from server.scheduling.scheduler import SLICE_S, Finished, Scheduler

SHAPE = (64, 96)
STEPS = (None, 1, None, 2, None, 3, None, 4)
STEP_S = 0.05
STAGE_S = 2 * STEP_S


def known_costs(stage_s: float = STAGE_S) -> CostModel:
    costs = CostModel()
    for exit_index in range(1, 5):
        costs.observe("model", SHAPE, exit_index, stage_s)
    return costs


def job(key: int, deadline_s: float = 100.0, usual_s: float = 0.0, max_exit: int = 4, **fields: int) -> ScheduledJob:
    spec = JobSpec(key, "model", 0, Layout(*SHAPE, 4), 0.0, deadline_s, usual_s, max_exit, **fields)
    return ScheduledJob(spec, SHAPE, STEPS)


class Device:
    """Runs the steps that a scheduler chooses, each in `step_s`, and records them."""

    def __init__(self, scheduler: Scheduler, step_s: float = STEP_S) -> None:
        self.scheduler = scheduler
        self.step_s = step_s
        self.now_s = 0.0
        self.order: list[int] = []
        self.ends: dict[int, tuple[Stop, int]] = {}

    def step(self) -> bool:
        """One turn of the worker's loop; False when there is nothing to do."""
        for ended in self.scheduler.ended(self.now_s):
            self.ends[ended.job.spec.key] = (ended.stop, ended.job.exit)
        chosen = self.scheduler.next(self.now_s)
        if chosen is None:
            return False
        self.order.append(chosen.spec.key)
        self.now_s += self.step_s
        self.scheduler.ran(chosen, self.step_s, self.now_s)
        return True

    def finish(self) -> dict[int, tuple[Stop, int]]:
        while self.step():
            pass
        return self.ends


def warm(costs: CostModel, cap: TrafficCap | None = None) -> Scheduler:
    """A scheduler that has just seen an exit, so that what it knows is fresh; the clock stands at 0."""
    scheduler = Scheduler(costs, cap)
    first = job(0)
    scheduler.add(first)
    for _ in STEPS:
        scheduler.ran(first, STEP_S, 0.0)
    assert scheduler.ended(0.0) == [(first, Stop.COMPLETE)]
    return scheduler


def run_alone(deadline_s: float, step_s: float = STEP_S, costs: CostModel | None = None) -> tuple[Stop, int]:
    scheduler = warm(costs or known_costs())
    assert scheduler.add(job(1, deadline_s)) is None
    return Device(scheduler, step_s).finish()[1]


def test_with_time_enough_every_exit_is_reached() -> None:
    assert run_alone(100.0) == (Stop.COMPLETE, 4)


def test_nothing_is_begun_that_would_not_be_ready() -> None:
    assert run_alone(0.5 * STAGE_S) == (Stop.NO_EXIT, 0)
    assert run_alone(2 * STAGE_S) == (Stop.DEADLINE, 1)  # the safe estimate of two stages is 5 % more
    assert run_alone(2.2 * STAGE_S) == (Stop.DEADLINE, 2)


def test_the_exit_never_falls_as_the_deadline_grows() -> None:
    exits = [run_alone(ms / 1000)[1] for ms in range(600)]
    assert exits == sorted(exits)
    assert set(exits) == {0, 1, 2, 3, 4}


def test_the_choice_of_exit_does_not_hang_on_how_fast_the_first_steps_were() -> None:
    for deadline_s in (1.5 * STAGE_S, 2.5 * STAGE_S, 3.5 * STAGE_S):
        assert run_alone(deadline_s, step_s=STEP_S) == run_alone(deadline_s, step_s=0.8 * STEP_S)


def test_the_choice_of_exit_does_not_hang_on_how_fast_it_was_received() -> None:
    for early_s in (-0.005, -0.001, 0.0, 0.9 * NOISE_S):
        scheduler = warm(known_costs())
        scheduler.add(job(1, 0.001 + 2.1 * STAGE_S + CostModel.SPARE_S))
        device = Device(scheduler)
        device.now_s = early_s
        assert device.finish()[1] == (Stop.DEADLINE, 2)


def test_a_required_exit_may_be_late_by_a_little() -> None:
    late_s = 0.9 * GRACE_S
    assert run_alone(1.0001 * STAGE_S, step_s=STEP_S + late_s / 2) == (Stop.DEADLINE, 1)


def test_old_knowledge_is_no_reason_to_refuse() -> None:
    scheduler = warm(known_costs())
    now_s = Scheduler.FRESH_S
    scheduler.add(job(1, now_s + 0.5 * STAGE_S))
    device = Device(scheduler, step_s=0.1 * STEP_S)  # the machine has become faster meanwhile
    device.now_s = now_s
    assert device.finish()[1][1] >= 1


def test_an_unknown_model_is_tried() -> None:
    assert run_alone(100.0, costs=CostModel()) == (Stop.COMPLETE, 4)


def test_everyone_gets_a_first_exit_before_anyone_gets_a_second() -> None:
    scheduler = warm(known_costs())
    for key, deadline_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        scheduler.add(job(key, deadline_s))
    device = Device(scheduler)
    device.finish()
    assert device.order[:6] == [2, 2, 3, 3, 1, 1]
    assert [key for key, _ in itertools.groupby(device.order[6:])] == [2, 3, 1]


def test_a_newcomer_waits_for_one_step_at_most() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1))
    device = Device(scheduler)
    for _ in range(3):
        device.step()
    scheduler.add(job(2))
    device.step()
    assert device.order == [1, 1, 1, 2]


def test_a_cancelled_job_is_gone() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1))
    assert scheduler.cancel(1) is not None
    assert scheduler.cancel(1) is None
    assert Device(scheduler).finish() == {} and len(scheduler) == 0


def test_a_deadline_can_be_moved_either_way() -> None:
    scheduler = warm(known_costs())
    for key in (1, 2):
        scheduler.add(job(key, 4.4 * STAGE_S))
    scheduler.move_deadline(1, 100.0)
    scheduler.move_deadline(2, 1.5 * STAGE_S)
    scheduler.move_deadline(3, 1.0)  # nobody: it has ended meanwhile
    assert Device(scheduler).finish() == {1: (Stop.COMPLETE, 4), 2: (Stop.DEADLINE, 1)}


@pytest.mark.parametrize("max_exit", [1, 2, 3])
def test_max_exit_ends_a_job(max_exit: int) -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1, max_exit=max_exit))
    assert Device(scheduler).finish()[1] == (Stop.MAX_EXIT, max_exit)


def test_an_answer_that_is_good_enough_ends_a_job() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1))
    found = scheduler.next()
    assert found is not None
    scheduler.ran(found, STEP_S, STEP_S)
    scheduler.ran(found, STEP_S, STAGE_S, good_enough=True)
    assert scheduler.ended(STAGE_S) == [(found, Stop.QUALITY)]


def test_neither_quality_nor_traffic_ends_a_job_before_its_min_exit() -> None:
    scheduler = warm(known_costs(), TrafficCap(((1, 1),)))
    best_effort = job(1, min_exit=2)
    scheduler.add(best_effort)
    for good_enough in (False, True):
        scheduler.ran(best_effort, STEP_S, 0.0, good_enough=good_enough)
    assert best_effort.exit == 1 and scheduler.ended(0.0) == []
    assert Device(scheduler).finish()[1] == (Stop.MAX_EXIT, 2)


def test_a_best_effort_job_keeps_the_exit_that_it_has() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1, 2.2 * STAGE_S, min_exit=4))
    assert Device(scheduler).finish()[1] == (Stop.DEADLINE, 2)


def test_what_a_job_requires_comes_before_the_further_exits_of_others() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1, 3.5 * STAGE_S))
    device = Device(scheduler)
    for _ in STEPS[:3]:
        device.step()
    assert scheduler.add(job(2, 4.6 * STAGE_S, required=3)) is None
    assert device.finish() == {1: (Stop.DEADLINE, 1), 2: (Stop.DEADLINE, 3)}


def test_a_first_exit_comes_before_what_others_require_beyond_theirs() -> None:
    scheduler = warm(known_costs())
    assert scheduler.add(job(1, 12.4 * STAGE_S)) is None
    assert [scheduler.add(job(key, 12.1 * STAGE_S, required=4)) for key in (2, 3)] == [None, None]
    assert scheduler.add(job(4, 12.1 * STAGE_S, required=4)) == pytest.approx(9 * STAGE_S)
    ends = Device(scheduler).finish()
    assert ends[1][1] >= 1 and ends[2] == ends[3] == (Stop.COMPLETE, 4)


def test_what_is_required_is_not_given_up_for_the_safe_estimate() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1, deadline_s=3.0001 * STAGE_S, required=3))
    assert Device(scheduler).finish()[1] == (Stop.DEADLINE, 3)


def test_what_is_required_and_hopeless_is_not_begun() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1, deadline_s=2.0 * STAGE_S, required=3))
    device = Device(scheduler)
    assert device.finish()[1] == (Stop.NO_EXIT, 0) and device.order == []


def test_what_was_usual_costs_no_exit_that_there_is_time_for() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1, deadline_s=4.5 * STAGE_S, usual_s=100.0))
    assert Device(scheduler).finish()[1] == (Stop.COMPLETE, 4)


def test_a_job_that_others_would_make_late_is_refused_with_the_wait() -> None:
    scheduler = warm(known_costs())
    for key in (1, 2, 3):
        assert scheduler.add(job(key, 1.0)) is None
    assert scheduler.add(job(4, 1.0 + 1e-6)) is None
    assert scheduler.add(job(5, 2 * STAGE_S)) is None  # goes first: earlier deadline
    assert scheduler.add(job(6, 2.5 * STAGE_S)) is None  # waits for 5 alone
    assert scheduler.add(job(7, 2.6 * STAGE_S)) == pytest.approx(2 * STAGE_S)
    assert len(scheduler) == 6


def test_a_job_that_would_make_others_late_is_refused() -> None:
    scheduler = warm(known_costs())
    for key in (1, 2, 3):
        assert scheduler.add(job(key, 3.5 * STAGE_S)) is None
    assert scheduler.add(job(4, 1.1 * STAGE_S)) == pytest.approx(3 * STAGE_S)
    assert scheduler.add(job(5, 4.5 * STAGE_S)) is None  # comes after them
    assert {key: exit_index >= 1 for key, (_, exit_index) in Device(scheduler).finish().items()} == dict.fromkeys(
        (1, 2, 3, 5), True
    )


def test_traffic_caps_the_depth_at_the_next_exit() -> None:
    scheduler = warm(known_costs(), TrafficCap(((2, 1),)))
    for key in (1, 2):
        scheduler.add(job(key))
    ends = Device(scheduler).finish()
    assert ends == {1: (Stop.MAX_EXIT, 1), 2: (Stop.COMPLETE, 4)}


def test_a_slow_stage_is_left_at_the_deadline() -> None:
    scheduler = warm(known_costs())
    scheduler.add(job(1, 2.2 * STAGE_S))
    device = Device(scheduler)
    device.step(), device.step()
    device.step_s = 1.0
    assert device.finish()[1] == (Stop.DEADLINE, 1)
    assert device.order == [1, 1, 1]
