"""The scheduler against a clock that only its own steps move."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest

from models.gains import Gains, NextGain
from server.engine.messages import JobSpec, Stop
from server.engine.shared_memory import Layout
from server.requests.budget import GRACE_S, LONE_GRACE_S
from server.scheduling.costs import CostModel
from server.scheduling.gains import GainModel
from server.scheduling.jobs import NOISE_S, ScheduledJob
from server.scheduling.quantile import Quantile
from server.scheduling.scheduler import SHORT_SLICE_S, SLICE_S, Finished, Scheduler

SHAPE = (64, 96)
STEPS = (None, 1, None, 2, None, 3, None, 4)
STEP_S = 0.05
STAGE_S = 2 * STEP_S


def known_costs() -> CostModel:
    """Every stage takes `STAGE_S`, so reliably that the safe estimate is the least one: 5 % and 3 ms more."""
    costs = CostModel()
    exits = [*9 * [1, 2, 3, 4], *Quantile(CostModel.SAFE_SHARE).run * [5]]  # the margin is that of all exits
    for model, exit_index in itertools.product(("model", "other"), exits):
        costs.observe(model, SHAPE, exit_index, STAGE_S)
    return costs


def job(
    key: int,
    deadline_s: float = 100.0,
    usual_s: float = 0.0,
    max_exit: int = 4,
    *,
    model: str = "model",
    client: str = "",
    **fields: int,
) -> ScheduledJob:
    layout = Layout(*SHAPE, 4)
    spec = JobSpec(key, model, 0, layout, 0.0, deadline_s, usual_s, max_exit, client=client, **fields)
    return ScheduledJob(spec, SHAPE, STEPS)


class Busy(Scheduler):
    """A scheduler that never treats its load as light, because its limit is 0."""

    LIGHT = 0.0


def scheduler(
    *jobs: ScheduledJob, costs: CostModel | None = None, gains: GainModel | None = None, kind: type[Scheduler] = Busy
) -> Scheduler:
    made = kind(costs or known_costs(), gains)
    for each in jobs:
        made.add(each)
    return made


class Device:
    """Runs the steps that a scheduler chooses, each in `step_s`, and records them."""

    def __init__(self, scheduler: Scheduler, step_s: float = STEP_S, now_s: float = 0.0) -> None:
        self.scheduler = scheduler
        self.step_s = step_s
        self.now_s = now_s
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

    def steps(self, count: int) -> "Device":
        for _ in range(count):
            self.step()
        return self

    def finish(self) -> dict[int, tuple[Stop, int]]:
        while self.step():
            pass
        return self.ends


def run_alone(deadline_s: float, step_s: float = STEP_S, costs: CostModel | None = None) -> tuple[Stop, int]:
    return Device(scheduler(job(1, deadline_s), costs=costs), step_s).finish()[1]


# --- one job on an idle device ---


@pytest.mark.parametrize(
    ("stages", "end"),
    [
        (100.0, (Stop.COMPLETE, 4)),
        (2.0, (Stop.DEADLINE, 1)),  # the safe estimate of two stages is 5 % more
        (2.2, (Stop.DEADLINE, 2)),
        (1.0001, (Stop.DEADLINE, 1)),  # what is required is not given up for the safe estimate
    ],
)
def test_no_further_exit_is_begun_that_would_not_be_ready(stages: float, end: tuple[Stop, int]) -> None:
    assert run_alone(stages * STAGE_S) == end


def test_the_exit_never_falls_as_the_deadline_grows() -> None:
    costs = known_costs()
    exits = [run_alone(ms / 1000, costs=costs)[1] for ms in range(0, 600, 3)]
    assert exits == sorted(exits)
    assert set(exits) == {0, 1, 2, 3, 4}


def test_the_choice_of_exit_does_not_hang_on_how_fast_the_first_steps_were() -> None:
    for deadline_s in (1.5 * STAGE_S, 2.5 * STAGE_S, 3.5 * STAGE_S):
        assert run_alone(deadline_s, step_s=STEP_S) == run_alone(deadline_s, step_s=0.8 * STEP_S)


def test_the_choice_of_exit_does_not_hang_on_how_fast_it_was_received() -> None:
    for early_s in (-0.005, -0.001, 0.0, 0.9 * NOISE_S):
        device = Device(scheduler(job(1, 0.001 + 2.1 * STAGE_S + CostModel.SPARE_S)), now_s=early_s)
        assert device.finish()[1] == (Stop.DEADLINE, 2)


def test_after_a_stage_that_was_much_too_slow_what_is_left_decides() -> None:
    """By the virtual start, exit 2 would still fit; but the first stage took 1.6 times as long as it should."""
    device = Device(scheduler(job(1, 2.4 * STAGE_S)), step_s=0.8 * STAGE_S).steps(2)
    assert device.finish()[1] == (Stop.DEADLINE, 1) and device.order == [1, 1]


def test_what_was_usual_costs_no_exit_that_there_is_time_for() -> None:
    assert Device(scheduler(job(1, 4.5 * STAGE_S, usual_s=100.0))).finish()[1] == (Stop.COMPLETE, 4)


def test_a_required_exit_may_be_late_by_a_little() -> None:
    late_s = 0.9 * GRACE_S
    assert run_alone(1.0001 * STAGE_S, step_s=STEP_S + late_s / 2) == (Stop.DEADLINE, 1)
    assert run_alone(0.5001 * STAGE_S, step_s=STEP_S + late_s) == (Stop.DEADLINE, 1)
    assert run_alone(0.5001 * STAGE_S, step_s=STEP_S + 1.1 * GRACE_S) == (Stop.DEADLINE, 1)
    assert run_alone(0.5001 * STAGE_S, step_s=STEP_S + 1.1 * LONE_GRACE_S) == (Stop.NO_EXIT, 0)


def test_beside_others_a_required_exit_may_be_late_by_less() -> None:
    made = scheduler(job(1, STAGE_S), job(2, 0.5 * STAGE_S))
    made.cancel(2)
    now_s = STAGE_S + 1.1 * GRACE_S
    assert made.ended(now_s) == []
    made.add(job(3, now_s + SLICE_S))  # it ends within a slice, so nobody has to give way to it
    assert [found.job.spec.key for found in made.ended(now_s)] == [1]


def test_an_idle_device_begins_whatever_the_estimate_says() -> None:
    for hopeless in (job(1, 0.5 * STAGE_S), job(1, 2.0 * STAGE_S, required=3)):
        device = Device(scheduler(hopeless), step_s=0.1 * STEP_S)  # the device has become faster
        assert device.finish()[1][1] >= hopeless.spec.required


def test_an_unknown_model_is_tried() -> None:
    assert run_alone(100.0, costs=CostModel()) == (Stop.COMPLETE, 4)


def test_a_slow_stage_is_left_at_the_deadline() -> None:
    device = Device(scheduler(job(1, 2.2 * STAGE_S))).steps(2)
    device.step_s = 1.0
    assert device.finish()[1] == (Stop.DEADLINE, 1)
    assert device.order == [1, 1, 1]


def test_a_stage_that_is_left_unfinished_is_learnt_from() -> None:
    costs = CostModel()
    costs.observe("model", SHAPE, 1, STAGE_S)
    made = scheduler(job(1), job(2, 0.5), costs=costs)
    Device(made, step_s=5 * STEP_S).step()
    assert made.ended(99.0) != []
    made.cancel(1)  # nothing of it has run
    assert costs.typical_s("model", SHAPE, 1) == STAGE_S
    made.add(job(3))
    Device(made, step_s=5 * STEP_S).step()
    made.cancel(3)
    assert costs.typical_s("model", SHAPE, 1) == pytest.approx(5 * STEP_S)  # the median of three


# --- who comes first ---


def test_everyone_gets_a_first_exit_before_anyone_gets_a_second() -> None:
    device = Device(scheduler(job(1, 30.0), job(2, 10.0, priority=0), job(3, 20.0, priority=2)))
    device.steps(6)
    assert device.order == [2, 2, 3, 3, 1, 1]


def test_a_newcomer_waits_for_one_slice_at_most() -> None:
    made = scheduler(job(1))
    device = Device(made).steps(2)
    running = made.next(device.now_s)
    assert running is not None
    made.ran(running, SLICE_S, device.now_s + SLICE_S, finished=False)
    made.add(job(2))
    device.steps(3)
    assert device.order == [1, 1, 2, 2, 1] and running.next_step == 3


def test_what_a_job_requires_comes_before_the_further_exits_of_others() -> None:
    made = scheduler(job(1, 3.5 * STAGE_S))
    device = Device(made).steps(3)
    made.add(job(2, 4.6 * STAGE_S, required=3))
    assert device.finish() == {1: (Stop.DEADLINE, 1), 2: (Stop.DEADLINE, 3)}


def test_a_first_exit_comes_before_what_others_require_beyond_theirs() -> None:
    device = Device(scheduler(job(1, 12.4 * STAGE_S), *(job(key, 12.1 * STAGE_S, required=4) for key in (2, 3))))
    ends = device.finish()
    assert device.order[4:6] == [1, 1]
    assert ends[1][1] >= 1 and ends[2] == ends[3] == (Stop.COMPLETE, 4)


def test_slack_goes_by_priority() -> None:
    device = Device(scheduler(job(1, 50.0, priority=0), job(2, 70.0, priority=2), job(3, 60.0)))
    device.finish()
    assert [key for key, _ in itertools.groupby(device.order[6:])] == [2, 3, 1]


def test_slack_is_shared_by_the_clients() -> None:
    """One client has six jobs open, the other one, which is behind by five stages once everyone has a first exit. It
    gets ahead until it is behind by no more than `FAIR_S`."""
    made = scheduler(*(job(key, 4.0, client="many") for key in range(6)), job(6, 4.0, client="one"))
    device = Device(made)
    device.steps(14)
    assert set(device.order) == set(range(7))
    device.steps(5)
    assert (
        pytest.approx(3 * STAGE_S) == Scheduler.FAIR_S
        and Counter(device.order[14:18]) == {6: 4}
        and device.order[18] != 6
    )
    device.finish()
    assert device.ends[6] == (Stop.COMPLETE, 4)


def test_what_a_client_had_is_forgotten() -> None:
    made = scheduler(job(1, client="earlier"))
    later_s = 20 * Scheduler.HALF_LIFE_S
    Device(made, step_s=5.0).steps(2)
    made.add(job(2, later_s + 90.0, client="now"))
    made.move_deadline(1, later_s + 80.0)
    device = Device(made, now_s=later_s).steps(2)
    assert device.order == [2, 2]
    assert made.next(device.now_s + 1.0) is not None and made.next(device.now_s + 1.0).spec.key == 1  # type: ignore[union-attr]


def measured(*means: float) -> Gains:
    return Gains(tuple(NextGain(mean, 0.0, 0.0) for mean in means), (), 1, "val", "", "")


def test_slack_goes_where_the_expected_gain_is_largest() -> None:
    """Exit 2 of `other` adds little, but exit 3 much: both together are worth more than exits 2 and 3 of `model`."""
    gains = GainModel({"model": measured(0.5, 0.1, 0.1, 0.1), "other": measured(0.5, 0.05, 0.4, 0.1)})
    for deadline_s, first in ((1.3, 2), (4.0 * STAGE_S, 1)):  # if exit 3 does not fit, exit 2 alone counts
        device = Device(scheduler(job(1, 1.2), job(2, deadline_s, model="other"), gains=gains)).steps(5)
        assert device.order == ([2, 2, 1, 1, 1] if deadline_s < 1.2 else [1, 1, 2, 2, 2])
        assert device.order[4] == first


def test_the_best_of_the_further_exits_counts_for_its_time() -> None:
    """All further exits of `other` add more than those of `model`, but exit 2 of `model` adds most in its time."""
    gains = GainModel({"model": measured(0.5, 0.3, 0.0, 0.0), "other": measured(0.5, 0.2, 0.2, 0.2)})
    device = Device(scheduler(job(1, 1.3), job(2, 1.2, model="other"), gains=gains)).steps(6)
    assert device.order == [2, 2, 1, 1, 1, 1]


def test_of_similar_gains_the_earliest_deadline_comes_first() -> None:
    gains = GainModel({"model": measured(0.5, 0.1, 0.1, 0.1), "other": measured(0.5, 0.12, 0.12, 0.1)})
    device = Device(scheduler(job(1, 9.0), job(2, 10.0, model="other"), gains=gains)).steps(5)
    assert device.order == [1, 1, 2, 2, 1]


def test_a_stage_that_was_begun_is_finished_before_another_one_is() -> None:
    made = scheduler(job(1, 50.0))
    device = Device(made).steps(3)
    made.add(job(2, 40.0))
    device.finish()
    assert device.order[:7] == [1, 1, 1, 2, 2, 1, 2]


# --- a light load ---


def light(*jobs: ScheduledJob, costs: CostModel | None = None, gains: GainModel | None = None) -> Scheduler:
    """A scheduler that takes `jobs`. Its load limit `LIGHT` is ten times their load at the usual pace of the device, so
    it treats the load as light."""
    made = scheduler(*jobs, costs=costs, gains=gains, kind=Scheduler)
    asked_s = sum(each.ahead_s[each.spec.max_exit] for each in jobs)
    made.LIGHT = 10 * asked_s * math.log(2) / Scheduler.LOAD_HALF_LIFE_S  # type: ignore[misc]
    made.SOON_S = 50.0  # type: ignore[misc]
    return made


def key_of(job: ScheduledJob | None) -> int:
    assert job is not None
    return job.spec.key


def test_if_all_fit_jobs_run_by_deadline_alone() -> None:
    """Whatever their rank, client and gain are."""
    gains = GainModel({"model": measured(0.5, 0.3, 0.3, 0.3), "other": measured(0.5, 0.01, 0.01, 0.01)})
    jobs = job(1, 8.7 * STAGE_S), job(2, 8.6 * STAGE_S, model="other", client="greedy")
    device = Device(light(*jobs, gains=gains))
    assert device.finish() == {1: (Stop.COMPLETE, 4), 2: (Stop.COMPLETE, 4)} and device.order == [2] * 8 + [1] * 8


def test_priorities_count_even_if_all_fit() -> None:
    device = Device(light(job(1, 8.7 * STAGE_S, priority=2), job(2, 8.6 * STAGE_S)))
    assert device.steps(12).order == [2, 2, 1, 1, *[1] * 6, 2, 2]


def test_an_exit_that_does_not_fit_costs_no_other_job_its_turn() -> None:
    device = Device(light(job(1, 3.5 * STAGE_S), job(2, 50.0))).steps(6)
    assert device.order == [1] * 6


@pytest.mark.parametrize(("stages", "alone"), [(4.6, True), (4.55, False)])
def test_if_not_all_required_exits_fit_first_exits_come_first(stages: float, alone: bool) -> None:
    """Job 1 runs until its deadline, after 3.5 stages. The safe estimate of a stage is 1.08 stages."""
    device = Device(light(job(1, 3.5 * STAGE_S), job(2, stages * STAGE_S))).steps(3)
    assert device.order == ([1, 1, 1] if alone else [1, 1, 2])


@pytest.mark.parametrize(("stages", "alone"), [(5.65, True), (5.6, False)])
def test_an_exit_that_is_required_must_fit(stages: float, alone: bool) -> None:
    """The safe estimate of the two stages to exit 2 is 2.13 stages."""
    device = Device(light(job(1, 3.5 * STAGE_S), job(2, stages * STAGE_S, required=2))).steps(3)
    assert device.order == ([1, 1, 1] if alone else [1, 1, 2])


def test_what_fits_depends_on_the_order_of_deadlines_and_on_the_pace() -> None:
    for slow_down, key in ((1.0, 2), (1.3, 1)):
        made = light(job(1, 5.5 * STAGE_S), job(2, 4.5 * STAGE_S))
        Device(made).steps(2)
        made.costs.slow_down = slow_down
        assert key_of(made.next(STAGE_S)) == key


def test_an_exit_that_is_not_wanted_need_not_fit_and_is_no_load() -> None:
    made = light(job(1, 2.2 * STAGE_S, max_exit=2), job(2, max_exit=1))
    made.LIGHT *= 0.11  # type: ignore[misc]
    assert Device(made).steps(5).order == [1, 1, 1, 1, 2]


@pytest.mark.parametrize(("stages", "order"), [(5.1, [1, 1, 1]), (4.9, [1, 1, 2])])
def test_no_first_exit_waits_long_for_the_further_exits_of_others(stages: float, order: list[int]) -> None:
    made = light(job(1, 40.0), job(2, 50.0))
    made.SOON_S = stages * STAGE_S  # type: ignore[misc]
    assert Device(made).steps(3).order == order


def test_a_first_exit_waits_no_longer_while_others_keep_coming() -> None:
    """Each newcomer has an earlier deadline, and all exits fit."""
    made = light(waiting := job(1, 90.0))
    made.LIGHT, made.SOON_S = math.inf, 6 * STAGE_S  # type: ignore[misc]
    device = Device(made)
    for key in range(2, 20):
        made.add(job(key, device.now_s + 4.6 * STAGE_S, usual_s=device.now_s))
        device.steps(8)
    first = device.order.index(1)
    assert waiting.exit and first * STEP_S <= 6 * STAGE_S and device.order[first + 1] == 1


@pytest.mark.parametrize(("stages", "key"), [(4.9, 1), (4.8, 2)])
def test_what_was_computed_of_a_stage_need_not_fit(stages: float, key: int) -> None:
    """Exit 1 and a quarter of a stage are done, which leaves 2.75 stages."""
    made = light(begun := job(1, 3.9 * STAGE_S), job(2, stages * STAGE_S))
    for seconds in (STEP_S, STEP_S, 0.25 * STAGE_S):
        made.ran(begun, seconds, STAGE_S, finished=seconds == STEP_S)
    assert key_of(made.next(STAGE_S)) == key


def test_a_stage_that_takes_longer_than_usual_leaves_no_time_to_others() -> None:
    made = light(slow := job(1, 5.0, max_exit=2), job(2, 4.4 * STAGE_S), job(3, 5.4 * STAGE_S))
    for seconds in (STEP_S, STEP_S, 9 * STAGE_S):
        made.ran(slow, seconds, STAGE_S, finished=seconds == STEP_S)
    made.move_deadline(1, 0.1 * STAGE_S + STAGE_S)
    assert Device(made, now_s=STAGE_S).steps(3).order[-3:] == [2, 2, 3], "exit 1 of job 3 does not fit"


@pytest.mark.parametrize(("stages", "keys"), [(4.4, [1, 2]), (4.3, [2, 2])])
def test_a_map_that_is_left_comes_first_if_all_fit_after_it(stages: float, keys: list[int]) -> None:
    """Job 1 has the later deadline. Its first stage is done but for the map, which takes a quarter of a stage, and
    three more stages follow. Job 2 has not begun; its deadline is `stages` stages away."""
    made = light(first := job(1, 50.0), job(2, stages * STAGE_S))
    made.ran(first, STEP_S, 0.0)
    made.ran(first, 0.5 * STEP_S, 0.0, finished=False, map_left=True)
    assert Device(made).steps(2).order == keys


@pytest.mark.parametrize(
    ("limit", "later_s", "slow_down", "is_light"),
    [
        (1.01, 0.0, 1, True),
        (0.9, 0.0, 1, False),
        (0.6, Scheduler.LOAD_HALF_LIFE_S, 1, True),  # half of it is forgotten
        (0.4, Scheduler.LOAD_HALF_LIFE_S, 1, False),
        (1.5, 0.0, 2, False),  # the device took twice as long as usual when the jobs came
        (2.1, 0.0, 2, True),
    ],
)
def test_under_load_first_exits_come_first_even_if_all_fit(
    limit: float, later_s: float, slow_down: int, is_light: bool
) -> None:
    """The load counts from the time when an image is there, not from the first byte of its request."""
    start_s = 1000.0
    jobs = [job(key, start_s + 30.0 + key, usual_s=start_s, client=f"{key}") for key in (1, 2)]
    costs = known_costs()
    costs.slow_down = float(slow_down)
    made = light(*jobs, costs=costs)
    made.LIGHT *= limit / 10  # type: ignore[misc]
    now_s = start_s + later_s
    for _ in range(2):
        made.ran(jobs[0], slow_down * STEP_S, now_s)
    made.costs.slow_down = 1.0  # one slow image is no load
    assert key_of(made.next(now_s)) == (1 if is_light else 2)


@pytest.mark.parametrize(
    ("stages", "other", "exits"),
    [
        (2.01, {}, (2, 4)),
        (1.95, {}, (1, 4)),
        (2.01, {"priority": 2}, (1, 4)),
        (2.01, {"deadline_s": 3.2 * STAGE_S}, (2, 1)),  # what the other one does not require may be lost
        (2.01, {"deadline_s": 3.6 * STAGE_S, "required": 2}, (1, 2)),  # late after two stages of job 1
    ],
)
def test_an_exit_that_is_in_time_by_the_typical_estimate_is_tried_if_no_other_job_loses_what_it_requires(
    stages: float, other: dict[str, Any], exits: tuple[int, int]
) -> None:
    def jobs() -> list[ScheduledJob]:
        return [job(1, stages * STAGE_S), job(2, **other)]

    ends = Device(light(*jobs())).finish()
    assert (ends[1][1], ends[2][1]) == exits
    assert Device(scheduler(*jobs())).finish()[1][1] < 2


def test_whether_an_exit_is_tried_does_not_hang_on_how_fast_it_was_received() -> None:
    for early_s in (-0.005, -0.001, 0.0, 0.9 * NOISE_S):
        assert Device(light(job(1, 0.0001 + 2.0 * STAGE_S)), now_s=early_s).finish()[1][1] == 2


def test_whether_an_exit_is_tried_does_not_hang_on_how_fast_the_first_steps_were() -> None:
    for speed in (1.0, 0.8):
        device = Device(light(job(1, 1.95 * STAGE_S)), step_s=speed * STEP_S)
        assert device.finish()[1] == (Stop.DEADLINE, 1) and device.order == [1, 1]


def test_who_ends_at_the_same_time_does_not_keep_an_exit_from_being_tried() -> None:
    made = light(tried := job(1, 2.01 * STAGE_S), ending := job(2, max_exit=1, priority=2))
    for each in (tried, ending):
        made.ran(each, STEP_S, STAGE_S)
        made.ran(each, STEP_S, STAGE_S)
    assert [found.job for found in made.ended(STAGE_S)] == [ending]


def test_an_exit_that_the_others_leave_no_time_for_is_given_up_at_once() -> None:
    made = light(job(1, 2.01 * STAGE_S), job(2, 3.6 * STAGE_S, required=2))
    Device(made).steps(2)
    assert [found.job.spec.key for found in made.ended(STAGE_S)] == [1]


def test_traffic_ends_a_job_before_a_further_exit_is_tried() -> None:
    made = light(job(1, 2.01 * STAGE_S))
    made.deepest = 1
    assert Device(made).finish()[1] == (Stop.MAX_EXIT, 1)


# --- what is given up ---


def test_what_is_hopeless_is_not_begun_if_it_would_cost_others() -> None:
    made = scheduler(job(1, 0.6 * STAGE_S), job(2, 5.0))
    (found,) = made.ended(0.0)
    assert (found.job.spec.key, found.stop) == (1, Stop.NO_EXIT)
    assert (found.needs_s, found.left_s) == pytest.approx((STAGE_S, 0.6 * STAGE_S))


def test_what_is_hopeless_is_begun_if_the_others_end_within_a_slice() -> None:
    """A camera whose frames overlap a little is not refused because of its own last frame."""
    last, now_s = job(1, 1.01 * STAGE_S), STAGE_S - 0.5 * SLICE_S
    made = scheduler(last)
    made.ran(last, now_s, now_s, finished=False)
    made.add(job(2, now_s + 0.9 * STAGE_S))
    assert made.ended(now_s) == [] and len(made) == 2


def test_what_is_late_gives_way_to_what_is_not() -> None:
    """Even to a job that is hopeless by the estimate: that one may still come in time."""
    made = scheduler(job(1, 1.001 * STAGE_S))
    Device(made, step_s=0.9 * STAGE_S).step()
    now_s = 1.001 * STAGE_S + 0.5 * GRACE_S
    assert made.ended(now_s) == []
    made.add(job(2, now_s + 0.9 * STAGE_S))
    assert [(found.job.spec.key, found.needs_s) for found in made.ended(now_s)] == [(1, 0.0)]  # it was begun


def test_a_slice_is_cut_at_the_deadline() -> None:
    one = job(1, 1.0)
    assert Scheduler.slice_s(one, 0.0) == SLICE_S
    assert Scheduler.slice_s(one, 0.99) == pytest.approx(0.01)
    assert Scheduler.slice_s(one, 1.001) == SHORT_SLICE_S


def test_a_device_that_slows_down_changes_the_outlook_of_those_who_wait() -> None:
    waiting = job(3, 99.0)
    made = scheduler(job(1, 9.0), job(2, 10.0), waiting)
    device = Device(made).steps(2)
    assert waiting.outlook.hopeless_s == pytest.approx(99.0 - STAGE_S)
    for _ in range(CostModel.RECENT):
        made.costs.observe("other", SHAPE, 1, 2 * STAGE_S)
    device.steps(2)
    assert waiting.outlook.hopeless_s == pytest.approx(99.0 - 2 * STAGE_S / (1 + CostModel.NOISE))


# --- other ends ---


def test_a_cancelled_job_is_gone() -> None:
    made = scheduler(job(1))
    assert made.cancel(1) is not None
    assert made.cancel(1) is None
    assert Device(made).finish() == {} and len(made) == 0


def test_a_deadline_can_be_moved_either_way() -> None:
    made = scheduler(job(1, 4.4 * STAGE_S), job(2, 4.4 * STAGE_S))
    made.move_deadline(1, 100.0)
    made.move_deadline(2, 1.5 * STAGE_S)
    made.move_deadline(3, 1.0)  # nobody: it has ended meanwhile
    assert Device(made).finish() == {1: (Stop.COMPLETE, 4), 2: (Stop.DEADLINE, 1)}


@pytest.mark.parametrize("max_exit", [1, 2, 3])
def test_max_exit_ends_a_job(max_exit: int) -> None:
    assert Device(scheduler(job(1, max_exit=max_exit))).finish()[1] == (Stop.MAX_EXIT, max_exit)


def test_an_answer_that_is_good_enough_ends_a_job() -> None:
    one = job(1)
    made = scheduler(one)
    made.ran(one, STEP_S, STEP_S)
    made.ran(one, STEP_S, STAGE_S, good_enough=True)
    assert made.ended(STAGE_S) == [Finished(one, Stop.QUALITY)]


def test_neither_quality_nor_traffic_ends_a_job_before_its_min_exit() -> None:
    one = job(1, min_exit=2)
    made = scheduler(one)
    made.deepest = 1
    for good_enough in (False, True):
        made.ran(one, STEP_S, 0.0, good_enough=good_enough)
    assert one.exit == 1 and made.ended(0.0) == []
    assert Device(made).finish()[1] == (Stop.MAX_EXIT, 2)


def test_a_best_effort_job_keeps_the_exit_that_it_has() -> None:
    assert Device(scheduler(job(1, 2.2 * STAGE_S, min_exit=4))).finish()[1] == (Stop.DEADLINE, 2)


def test_traffic_caps_the_depth_at_the_next_exit() -> None:
    made = scheduler(job(1))
    device = Device(made).steps(3)
    made.deepest = 1
    assert device.step() and device.ends == {}  # the stage was begun
    assert device.finish() == {1: (Stop.MAX_EXIT, 2)}
