"""How the largest batch that pays is found, by the fake model's clock."""

import logging
from collections.abc import Callable

import pytest
import tiny
import torch
from fake_model import FakeModel

from models.executors.reference import ReferenceExecutor
from models.executors.selection import build
from server.engine.messages import Event, Loading
from server.scheduling.costs import CostModel, StageCost
from server.worker.batches import LARGEST, LONGEST_S, ROUNDS, RUN_S, measure_batch, prepare_batch
from server.worker.loading import Loaded, facts, warm_up
from server.worker.progress import LoadingProgress

SILENT = LoadingProgress(lambda _: None)


def fake(seconds: Callable[[int], float]) -> FakeModel:
    """A model of two steps to an exit, each of which takes `seconds` of so many images."""
    model = FakeModel(seconds=seconds)
    model.released.release(10_000)
    return model


def measured(model: FakeModel, told: list[Event] | None = None) -> int:
    progress = LoadingProgress(SILENT._send if told is None else told.append)
    return measure_batch("fake", model, progress, clock=lambda: model.clock_s)  # type: ignore[arg-type]


def sizes(model: FakeModel) -> set[int]:
    return {len(batch) for batch in model.batches}


@pytest.mark.parametrize(
    ("each_ms", "batch"),
    [
        ((1.0, 0.91), 1),
        ((1.0, 0.89, 0.81), 2),
        ((1.0, 0.89, 0.79, 0.72), 4),
        ((1.0, 0.5, 0.25, 0.125), 8),
        ((1.0, 2.0, 0.1, 0.1), 1),
    ],
)
def test_a_batch_is_doubled_as_long_as_that_pays(each_ms: tuple[float, ...], batch: int) -> None:
    model = fake(lambda images: images * each_ms[images.bit_length() - 1] / 1000)
    assert measured(model) == batch
    assert max(sizes(model)) == min(2 * batch, LARGEST), "nothing is measured beyond the first that does not pay"


def test_what_pays_is_said_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    measured(fake(lambda images: 0.004 + 0.001 * images if images < 4 else 0.002 * images))
    measured(fake(lambda images: 0.01 * images))
    assert [record.getMessage() for record in caplog.records] == [
        "fake computes up to 4 images together: to exit 1, each takes 10.00 ms in a batch of 1, "
        "6.00 ms in a batch of 2, 4.00 ms in a batch of 4, 4.00 ms in a batch of 8",
        "fake computes one image at a time: to exit 1, each takes 20.00 ms in a batch of 1, 20.00 ms in a batch of 2",
    ]


@pytest.mark.parametrize(("slow", "double_ms", "batch"), [(1, 2.0, 1), (2, 1.4, 2)])
def test_a_hiccup_does_not_count(slow: int, double_ms: float, batch: int) -> None:
    """It would have batches of 2 pay if one image is hit, and keep them from it if the batch is. Each stage is two
    steps; one image is run three times before batches, a batch once before it is compared."""
    calls, hit = 0, {1: 7, 2: 3}[slow]

    def seconds(images: int) -> float:
        nonlocal calls
        calls += images == slow
        usual_ms = {1: 1.0, 2: double_ms, 4: 2 * double_ms}[images]
        return (10 if images == slow and calls == hit else 1) * usual_ms / 1000

    assert measured(fake(seconds)) == batch


def test_a_hiccup_at_the_start_does_not_end_the_search() -> None:
    times = iter([LONGEST_S])
    assert measured(fake(lambda images: next(times, 0.001))) == LARGEST


def test_the_first_run_of_a_batch_does_not_count() -> None:
    """Some executors prepare for a batch when it first runs."""
    seen = set[int]()

    def seconds(images: int) -> float:
        first = images not in seen
        seen.add(images)
        return 5.0 if first and images > 1 else 0.001

    assert measured(fake(seconds)) == LARGEST


