"""Admission by the backlog, by hand. test_backlog_loop.py has it in the loop with a scheduler."""

import pytest

from server.scheduling.backlog import Backlog
from server.scheduling.costs import CostModel
from server.scheduling.expected import Expected
from server.scheduling.pace import Pace
from server.scheduling.quantile import Quantile
from server.scheduling.reservation import TrunkReservation
from server.scheduling.scheduler import SLICE_S

SHAPE = (64, 96)
STAGE_S = 0.02
SAFE_S = Pace.FIRST * STAGE_S
SPARE_S = Pace().noise_s(0.0)


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promises teach nothing, so that predictions can be told beforehand."""
    monkeypatch.setattr(Pace, "STEP", 0.0)


def known_costs(stage_s: float = STAGE_S) -> CostModel:
    """Every stage takes `stage_s`, so reliably that the safe estimate is the least one: 5 % and 3 ms more."""
    costs = CostModel()
    for exit_index in [*9 * [1, 2, 3, 4], *Quantile(CostModel.SAFE_SHARE).run * [5]]:  # the margin is that of the model
        costs.observe("model", SHAPE, exit_index, stage_s)
    return costs


def expected(
    left_s: float, required: int = 1, client: str = "", prepare_s: float = 0.0, delays_s: float = 0.0
) -> Expected:
    return Expected("model", SHAPE, required, left_s, client=client, prepare_s=prepare_s, delays_s=delays_s)


def owing(*requests: Expected, now_s: float = 0.0) -> Backlog:
    """A backlog of admitted requests, whose images are with the worker."""
    backlog = Backlog(known_costs())
    for key, each in enumerate(requests):
        backlog.add(key, each, now_s)
        backlog.update(key, each, now_s)
    return backlog


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


def test_what_is_long_overdue_takes_no_time() -> None:
    late, now_s = owing(expected(0.5)), 10.0
    ready_s = late.ready_s(expected(11.0), now_s)
    assert ready_s == pytest.approx(SAFE_S + SPARE_S * 2**0.5)


def test_nothing_known_is_ready_at_once() -> None:
    assert Backlog(CostModel()).ready_s(expected(1.0), 0.0) == pytest.approx(SPARE_S)


def test_what_the_worker_has_done_is_not_owed_any_more() -> None:
    backlog = owing(expected(0.5), expected(0.6, required=2))
    both_s = 4 * SAFE_S + SPARE_S * 2.0
    assert backlog.ready_s(expected(1.0, required=1), 0.0) == pytest.approx(3 * SAFE_S + SPARE_S * 3**0.5)
    assert backlog.ready_s(expected(1.0, required=2), 0.0) == pytest.approx(both_s + SAFE_S + SPARE_S * (5**0.5 - 2.0))
    assert backlog.ready_s(expected(1.0), 0.01) == pytest.approx(3 * SAFE_S - 0.01 + SPARE_S * 3**0.5)
    backlog.reached(0, 1, SAFE_S)  # which is as it was expected
    backlog.reached(7, 1, SAFE_S)
    now_s = SAFE_S
    assert backlog.ready_s(expected(1.0), now_s) == pytest.approx(2 * SAFE_S + SPARE_S * 2**0.5)
    assert backlog.ready_s(expected(1.0), 0.4) == pytest.approx(SAFE_S + SPARE_S * 2**0.5)  # no more than the stage


def test_what_has_ended_is_not_owed_any_more() -> None:
    backlog = owing(expected(0.5), expected(0.6, required=2))
    backlog.reached(0, 1, SAFE_S)
    backlog.reached(1, 1, 2 * SAFE_S)
    backlog.reached(1, 2, 3 * SAFE_S)
    now_s = 3 * SAFE_S
    assert backlog.ready_s(expected(1.0), now_s) == pytest.approx(SLICE_S + SAFE_S + SPARE_S)  # a slice of slack runs
    for key in (0, 1, 2):
        backlog.remove(key, now_s)
        backlog.reached(key, 1, now_s)
        backlog.update(key, expected(9.0), now_s)
    assert len(backlog) == 0 and backlog.ready_s(expected(1.0), now_s) == pytest.approx(SAFE_S + SPARE_S)


def test_stages_are_expected_to_take_what_they_took_from_one_to_the_next() -> None:
    """Here twice as long as they are computed for, with what the device's cores do between. What tells nothing of it: a
    request alone, the time before an image is there, and one that comes while something else is computed."""
    backlog = Backlog(known_costs())
    for number in range(400):
        now_s, keys = 0.3 * number, [3 * number] if number < 100 else [3 * number, 3 * number + 1, 3 * number + 2]
        if number == 100:
            assert backlog.ready_s(expected(9999.0), now_s) == pytest.approx(SAFE_S + SPARE_S)
        for key in keys:
            backlog.add(key, expected(now_s + 1.0 + key % 3), now_s)
        now_s += 0.1
        for key in keys:
            backlog.update(key, expected(now_s + 1.0 + key % 3), now_s)
        now_s += 2 * STAGE_S
        for key in keys:
            now_s += 2 * STAGE_S
            backlog.reached(key, 1, now_s)
            backlog.remove(key, now_s)
    assert backlog.ready_s(expected(9999.0), now_s) > SAFE_S + SPARE_S + 0.2 * STAGE_S


def under_load(batch: int, *, cancelled: bool = False, disturbed: bool = False) -> Backlog:
    """A backlog that always holds work, after 800 stages that took their typical time. The worker computed them in
    batches of `batch`, and reported all exits of a batch when the whole batch was computed. `cancelled`: the last
    request of each batch ended before its exit was reported. `disturbed`: a more urgent request came after each batch
    had begun."""
    backlog, now_s = owing(*[expected(9999.0)] * (batch + 3)), 0.0
    for first in range(0, 800, batch):
        for key in range(first + batch + 3, first + 2 * batch + 3):
            backlog.add(key, expected(9999.0 + key), now_s)
            backlog.update(key, expected(9999.0 + key), now_s)
        if disturbed:
            backlog.add(-1, expected(1.0), now_s)
            backlog.update(-1, expected(1.0), now_s + STAGE_S)
            backlog.remove(-1, now_s + STAGE_S)
        now_s += batch * STAGE_S
        for key in range(first, first + batch):
            if cancelled and key == first + batch - 1:
                backlog.remove(key, now_s)
            backlog.reached(key, 1, now_s, batch_left=first + batch - 1 - key)
            backlog.remove(key, now_s)
    return backlog


LOADED_S = 800 * STAGE_S
"""When `under_load` ends."""


@pytest.mark.parametrize("batch", [2, 4, 8])
def test_exits_of_one_batch_share_its_time(batch: int) -> None:
    """Each exit counts with an equal part of the time between two batches."""
    alone, together = under_load(1)._pace, under_load(batch)._pace
    assert together.factor(LOADED_S) == pytest.approx(alone.factor(LOADED_S), abs=0.02)
    assert together.noise_s(LOADED_S) == pytest.approx(alone.noise_s(LOADED_S))


def test_a_batch_counts_when_its_last_request_has_ended_meanwhile() -> None:
    assert under_load(2, cancelled=True)._pace.factor(LOADED_S) == pytest.approx(2.0, abs=0.2)


def test_of_a_batch_that_was_disturbed_nothing_is_learnt() -> None:
    """The backlog notices the disturbance at the first request of the batch only."""
    assert under_load(4, disturbed=True)._pace.factor(LOADED_S) == pytest.approx(Pace.FIRST)


@pytest.mark.parametrize("required", [1, 4])
def test_of_a_stage_that_waited_for_the_further_exits_of_others_nothing_is_learnt(required: int) -> None:
    """While the load is light, the scheduler may let a first exit wait for them. Nor does their time count as done."""
    backlog = owing(expected(9.0, required), *[expected(9.0 + key) for key in (1, 2, 3)])
    backlog.reached(0, 1, STAGE_S)
    for exit_index in (2, 3, 4):
        now_s = (exit_index + 0.5) * STAGE_S
        backlog.reached(0, exit_index, now_s)
        if required == 1:
            assert backlog.ready_s(expected(99.0), now_s) == pytest.approx(4 * SAFE_S + 2 * SPARE_S)
    backlog.remove(0, 4.5 * STAGE_S)
    backlog.reached(1, 1, 5.5 * STAGE_S)
    assert backlog._pace.factor(5.5 * STAGE_S) == pytest.approx(Pace.FIRST)
    backlog.reached(2, 1, 8.5 * STAGE_S)  # nothing came between
    assert backlog._pace.factor(8.5 * STAGE_S) > Pace.FIRST + 0.1


def test_a_batch_that_leaves_nothing_to_do_was_not_alone() -> None:
    backlog = owing(*[expected(9.0)] * 3)
    backlog.reached(0, 1, STAGE_S)  # which began when nothing was owed, so it tells nothing
    assert backlog._pace.factor(STAGE_S) == pytest.approx(Pace.FIRST)
    for key in (1, 2):
        backlog.reached(key, 1, 9 * STAGE_S, batch_left=2 - key)
    assert backlog._pace.factor(9 * STAGE_S) > Pace.FIRST + 0.1


def test_an_image_that_is_larger_than_expected_counts_as_what_it_is() -> None:
    backlog = owing(expected(0.5))
    backlog.update(0, Expected("model", (128, 96), 1, 0.5), 0.0)
    assert backlog.ready_s(expected(1.0), 0.0) == pytest.approx(3 * SAFE_S + SPARE_S * 2**0.5)
    backlog.move_deadline(0, 1.5, 0.0)
    assert backlog.ready_s(expected(1.0), 0.0) == pytest.approx(SLICE_S + SAFE_S + SPARE_S)


def test_images_that_are_still_to_be_decoded_come_before() -> None:
    """Those of all admitted requests; but they delay the work by no more than it takes itself."""
    backlog = owing(expected(0.5))
    asked = expected(0.6)
    alone_s = backlog.ready_s(asked, 0.0)
    for key in (1, 2, 3):
        backlog.add(key, expected(0.9, prepare_s=0.01, delays_s=0.005), 0.0)
    assert backlog.ready_s(asked, 0.0) == pytest.approx(alone_s + 0.015)
    backlog.update(3, expected(0.9), 0.0)
    assert backlog.ready_s(asked, 0.0) == pytest.approx(alone_s + 0.01)
    backlog.add(4, expected(0.9, delays_s=9.0), 0.0)
    assert backlog.ready_s(asked, 0.0) == pytest.approx(alone_s + 2 * SAFE_S)
    assert backlog.refusal(expected(0.6, client="other"), 0.0) is None
    backlog.move_deadline(1, 3.6 * SAFE_S, 0.0)
    found = backlog.refusal(expected(3.5 * SAFE_S), 0.0)
    assert found is not None and found.needs_s < found.left_s, "with images before it, request 1 would be late"


def test_images_of_other_workers_come_before_too() -> None:
    """All images are decoded on the same cores, whichever worker their requests wait for."""
    preparing_s: dict[int, float] = {}
    backlog, other = (Backlog(known_costs(), preparing_s=preparing_s) for _ in range(2))
    alone_s = backlog.ready_s(expected(0.6), 0.0)
    for key in (1, 2, 3):
        other.add(key, expected(0.9, delays_s=0.005), 0.0)
    assert backlog.ready_s(expected(0.6), 0.0) == pytest.approx(alone_s + 0.015)
    other.update(1, expected(0.9), 0.0)
    other.remove(2, 0.0)
    assert backlog.ready_s(expected(0.6), 0.0) == pytest.approx(alone_s + 0.005)
    assert Backlog(known_costs()).ready_s(expected(0.6), 0.0) == pytest.approx(alone_s), "another server"


@pytest.mark.parametrize("pace", [0.5, 1.5])
def test_beside_other_required_work_a_worker_is_expected_to_be_no_faster_than_usual(pace: float) -> None:
    """It may have been faster because it had the cores to itself. Work that is not required makes no difference."""
    backlog = Backlog(known_costs())
    for _ in range(CostModel.RECENT):
        backlog.costs.observe("model", SHAPE, 1, pace * STAGE_S)
    slow_down = backlog.costs.slow_down
    assert slow_down == pytest.approx(pace, rel=0.1)
    usual_s = Pace.FIRST * backlog.costs.usual_s("model", SHAPE, 1)[-1]
    assert backlog.ready_s(expected(1.0), 0.0) == pytest.approx(slow_down * usual_s + SPARE_S)
    backlog.add(0, expected(0.5), 0.0)
    assert backlog.ready_s(expected(1.0), 0.0) == pytest.approx(2 * max(1.0, slow_down) * usual_s + SPARE_S * 2**0.5)
    backlog.reached(0, 1, 0.0)
    assert backlog.ready_s(expected(1.0), 0.0) == pytest.approx(slow_down * usual_s + SPARE_S)


def test_a_worker_that_becomes_faster_for_good_is_not_expected_to_be_slower_than_usual() -> None:
    """Stages take half of their usual time, also beside others. The pace is learnt as it is used."""
    backlog = Backlog(known_costs())
    for _ in range(CostModel.RECENT):
        backlog.costs.observe("model", SHAPE, 1, 0.5 * STAGE_S)
    usual_s = backlog.costs.usual_s("model", SHAPE, 1)[-1]
    for key in range(200):
        backlog.add(key, expected(10.0), 0.0)
        backlog.update(key, expected(10.0), 0.0)
    for key in range(199):
        backlog.reached(key, 1, (key + 1) * 0.5 * usual_s)
    now_s = 199 * 0.5 * usual_s
    noise_s = backlog._pace.noise_s(now_s) * 2**0.5
    assert backlog.ready_s(expected(11.0), now_s) - noise_s == pytest.approx(2 * 0.5 * usual_s, rel=0.2)


def test_a_deadline_that_moves_says_nothing_of_the_image() -> None:
    """While the image is on the way, the worker computes nothing for it."""
    backlog = owing()
    backlog.add(0, expected(0.5), 0.0)
    backlog.move_deadline(0, 0.4, 0.0)
    assert backlog.ready_s(expected(1.0), 0.01) == pytest.approx(2 * SAFE_S + SPARE_S * 2**0.5)
    backlog.move_deadline(0, 2.0, 0.01)
    assert backlog.ready_s(expected(1.0), 0.01) == pytest.approx(SAFE_S + SPARE_S)  # before it


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
    backlog = owing(*[expected(4.8 * STAGE_S)] * 3)
    found = backlog.refusal(expected(2.3 * STAGE_S), 0.0)
    assert found is not None and found.wait_s == pytest.approx(3 * SAFE_S)
    assert found.needs_s < found.left_s
    assert backlog.refusal(expected(6.5 * STAGE_S), 0.0) is None  # comes after them


def test_what_is_required_beyond_exit_1_is_protected_too() -> None:
    backlog = owing(expected(6.0 * STAGE_S, required=3))
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
        backlog.ask(expected(now_s + 1.0, client=client), now_s)  # twice what the device can do
        backlog.add(number, expected(now_s + 1.0, client=client), now_s)
        backlog.remove(number, now_s)
    for key in range(4):
        backlog.add(key, expected(1.09 + 0.001 * key, client="little"), 1.0)
    ready_s = 5 * SAFE_S + SPARE_S * 5**0.5
    for client, factor in (("little", 1.0), ("much", 2.0)):
        assert backlog.refusal(expected(1.0 + factor * ready_s + 0.001, client=client), 1.0) is None
        found = backlog.refusal(expected(1.0 + factor * ready_s - 0.001, client=client), 1.0)
        assert found is not None and found.wait_s < 0.002
    later_s = 1.0 + 20 * TrunkReservation.ASKED_HALF_LIFE_S  # nobody asks for too much any more
    backlog.add(9, expected(later_s + 0.04), later_s)
    assert backlog.refusal(expected(later_s + 0.08, client="much"), later_s) is None


def test_a_worker_counts_its_part_of_what_several_workers_are_asked_for() -> None:
    """A client that had all leaves no room as long as two workers can do what it and another one ask for."""
    for workers, taken in ((1, False), (2, True)):
        backlog = Backlog(known_costs())
        for number in range(300):
            now_s, client = 0.015 * (number - 300), "much" if number % 2 else "refused"
            backlog.ask(expected(now_s + 1.0, client=client), now_s, workers)
            if client == "much":
                backlog.add(number, expected(now_s + 1.0, client=client), now_s)
                backlog.remove(number, now_s)
        backlog.add(0, expected(0.05), 0.0)
        backlog.add(1, expected(0.06), 0.0)
        assert (backlog.refusal(expected(0.1, client="much"), 0.0) is None) == taken


def test_what_a_client_withdraws_does_not_count_as_had() -> None:
    """A client that was admitted far more often than another one still leaves no room, since it gave its places up."""
    for gives_up, taken in ((Backlog.remove, False), (Backlog.withdraw, True)):
        backlog = Backlog(known_costs())
        for number in range(300):
            now_s, client = 0.015 * (number - 300), "much" if number % 2 else "little"
            backlog.ask(expected(now_s + 1.0, client=client), now_s)
            backlog.add(number, expected(now_s + 1.0, client=client), now_s)
            if client == "much":
                gives_up(backlog, number, now_s)
            elif number % 10:
                backlog.withdraw(number, now_s)
            else:
                backlog.remove(number, now_s)
        assert len(backlog) == 0
        backlog.withdraw(0, 0.0)  # it has ended
        backlog.add(300, expected(0.05), 0.0)
        backlog.add(301, expected(0.06), 0.0)
        assert (backlog.refusal(expected(0.1, client="much"), 0.0) is None) == taken


def test_places_that_are_given_up_later_leave_the_room_of_a_client_as_it_was() -> None:
    """While demand exceeds capacity, a client gives up every place 0.15 s after it got it."""
    backlog = Backlog(known_costs())
    for number in range(300):
        now_s = 0.015 * (number - 300)
        backlog.ask(expected(now_s + 1.0), now_s)
        backlog.ask(expected(now_s + 1.0, client="other"), now_s)
        backlog.add(number, expected(now_s + 1.0), now_s)
        backlog.withdraw(number - 10, now_s)
    for number in range(290, 300):
        backlog.withdraw(number, 0.0)
    backlog.add(300, expected(0.05), 0.0)
    backlog.add(301, expected(0.06), 0.0)
    assert backlog.refusal(expected(0.3), 0.0) is None


@pytest.mark.parametrize("later_s", [0.01, 1.0, 1e5])
def test_what_is_withdrawn_later_leaves_no_debt(later_s: float) -> None:
    """While demand exceeds capacity, the only request that was admitted gives up its place."""
    backlog = Backlog(known_costs())
    for _ in range(50):
        backlog.ask(expected(1.0), 0.0)
    backlog.add(0, expected(1.0), 0.0)
    backlog.withdraw(0, later_s)
    assert backlog.refusal(expected(later_s + 1.0), later_s) is None


def test_promises_that_are_broken_leave_more_time_to_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise is broken by an exit that comes late and by a request that ends when its exit would have been late. One
    that is cancelled in time tells nothing, and so does one whose image never came or that could not be kept alone."""
    told: list[bool] = []
    monkeypatch.setattr(Pace, "promised", lambda pace, *, kept: told.append(kept))
    backlog = owing(*[expected(0.5)] * 4, expected(0.5, required=2), expected(0.9 * STAGE_S))
    backlog.add(6, expected(0.5), 0.0)
    backlog.reached(0, 1, 0.49)
    backlog.reached(0, 2, 0.6)  # beyond what was promised
    assert told == [True]
    backlog.remove(1, 0.2)
    assert told == [True]
    backlog.remove(2, 0.49)
    backlog.remove(6, 0.49)
    backlog.reached(4, 1, 0.49)
    assert told == [True, False]
    backlog.reached(3, 1, 0.51)
    backlog.reached(4, 2, 0.52)
    backlog.reached(5, 1, 0.53)
    for key in range(6):
        backlog.remove(key, 0.6)
    assert told == [True, False, False, False]


@pytest.mark.parametrize("began_s", [0.0, 0.4])
def test_a_promise_is_broken_if_the_exit_is_not_there_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, began_s: float
) -> None:
    """The worker had begun early enough, so that the exit was expected in time until the deadline had passed."""
    told: list[bool] = []
    monkeypatch.setattr(Pace, "promised", lambda pace, *, kept: told.append(kept))
    backlog = Backlog(known_costs())
    backlog.add(0, expected(0.5), began_s)
    backlog.update(0, expected(0.5), began_s)
    backlog.remove(0, 0.505)
    assert told == [False]


def test_a_deadline_that_the_client_moves_sooner_was_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(Pace, "promised", lambda pace, *, kept: told.append(kept))
    backlog = owing(expected(0.5), expected(0.5))
    backlog.move_deadline(0, 0.001, 0.0)
    backlog.move_deadline(1, 0.9, 0.0)
    for key in (0, 1):
        backlog.reached(key, 1, 0.6)
    assert told == [True]
