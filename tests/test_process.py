"""The worker's loop, with a model whose steps the tests release one by one."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

import live
import numpy as np
import pytest
import torch
from fake_model import FakeModel, FakeState
from numpy.typing import NDArray
from test_scheduler import Busy

from models.quality import Quality
from server.engine.messages import (
    Beat,
    Broken,
    Cancel,
    Ended,
    Event,
    Exited,
    JobSpec,
    MoveDeadline,
    Ping,
    Stop,
    TrafficCap,
)
from server.engine.shared_memory import Layout
from server.scheduling.costs import CostModel
from server.scheduling.scheduler import SLICE_S, Scheduler
from server.worker.loading import Loaded
from server.worker.process import Worker


@dataclass
class Harness:
    """The front end's side of a worker that runs in a thread."""

    connection: Any
    block: bytearray
    model: FakeModel

    def submit(self, key: int, value: int, deadline_s: float = 1e12, **fields: Any) -> JobSpec:
        layout = Layout(3, 4, 4, extra="extra" in fields)
        spec = JobSpec(key, "fake", key * 1024, layout, 0.0, deadline_s, 0.0, fields.pop("max_exit", 4), **fields)
        layout.image(memoryview(self.block)[spec.offset :])[:] = value
        self.connection.send(spec)
        return spec

    def labels(self, spec: JobSpec, exit_index: int) -> NDArray[np.uint8]:
        return spec.layout.labels(memoryview(self.block)[spec.offset :], exit_index)

    def step(self, count: int = 1) -> None:
        self.model.released.release(count)

    def hear(self) -> Event:
        assert self.connection.poll(live.PATIENCE_S), "the worker said nothing"
        event: Event = self.connection.recv()
        return event

    def hear_until_end(self) -> list[Event]:
        events = [self.hear()]
        while not isinstance(events[-1], Ended):
            events.append(self.hear())
        return events


QUALITY = Quality(((0.1, 0.45),), 100, "val", "")
"""A quality of 0.1 or more stops at exit 2, whose uncertainty is 0.4."""


@pytest.fixture
def harness() -> Iterator[Harness]:
    ours, theirs = Pipe()
    block, model = bytearray(16 * 1024), FakeModel()
    worker = Worker(theirs, memoryview(block), {"fake": Loaded(model, QUALITY)}, Busy(CostModel()))  # type: ignore[arg-type]

    def run() -> None:
        with pytest.raises((EOFError, OSError)):
            worker.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield Harness(ours, block, model)
    ours.close()
    model.released.release(100)
    thread.join(live.PATIENCE_S)
    assert not thread.is_alive()
    theirs.close()


def test_a_job_from_the_first_step_to_the_end(harness: Harness) -> None:
    spec = harness.submit(1, 50, extra="unsure")
    harness.step(8)
    events = harness.hear_until_end()
    assert [event.exit for event in events[:-1] if isinstance(event, Exited)] == [1, 2, 3, 4]
    assert events[-1] == Ended(1, Stop.COMPLETE)
    first = events[0]
    assert isinstance(first, Exited) and (first.active_share, first.macs) == (1.0, 10)
    assert first.stage_s >= 0 and first.started_s <= first.finished_s
    for exit_index in range(1, 5):
        assert (harness.labels(spec, exit_index) == 50 + exit_index).all()
        assert (spec.layout.extra_map(memoryview(harness.block)[1024:], exit_index) == 7).all()


def test_a_final_exit_completes_a_job(harness: Harness) -> None:
    harness.model.final_exit = 2
    harness.submit(1, 50)
    harness.step(4)
    *exits, end = harness.hear_until_end()
    assert [(event.exit, event.final) for event in exits if isinstance(event, Exited)] == [(1, False), (2, True)]
    assert end == Ended(1, Stop.COMPLETE)


def test_after_a_cancel_at_most_one_step_runs(harness: Harness) -> None:
    harness.submit(1, 50)
    harness.step(2)
    assert isinstance(harness.hear(), Exited)  # the third step has begun, or is about to
    harness.connection.send(Cancel(1))
    harness.step()
    ended = harness.hear()
    assert isinstance(ended, Ended) and ended.stop is Stop.CANCELLED
    assert len(harness.model.advanced) <= 3
    assert (ended.stage_s > 0) == (len(harness.model.advanced) == 3), "it tells what the stage took that was cut"
    harness.connection.send(Cancel(1))  # nothing to say about a job that has ended