def test_what_takes_long_is_not_batched() -> None:
    """The two steps to exit 1 take more than half of the longest time: alone, or in a batch of 4."""
    model = fake(lambda images: 0.26 * LONGEST_S)
    assert measured(model) == 1 and sizes(model) == {1}
    model = fake(lambda images: (0.1 + 0.05 * images) * LONGEST_S)
    assert measured(model) == 4 and sizes(model) == {1, 2, 4}


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_batch_that_lacks_memory_is_not_formed(
    error: type[Exception], step: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In its first run, when it is timed, and when its later exits run."""
    caplog.set_level(logging.INFO)
    runs = {1: 0, 2: 2, 3: 2 + 2 * ROUNDS}[step]
    count = 0

    def seconds(images: int) -> float:
        nonlocal count
        count += images == 4
        if count > runs:
            raise error("no memory")
        return 0.01

    assert measured(fake(seconds)) == 2
    assert caplog.text.rstrip().endswith("; a batch of 4 needs too much memory")


def test_other_errors_are_not_hidden() -> None:
    def seconds(images: int) -> float:
        if images > 1:
            raise ValueError("a fault")
        return 0.01

    with pytest.raises(ValueError, match="a fault"):
        measured(fake(seconds))


def running(doing: str) -> list[str]:
    """What is told while a batch runs to its last exit."""
    return [doing, *(f"{doing}, after exit {exit_index}" for exit_index in range(1, 5))]


def test_every_part_is_told() -> None:
    told: list[Event] = []
    measured(fake(lambda images: 0.001), told)
    doing = ["timing fake alone"]
    for size in (2, 4, 8):
        warming = f"warming up fake in batches of {size}"
        doing += [warming, f"timing fake in batches of {size}", *running(warming)]
    assert told == [Loading(each, RUN_S) for each in doing]


def test_every_exit_of_what_pays_has_run() -> None:
    model = fake(lambda images: 0.001)
    measured(model)
    by_size = {size: sum(len(batch) == size for batch in model.batches) for size in (1, 2, 4, 8)}
    assert by_size == {1: 4 * ROUNDS, **dict.fromkeys((2, 4), 2 + 4 * ROUNDS + 8), 8: 2 + 2 * ROUNDS + 8}


def test_a_worker_that_follows_runs_what_was_measured() -> None:
    model = fake(lambda images: 0.01)
    costs = CostModel()
    costs.restore(StageCost("fake", index, tiny.SEGMENTATION.size, 0.1, 0.0, 1.0) for index in range(1, 5))
    assert warm_up("fake", model, costs, SILENT, 4) == 4  # type: ignore[arg-type]
    assert [len(batch) for batch in model.batches] == [1] * 8 + [2] * 8 + [4] * 8
    assert facts("fake", Loaded(model, max_batch=4), costs, SILENT).max_batch == 4  # type: ignore[arg-type]
    assert warm_up("fake", model, costs, SILENT) == 1  # type: ignore[arg-type]


def test_a_worker_that_follows_forms_no_batch_for_which_there_is_no_memory_now() -> None:
    def seconds(images: int) -> float:
        if images == 4:
            raise MemoryError
        return 0.01

    told: list[Event] = []
    assert prepare_batch("fake", fake(seconds), 8, LoadingProgress(told.append)) == 2  # type: ignore[arg-type]
    doing = [*running("warming up fake in batches of 2"), "warming up fake in batches of 4"]
    assert told == [Loading(each, RUN_S) for each in doing]


def test_the_first_worker_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.worker.loading.measure_batch", lambda name, model, progress: 4)
    model = fake(lambda images: 0.01)
    assert warm_up("fake", model, CostModel(), SILENT, 2) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("executor", ["reference", "sparse", "onnx"])
def test_every_executor_runs_in_batches(executor: str) -> None:
    """Whether they pay is not said here: the clock says that they do."""
    model, times = build(tiny.network(), "cpu", executor), iter(range(1000))
    assert measure_batch("tiny", model, SILENT, clock=lambda: 0.001 * next(times)) == LARGEST
    assert prepare_batch("tiny", ReferenceExecutor(tiny.network(tiny.POSE)), 2, SILENT) == 2
