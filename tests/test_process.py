"""The worker's loop, with a model whose steps the tests release one by one."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import live
import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from models.anytime import Exit, ExitMap, Step
from models.checkpoint import save_directory
from models.executors import build
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import Frame
from models.quality import Quality, fingerprint
from server.engine.messages import Broken, Cancel, Ended, Event, Exited, JobSpec, MoveDeadline, Stop
from server.engine.shared_memory import Layout
from server.requests.budget import Costs
from server.worker.loading import WARM_UP_RUNS, WARM_UP_SHARES, Loaded, facts, input_shape, load_quality, warm_up
from server.worker.process import Worker
from server.worker.scheduler import Scheduler

STEPS = tuple(Step(f"step{number}", number // 2 if number % 2 == 0 else None) for number in range(1, 9))


@dataclass
class FakeState:
    image: NDArray[np.uint8]
    next_step: int = 0
    exit: Exit | None = None
    frame: Frame = field(default_factory=lambda: Frame(3, 4))
    shape: tuple[int, int] = (64, 96)


@dataclass
class FakeModel:
    """Two steps an exit; exit k's map is the image's red channel + k."""

    config: Any = tiny.SEGMENTATION
    executor: str = "fake"
    device: str = "cpu"
    steps: tuple[Step, ...] = STEPS
    released: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    advanced: list[int] = field(default_factory=list)

    def begin(self, image: NDArray[np.uint8], box: object = None) -> FakeState:
        if (image == 13).all():
            raise ValueError("an unlucky image")
        return FakeState(image.copy())

    def advance(self, states: Sequence[FakeState]) -> None:
        assert self.released.acquire(timeout=live.PATIENCE_S)
        (state,) = states
        self.advanced.append(int(state.image[0, 0, 0]))
        index = self.steps[state.next_step].exit
        state.next_step += 1
        if index is not None:
            sure = 0.4 + 0.1 * index  # the larger of two probabilities, everywhere
            scores = torch.tensor([sure, 1 - sure]).log().view(2, 1, 1)
            state.exit = SimpleNamespace(index=index, unsure=1 / index, macs=10 * index, scores=scores)  # type: ignore[assignment]

    def render(self, state: FakeState, extra: str | None = None) -> ExitMap:
        assert state.exit is not None
        array = state.image[..., 0] + np.uint8(state.exit.index)
        return ExitMap(state.exit.index, array, state.exit.unsure, np.full_like(array, 7) if extra else None)


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
"""Good enough from exit 2 on, whose doubt is 0.4, for 0.1 and above."""


@pytest.fixture
def harness() -> Iterator[Harness]:
    ours, theirs = Pipe()
    block, model = bytearray(16 * 1024), FakeModel()
    worker = Worker(theirs, memoryview(block), {"fake": Loaded(model, QUALITY)}, Scheduler(Costs()))  # type: ignore[arg-type]

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
    assert isinstance(first, Exited) and (first.unsure, first.macs) == (1.0, 10)
    assert first.stage_s >= 0 and first.started_s <= first.finished_s
    for exit_index in range(1, 5):
        assert (harness.labels(spec, exit_index) == 50 + exit_index).all()
        assert (spec.layout.extra_map(memoryview(harness.block)[1024:], exit_index) == 7).all()


def test_after_a_cancel_at_most_one_step_runs(harness: Harness) -> None:
    harness.submit(1, 50)
    harness.step(2)
    assert isinstance(harness.hear(), Exited)  # the third step has begun, or is about to
    harness.connection.send(Cancel(1))
    harness.step()
    assert harness.hear() == Ended(1, Stop.CANCELLED)
    assert len(harness.model.advanced) <= 3
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
    assert harness.hear() == Ended(1, Stop.DEADLINE)


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


def test_warming_up_learns_what_exits_cost() -> None:
    model = FakeModel()
    model.released.release(1000)
    costs = Costs()
    warm_up("fake", model, costs, None)  # type: ignore[arg-type]
    told = facts("fake", Loaded(model), costs)  # type: ignore[arg-type]
    assert len(told.seconds) == len(told.macs) == 4 and not told.calibrated
    assert list(told.seconds) == sorted(told.seconds) and list(told.macs) == sorted(told.macs)


def test_warming_up_is_under_masks_such_as_pictures_leave() -> None:
    """Whatever the network makes of the noise that it is shown."""
    model = ReferenceExecutor(tiny.network())
    given: list[float] = []
    model.override = lambda state, positions, shrinking: given.append(  # type: ignore[method-assign]
        float(positions.float().mean()) if shrinking else -1.0
    )
    warm_up("tiny", model, Costs(), None)
    assert given == pytest.approx(WARM_UP_SHARES * WARM_UP_RUNS, abs=0.01)


@pytest.mark.parametrize("executor", ["reference", "sparse", "onnx"])
def test_every_executor_warms_up(executor: str) -> None:
    model, costs = build(tiny.network(), "cpu", executor), Costs()
    warm_up("tiny", model, costs, None)
    seconds = facts("tiny", Loaded(model), costs).seconds
    assert len(seconds) == 4 and list(seconds) == sorted(seconds) and seconds[0] > 0


def test_a_stage_that_is_given_up_is_learnt_from() -> None:
    """One that has computed for longer than stages like it were known to take."""
    ours, theirs = Pipe()
    model, costs, block = FakeModel(), Costs(), bytearray(16 * 1024)
    model.released.release(100)
    costs.observe("fake", (32, 32), 1, 1e-9)
    worker = Worker(theirs, memoryview(block), {"fake": Loaded(model)}, Scheduler(costs))  # type: ignore[arg-type]
    for key in (1, 2):
        Harness(ours, block, model).submit(key, 50)
        worker._obey(theirs.recv())
        worker._step(worker._jobs[key])
        worker._obey(Cancel(key))
    assert costs.typical_s("fake", (32, 32), 1) > 1e-9
    ours.close()
    theirs.close()


def test_a_worker_that_follows_another_takes_over_what_is_known() -> None:
    model = FakeModel()
    model.released.release(8)  # once through is all that it may take
    costs = Costs()
    warm_up("fake", model, costs, (0.1, 0.3, 0.6, 1.0))  # type: ignore[arg-type]
    assert facts("fake", Loaded(model), costs).seconds == pytest.approx((0.1, 0.3, 0.6, 1.0))  # type: ignore[arg-type]


def test_the_cost_of_an_image_goes_by_its_padded_size_or_the_crop() -> None:
    assert input_shape(tiny.SEGMENTATION, 33, 64) == (64, 64)
    assert input_shape(tiny.POSE, 1000, 2000) == (64, 64)


def test_a_calibration_that_does_not_fit_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_directory(tmp_path, tiny.network())
    assert load_quality(tmp_path) is None and not caplog.records
    quality = Quality(((0.1, 0.2),), 30, "val", fingerprint(tmp_path))
    quality.save(tmp_path)
    assert load_quality(tmp_path) == quality
    save_directory(tmp_path, tiny.network(seed=1))
    assert load_quality(tmp_path) is None
    assert "without quality stop" in caplog.text and "python -m models calibrate" in caplog.text


def test_a_device_that_fails_ends_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Its next jobs would fail as well, so the front end starts another, without what broke the device."""
    ours, theirs = Pipe()
    model = FakeModel()

    def broken(states: Sequence[FakeState]) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand more")

    model.advance = broken  # type: ignore[method-assign]
    block = bytearray(16 * 1024)
    worker = Worker(theirs, memoryview(block), {"fake": Loaded(model)}, Scheduler(Costs()))  # type: ignore[arg-type]
    Harness(ours, block, model).submit(1, 50)
    with pytest.raises(torch.AcceleratorError):
        worker.run()
    assert ours.recv() == Broken("CUDA error: an illegal memory access was encountered")
    ours.close()
    theirs.close()