def test_a_newcomers_first_exit_comes_before_others_second(harness: Harness) -> None:
    harness.submit(1, 50)
    harness.step(2)
    assert isinstance(harness.hear(), Exited)
    harness.submit(2, 60)
    harness.step(3)
    event = harness.hear()
    assert isinstance(event, Exited) and (event.key, event.exit) == (2, 1)
    assert harness.model.advanced[-2:] == [60, 60]
    harness.step(20)
    ends = [harness.hear_until_end()[-1], harness.hear_until_end()[-1]]
    assert {end.key for end in ends if isinstance(end, Ended)} == {1, 2}


def test_a_deadline_that_has_passed_ends_a_job_between_steps(harness: Harness) -> None:
    harness.submit(1, 50)
    harness.step(2)
    assert isinstance(harness.hear(), Exited)
    harness.connection.send(MoveDeadline(1, 0.0))
    harness.step()
    ended = harness.hear()
    assert isinstance(ended, Ended) and ended.stop is Stop.DEADLINE
    assert (ended.stage_s > 0) == (len(harness.model.advanced) == 3), "it tells what the stage took that was cut"


def test_a_job_without_any_time_is_not_begun(harness: Harness) -> None:
    harness.submit(1, 50, deadline_s=0.0)
    assert harness.hear() == Ended(1, Stop.NO_EXIT)
    assert harness.model.advanced == []


def test_max_exit_and_quality_end_a_job(harness: Harness) -> None:
    harness.step(20)
    harness.submit(1, 50, max_exit=1)
    assert harness.hear_until_end()[-1] == Ended(1, Stop.MAX_EXIT)
    harness.submit(2, 50, quality=0.1)
    events = harness.hear_until_end()
    assert len(events) == 3 and events[-1] == Ended(2, Stop.QUALITY)
    harness.submit(3, 50, quality=0.09)
    assert harness.hear_until_end()[-1] == Ended(3, Stop.COMPLETE)


