"""Tests of `Scheduler.companions`: the jobs that join a batch, and those that must not."""

import pytest
from test_scheduler import STAGE_S, STEP_S, Device, job, scheduler

from server.scheduling.costs import CostModel
from server.scheduling.jobs import ScheduledJob
from server.scheduling.scheduler import SLICE_S, Scheduler

SAFE_S = CostModel.MARGIN_LEAST * STAGE_S
SPARE_S = CostModel.SPARE_S + 1e-6


def companions(made: Scheduler, max_batch: int = 8, now_s: float = 0.0) -> list[int]:
    """The keys of the jobs in the batch: first that of the chosen job, then those of its companions."""
    chosen = made.next(now_s)
    assert chosen is not None
    return [each.spec.key for each in (chosen, *made.companions(chosen, max_batch, now_s))]


def test_jobs_that_wait_for_the_same_step_take_it_together_in_their_order() -> None:
    made = scheduler(job(1, 90.0), job(2, 70.0), job(3, 80.0), job(4, 60.0))
    assert companions(made) == [4, 2, 3, 1]
    assert companions(made, max_batch=2) == [4, 2]
    assert companions(made, max_batch=1) == [4]


def test_a_batch_has_a_size_that_was_prepared() -> None:
    jobs = [job(key, 60.0 + key) for key in range(11)]
    sizes = [len(companions(scheduler(*jobs[:count]))) for count in range(1, 12)]
    assert sizes == [1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8]


def test_where_batches_do_not_pay_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scheduler(job(1), job(2))
    chosen = made.next(0.0)
    assert chosen is not None
    monkeypatch.setattr(ScheduledJob, "joins", lambda *_: pytest.fail("it looked"))
    assert made.companions(chosen, 1, 0.0) == []


def test_other_models_shapes_and_steps_take_no_part() -> None:
    larger = job(3)
    larger.shape = (128, 96)
    ahead = job(4)
    made = scheduler(job(1, 50.0), job(2, model="other"), larger, ahead)
    made.ran(ahead, STEP_S, 0.0)
    assert companions(made) == [1]
    made.add(job(5))
    assert companions(made) == [1, 5]


def test_who_has_caught_up_takes_part() -> None:
    early, late = job(1, 90.0), job(2, 80.0)
    made = scheduler(early, late)
    for each in (early, late):
        made.ran(each, STEP_S, 0.0)
    assert companions(made, now_s=STEP_S) == [2, 1]


def test_a_step_that_has_paused_goes_on_without_newcomers() -> None:
    paused = job(1, 50.0)
    made = scheduler(paused, job(2))
    made.ran(paused, SLICE_S, SLICE_S, finished=False)
    assert companions(made, now_s=SLICE_S) == [1]
    made.move_deadline(2, 40.0)
    assert companions(made, now_s=SLICE_S) == [2]  # nor does the paused one join a newcomer
    made.ran(paused, SLICE_S, SLICE_S)
    other = job(3, 45.0)
    made.add(other)
    made.ran(other, STEP_S, SLICE_S)
    made.cancel(2)
    assert companions(made, now_s=SLICE_S) == [3, 1]


def test_only_equals_take_part() -> None:
    """After exit 1, job 1 has its required exit, and job 2 does not."""
    made = scheduler(job(1, 50.0, required=2), job(2, 40.0), job(3, 60.0, required=2))
    device = Device(made).steps(6)
    assert device.order == [2, 2, 1, 1, 3, 3]
    assert companions(made, now_s=device.now_s) == [1, 3]
    made.cancel(3)
    assert companions(made, now_s=device.now_s) == [1]


@pytest.mark.parametrize(
    ("first_s", "second_s", "batch"),
    [
        (2 * SAFE_S + SPARE_S, 90.0, [1, 2]),
        (2 * SAFE_S, 90.0, [1]),  # the first one would wait too long for the second one
        (2 * SAFE_S + SPARE_S, 2 * SAFE_S + SPARE_S, [1, 2]),
        (1.9 * SAFE_S, 2 * SAFE_S + SPARE_S, [1]),
        (0.5 * SAFE_S, 90.0, [1]),  # late anyway, it does not become later
    ],
)
def test_nobody_waits_too_long_for_the_others(first_s: float, second_s: float, batch: list[int]) -> None:
    assert companions(scheduler(job(1, first_s), job(2, second_s))) == batch


