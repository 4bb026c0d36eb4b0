"""The worker's loop with batches. The model's clock: two images together take 15 ms a slice, one alone takes 10 ms."""

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import tiny
import torch
from fake_model import FakeModel, FakeState
from test_process import ByHand
from test_scheduler import Busy

from server.engine.messages import Broken, Cancel, Ended, Exited, MoveDeadline, Stop
from server.scheduling.costs import CostModel
from server.scheduling.scheduler import SLICE_S, Scheduler
from server.worker.loading import Loaded

CONFIG = replace(tiny.SEGMENTATION, size=(32, 32))
SHAPE = (32, 32)


def seconds(images: int) -> float:
    return 0.005 + 0.005 * images


class InBatches(ByHand):
    """A worker whose model pays in batches."""

    def __init__(self, max_batch: int = 8, *, slices: int = 1, kind: Callable[[CostModel], Scheduler] = Busy) -> None:
        super().__init__(FakeModel(config=CONFIG, slices=slices, seconds=seconds), max_batch=max_batch, kind=kind)

    def exits(self, count: int) -> list[Exited]:
        """Turn until so many exits are told."""
        told: list[Exited] = []
        for _ in range(1000):
            self.worker.turn()
            told += [event for event in self.told() if isinstance(event, Exited)]
            if len(told) >= count:
                return told
        raise AssertionError(told)

    def finish(self) -> list[Exited | Ended]:
        """Turn until there is no job any more."""
        self.worker.turn()
        turns = 1000
        while self.worker.jobs and (turns := turns - 1):
            self.worker.turn()
        assert turns, "it goes on without end"
        return [event for event in self.told() if isinstance(event, Exited | Ended)]


@pytest.mark.parametrize("kind", [Busy, Scheduler])
def test_jobs_that_wait_take_every_step_together(kind: Callable[[CostModel], Scheduler]) -> None:
    """Also under a light load: the map of the second one does not wait for further stages of the first one."""
    by_hand = InBatches(kind=kind)
    specs = [by_hand.submit(key, 10 * key, extra="unsure") for key in (1, 2)]
    told = by_hand.finish()
    assert by_hand.model.batches == [[10, 20]] * 8
    assert [(event.key, event.exit) for event in told if isinstance(event, Exited)] == [
        (key, index) for index in range(1, 5) for key in (1, 2)
    ]
    assert {(event.key, event.stop) for event in told if isinstance(event, Ended)} == {
        (key, Stop.COMPLETE) for key in (1, 2)
    }
    for spec, value in zip(specs, (10, 20), strict=True):
        for exit_index in range(1, 5):
            assert (by_hand.labels(spec, exit_index) == value + exit_index).all()


@pytest.mark.parametrize(("batch", "first"), [(1, [10]), (2, [10, 20]), (4, [10, 20, 30, 40])])
def test_a_batch_is_as_large_as_the_model_pays_in(batch: int, first: list[int]) -> None:
    by_hand = InBatches(batch)
    for key in range(1, 6):
        by_hand.submit(key, 10 * key)
    by_hand.turn()
    assert by_hand.model.batches == [first]


def test_batches_are_formed_at_the_size_at_which_they_were_measured() -> None:
    by_hand = InBatches()
    by_hand.model.config = tiny.SEGMENTATION
    for key in (1, 2):
        by_hand.submit(key, 10 * key)
    by_hand.turn()
    assert by_hand.model.batches == [[10]]
    assert Loaded(by_hand.model, max_batch=4).max_batch_at(tiny.SEGMENTATION.size) == 4  # type: ignore[arg-type]