def test_an_image_that_the_model_fails_on_does_not_end_the_worker(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.submit(1, 13)
    event = harness.hear()
    assert isinstance(event, Ended) and event.stop is Stop.ERROR and event.error == "ValueError: an unlucky image"
    assert "job 1 of fake failed" in caplog.text
    harness.submit(2, 50)
    harness.step(8)
    assert harness.hear_until_end()[-1] == Ended(2, Stop.COMPLETE)


class ByHand(Harness):
    """A worker without a thread, whose loop the test turns; its clock is the model's."""

    def __init__(
        self,
        model: FakeModel,
        costs: CostModel | None = None,
        max_batch: int = 1,
        kind: Callable[[CostModel], Scheduler] = Busy,
    ) -> None:
        ours, theirs = Pipe()
        super().__init__(ours, bytearray(16 * 1024), model)
        model.released.release(1000)
        self.costs = costs or CostModel()
        self.theirs = theirs
        self.worker = Worker(
            theirs,
            memoryview(self.block),
            {"fake": Loaded(model, max_batch=max_batch)},  # type: ignore[arg-type]
            kind(self.costs),
            clock=lambda: self.model.clock_s,
        )

    def turn(self, count: int = 1) -> list[int]:
        """Turn the loop, and return the exits that the worker has sent. An exit is sent a turn later."""
        for _ in range(count):
            self.worker.turn()
        return [event.exit for event in self.told() if isinstance(event, Exited)]

    def told(self) -> list[Event]:
        """The events that the worker has sent since the last call."""
        events = []
        while self.connection.poll(0):
            events.append(self.connection.recv())
        return events


def test_the_last_exit_and_the_end_of_a_job_are_sent_together() -> None:
    """One write wakes the front end once."""
    by_hand = ByHand(FakeModel())
    by_hand.submit(1, 50, max_exit=1)
    by_hand.worker.turn()
    told = [[type(event) for event in by_hand.told()]]
    for _ in range(20):
        if by_hand.worker.jobs:  # without a job, the worker would wait for one
            by_hand.worker.turn()
            told.append([type(event) for event in by_hand.told()])
    assert told[-1] == [Exited, Ended] and not any(told[:-1])


def test_a_step_pauses_for_a_newcomer_and_goes_on_later() -> None:
    by_hand = ByHand(FakeModel(slices=3))
    by_hand.submit(1, 50)
    by_hand.turn(9)  # two steps of three slices, the rest of the rendering, and a slice of the next step
    by_hand.submit(2, 60, deadline_s=1.0)
    by_hand.turn(9)
    assert by_hand.model.advanced == [50] * 7 + [60] * 6 + [50]
    assert by_hand.worker.jobs[1].scheduled.next_step == 2


def test_a_rendering_pauses_too() -> None:
    """A slice of the second step and a piece of the rendering fill the first slice of 10 ms, a piece each other one."""
    by_hand = ByHand(FakeModel())
    spec = by_hand.submit(1, 50)
    assert by_hand.turn(2) == []
    by_hand.connection.send(MoveDeadline(1, 1e11))  # heard between the pieces
    assert by_hand.turn(3) == [1] and by_hand.worker.jobs[1].scheduled.compute_deadline_s == 1e11
    assert (by_hand.labels(spec, 1) == 51).all()
    assert by_hand.costs.typical_s("fake", (32, 32), 1) == pytest.approx(0.04)  # the rendering included


def test_a_cancel_between_two_pieces_leaves_the_map_unfinished() -> None:
    by_hand = ByHand(FakeModel())
    spec = by_hand.submit(1, 50)
    by_hand.turn(2)
    by_hand.connection.send(Cancel(1))
    by_hand.submit(2, 60)
    by_hand.turn()
    assert by_hand.model.advanced == [50, 50, 60]
    assert (by_hand.labels(spec, 1) == 0).all()


def test_slices_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand, given_s = ByHand(FakeModel()), []
    advance = by_hand.model.advance

    def noted(states: Sequence[FakeState], slice_s: float | None = None) -> bool:
        given_s.append(slice_s)
        return advance(states, slice_s)

    monkeypatch.setattr(by_hand.model, "advance", noted)
    by_hand.submit(1, 50, deadline_s=0.016)
    by_hand.turn(2)
    assert given_s == pytest.approx([SLICE_S, 0.006])


def test_a_stage_that_is_given_up_is_learnt_from() -> None:
    """The stage was cut after more time than such stages were known to take."""
    costs = CostModel()
    costs.observe("fake", (32, 32), 1, 1e-9)
    by_hand = ByHand(FakeModel(), costs)
    for key in (1, 2):
        by_hand.submit(key, 50)
        by_hand.turn()
        by_hand.connection.send(Cancel(key))
    by_hand.submit(3, 50)
    by_hand.turn()
    assert costs.typical_s("fake", (32, 32), 1) > 1e-9


@pytest.mark.parametrize(
    ("said", "told"),
    [("CUDA error: misaligned address\nand more", "CUDA error: misaligned address"), ("", "no reason was given")],
)
def test_a_device_that_fails_ends_the_worker(said: str, told: str) -> None:
    """Further jobs would fail as well; the front end starts another worker, with the reference executor."""
    ours, theirs = Pipe()
    model = FakeModel()

    def broken(states: Sequence[FakeState], slice_s: float) -> None:
        raise torch.AcceleratorError(said)

    model.advance = broken  # type: ignore[method-assign]
    block = bytearray(16 * 1024)
    worker = Worker(theirs, memoryview(block), {"fake": Loaded(model)}, Busy(CostModel()))  # type: ignore[arg-type]
    Harness(ours, block, model).submit(1, 50)
    with pytest.raises(torch.AcceleratorError):
        worker.run()
    assert ours.recv() == Broken(told)
    ours.close()
    theirs.close()


def test_the_traffic_ends_jobs_and_a_ping_is_answered() -> None:
    by_hand = ByHand(FakeModel())
    for cap, stop in ((1, Stop.MAX_EXIT), (None, Stop.COMPLETE)):
        by_hand.connection.send(TrafficCap(cap))
        by_hand.connection.send(Ping())
        by_hand.submit(1, 50)
        by_hand.worker.turn()
        while by_hand.worker.jobs:
            by_hand.worker.turn()
        told = by_hand.told()
        assert told[0] == Beat()
        assert told[-1] == Ended(1, stop) and len(told) == (3 if cap else 6)