def test_a_batch_is_as_large_as_the_deadlines_allow() -> None:
    late_s = 5.0
    for deadline_s, count in ((8 * SAFE_S + SPARE_S, 8), (7.9 * SAFE_S, 4), (3.9 * SAFE_S, 2), (1.9 * SAFE_S, 1)):
        made = scheduler(*(job(key, late_s + deadline_s) for key in range(8)))
        assert len(companions(made, now_s=late_s)) == count


def test_what_a_job_requires_beyond_the_step_counts() -> None:
    for deadline_s, batch in ((4 * SAFE_S + SPARE_S, [1, 2]), (3.9 * SAFE_S, [1])):
        assert companions(scheduler(job(1, deadline_s, required=3), job(2))) == batch


def test_what_one_of_the_batch_requires_limits_those_after_it() -> None:
    """Job 2 requires exit 3, so two more stages must fit its deadline after the stage that the batch computes."""
    for stages, further, batch in ((3.9, [], [1]), (4.9, [3, 4], [1, 2]), (6.1, [3, 4], [1, 2, 3, 4])):
        second = job(2, stages * SAFE_S + SPARE_S, required=3)
        made = scheduler(job(1, stages * SAFE_S), second, *(job(key) for key in further))
        assert companions(made) == batch


def test_what_was_computed_of_the_stage_counts() -> None:
    first = job(1, 2 * SAFE_S + SPARE_S)
    second = job(2)
    made = scheduler(first, second)
    for each in (first, second):
        made.ran(each, STEP_S, 0.0)
    assert companions(made, now_s=2 * STEP_S - 1e-9) == [1, 2]
    assert companions(made, now_s=2 * STEP_S + 2e-6) == [1]


def test_a_batch_overtakes_nobody_who_would_become_late() -> None:
    """Without a batch, job 2, of another model, would be computed second."""
    for stages, batch in ((2, [1]), (3, [1, 3]), (4, [1, 3]), (5, [1, 3, 4, 5])):
        deadline_s = stages * SAFE_S + SPARE_S
        other = job(2, deadline_s, model="other")
        made = scheduler(job(1, deadline_s - 1e-7), other, *(job(key, 80.0) for key in (3, 4, 5)))
        assert companions(made) == batch


def test_all_that_a_batch_overtakes_counts() -> None:
    others = [job(key, 4 * SAFE_S + SPARE_S, model="other") for key in (2, 3)]
    made = scheduler(job(1, 4 * SAFE_S), *others, job(5, 80.0))
    assert companions(made) == [1, 5]
    made.add(job(4, 4 * SAFE_S + SPARE_S, model="other"))
    assert companions(made) == [1]


def test_who_is_late_anyway_may_be_overtaken() -> None:
    late = job(2, 4 * SAFE_S + SPARE_S)
    late.shape = (640, 96)  # takes ten times as long
    assert companions(scheduler(job(1, 4 * SAFE_S), late, job(3, 80.0))) == [1, 3]


def test_in_slack_a_batch_is_of_the_highest_priority() -> None:
    made = scheduler(*(job(key, 60.0 + key) for key in (1, 2)), *(job(key, 50.0, priority=0) for key in (3, 4)))
    device = Device(made).steps(8)
    assert companions(made, now_s=device.now_s) == [1, 2]


def test_in_slack_a_client_that_had_much_takes_no_part() -> None:
    many = [job(key, 4.0, client="many") for key in range(6)]
    made = scheduler(*many, job(6, 4.0, client="one"), job(7, 4.0, client="two"))
    device = Device(made).steps(16)
    assert companions(made, now_s=device.now_s) == [6, 7]


def test_in_slack_a_stage_that_was_begun_goes_on_with_those_that_have_begun_it() -> None:
    made = scheduler(*(job(key, 60.0 + key) for key in range(4)))
    device = Device(made).steps(8)
    for key in (2, 3):
        made.ran(made._jobs[key], STEP_S, device.now_s)
    assert companions(made, now_s=device.now_s) == [2, 3]


def test_in_slack_a_next_exit_is_not_given_up_for_another_job() -> None:
    for deadline_s, batch in ((2 * SAFE_S + SPARE_S, [1, 2]), (1.9 * SAFE_S, [1])):
        jobs = job(1, 9.0), job(2, 9.0)
        made = scheduler(*jobs)
        device = Device(made).steps(4)
        for each in jobs:
            made.move_deadline(each.spec.key, device.now_s + deadline_s)
        assert companions(made, now_s=device.now_s) == batch