def test_each_job_is_charged_an_equal_part_and_its_own_map() -> None:
    by_hand = InBatches()
    for key in (1, 2):
        by_hand.submit(key, 10 * key)
    by_hand.turn(2)
    jobs = [by_hand.worker.jobs[key].scheduled for key in (1, 2)]
    # two steps of 15 ms; then one piece of the first map, with which the slice is over
    assert [job.used_s for job in jobs] == pytest.approx([0.025, 0.015])
    told = by_hand.exits(2)
    assert [event.stage_s for event in told] == pytest.approx([0.035, 0.035])
    assert [event.batch_left for event in told] == [1, 0]
    assert [event.started_s for event in told] == [0.0, 0.0]
    assert [event.finished_s for event in told] == pytest.approx([0.05, 0.07])
    assert by_hand.costs.typical_s("fake", SHAPE, 1) == pytest.approx(0.035)


def test_a_map_is_sent_before_the_next_one_of_its_batch_is_rendered() -> None:
    by_hand = InBatches()
    by_hand.model.seconds, by_hand.model.piece_s = (lambda images: 0.001), 0.001
    for key in (1, 2, 3, 4):
        by_hand.submit(key, 10 * key)
    assert by_hand.turn(1) == []
    by_hand.worker.turn()  # the second step and all maps fit one slice
    assert [event.key for event in by_hand.told() if isinstance(event, Exited)] == [1, 2, 3]
    by_hand.worker.turn()
    assert [event.key for event in by_hand.told() if isinstance(event, Exited)] == [4]


def test_a_newcomer_comes_between_the_maps_of_a_batch() -> None:
    by_hand = InBatches()
    for key in (1, 2):
        by_hand.submit(key, 10 * key)
    by_hand.turn(2)
    by_hand.submit(3, 30, deadline_s=1.0)
    by_hand.turn()
    assert by_hand.model.batches == [[10, 20]] * 2 + [[30]]


def test_a_map_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    by_hand = InBatches()
    for key in (1, 2, 3, 4):
        by_hand.submit(key, 10 * key)
    by_hand.turn(2)
    by_hand.connection.send(Cancel(3))
    told = by_hand.exits(3)
    assert [(event.key, event.exit, event.batch_left) for event in told] == [(1, 1, 2), (2, 1, 1), (4, 1, 0)]


def test_a_batch_that_pauses_goes_on_as_it_is() -> None:
    """Newcomers of the same step do not join it, though they wait."""
    by_hand = InBatches(slices=3)
    for key in (1, 2):
        by_hand.submit(key, 10 * key)
    by_hand.turn()
    by_hand.submit(3, 30)
    by_hand.turn(3)
    assert by_hand.model.batches == [[10, 20]] * 4  # three slices of a step, and one of the next step


def test_of_a_batch_that_pauses_those_go_on_that_are_left() -> None:
    by_hand = InBatches(slices=3)
    for key in (1, 2, 3, 4):
        by_hand.submit(key, 10 * key)
    by_hand.turn()
    by_hand.connection.send(Cancel(2))
    by_hand.connection.send(MoveDeadline(4, 1.0))  # it comes first now, and takes the others with it
    by_hand.turn()
    assert by_hand.model.batches == [[10, 20, 30, 40], [10, 30, 40]]
    assert [by_hand.worker.jobs[key].scheduled.used_s for key in (1, 3, 4)] == pytest.approx(
        [seconds(4) / 4 + seconds(3) / 3] * 3
    )


def test_a_slice_of_a_batch_ends_at_the_deadline_that_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand, given_s = InBatches(slices=3), []
    advance = by_hand.model.advance

    def noted(states: Sequence[FakeState], slice_s: float | None = None) -> bool:
        given_s.append(slice_s)
        return advance(states, slice_s)

    monkeypatch.setattr(by_hand.model, "advance", noted)
    for key, deadline_s in ((1, 1.0), (2, 2.0)):
        by_hand.submit(key, 10 * key, deadline_s=deadline_s)
    by_hand.turn()
    by_hand.connection.send(MoveDeadline(2, 0.021))
    by_hand.connection.send(MoveDeadline(1, 0.5))
    by_hand.turn()
    assert given_s == pytest.approx([SLICE_S, 0.006]) and by_hand.model.batches == [[10, 20]] * 2


@pytest.mark.parametrize(("value", "unlucky", "error"), [(13, -1, "an unlucky image"), (20, 20, "an unlucky step")])
def test_of_a_batch_that_fails_the_job_ends_that_fails_alone(
    value: int, unlucky: int, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    by_hand = InBatches()
    by_hand.model.unlucky = unlucky
    for key, red in ((1, 10), (2, value), (3, 30), (4, 40)):
        by_hand.submit(key, red)
    by_hand.turn()
    assert by_hand.model.batches == [] and len(by_hand.worker.jobs) == 4
    assert f"4 jobs of fake failed together, and go on one by one: ValueError: {error}" in caplog.text
    told = by_hand.finish()
    assert by_hand.model.batches[:6] == [[10], [10], [30], [30], [40], [40]]
    assert by_hand.model.batches[6] == [10, 30], "the next stage is computed together again"
    assert [event.key for event in told if isinstance(event, Ended) and event.stop is Stop.COMPLETE] == [1, 3, 4]
    assert [(event.key, event.error) for event in told if isinstance(event, Ended) and event.error] == [
        (2, f"ValueError: {error}")
    ]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_batch_that_lacks_memory_is_not_formed_again(error: type[Exception]) -> None:
    by_hand = InBatches()

    def lacking(images: int) -> float:
        if images > 2:
            raise error("no memory")
        return seconds(images)

    by_hand.model.seconds = lacking
    for key in range(1, 5):
        by_hand.submit(key, 10 * key)
    assert [event.stop for event in by_hand.finish() if isinstance(event, Ended)] == [Stop.COMPLETE] * 4
    by_hand.model.batches.clear()
    for key in range(5, 9):
        by_hand.submit(key, 10 * key)
    by_hand.finish()
    assert {len(batch) for batch in by_hand.model.batches} == {2}


def test_a_map_that_fails_ends_its_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = InBatches()
    for key in (1, 2):
        by_hand.submit(key, 10 * key)
    by_hand.turn()
    render = by_hand.model.render

    def failing(state: FakeState, extra: str | None = None) -> object:
        if state.image[0, 0, 0] == 10:
            raise ValueError("no map")
        return render(state, extra)

    monkeypatch.setattr(by_hand.model, "render", failing)
    told = by_hand.finish()
    assert [(event.key, event.stop) for event in told if isinstance(event, Ended)] == [
        (1, Stop.ERROR),
        (2, Stop.COMPLETE),
    ]
    assert next(event.batch_left for event in told if isinstance(event, Exited)) == 0


def test_a_device_that_fails_with_a_batch_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = InBatches()

    def broken(states: Sequence[FakeState], slice_s: float) -> None:
        raise torch.AcceleratorError("CUDA error: misaligned address\nand more")

    monkeypatch.setattr(by_hand.model, "advance", broken)
    for key in (1, 2):
        by_hand.submit(key, 10 * key)
    with pytest.raises(torch.AcceleratorError):
        by_hand.turn()
    assert by_hand.told() == [Broken("CUDA error: misaligned address")]


def test_what_a_batch_has_is_freed_with_its_jobs() -> None:
    """No cycle keeps a state alive."""
    by_hand = InBatches(slices=3)
    for key in (1, 2):
        by_hand.submit(key, 10 * key)
    by_hand.turn()
    states = [weakref.ref(by_hand.worker.jobs[key].state) for key in (1, 2)]  # type: ignore[arg-type]
    gc.disable()
    try:
        by_hand.connection.send(Cancel(1))
        by_hand.turn()
        assert states[0]() is None and states[1]() is not None
    finally:
        gc.enable()


def test_costs_are_learnt_for_each_image() -> None:
    alone, together = InBatches(1), InBatches()
    for by_hand in (alone, together):
        for key in (1, 2):
            by_hand.submit(key, 10 * key, max_exit=1)
        by_hand.finish()
    assert alone.costs.typical_s("fake", SHAPE, 1) == pytest.approx(0.04)
    assert together.costs.typical_s("fake", SHAPE, 1) == pytest.approx(0.035)
