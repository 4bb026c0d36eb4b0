"""Work that pauses when its slice is over gives what it gives without pauses, and leaves nothing behind."""

import gc
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from test_sparse import masks, network

from models.anytime import Exit, ExitMap, State
from models.executors.cpu.executor import SparseExecutor
from models.executors.cpu.library import library
from models.imaging.geometry import bands
from models.network.configs import Extra

SIZES = [(60, 90), (96, 64), (33, 120)]


@cache
def executor(name: str) -> SparseExecutor:
    return SparseExecutor(network(name), threads=2)


class Request:
    """A batch of requests with masks of their own, and the exits that they come to."""

    def __init__(self, model: SparseExecutor, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.model = model
        height, width = SIZES[random.integers(len(SIZES))]
        self.shrinking = bool(random.integers(2))
        self.states = [model.begin(tiny.image(height, width, seed=seed + k)) for k in range(1 + seed % 2)]
        rows, columns = (side // 4 for side in self.states[0].shape)
        self.masks = [masks(rows, columns, random, shrinking=self.shrinking) for _ in self.states]
        self.exits: list[Exit] = []

    @property
    def finished(self) -> bool:
        return self.states[0].next_step == len(self.model.steps)

    def advance(self, slice_s: float | None) -> bool:
        step = self.model.steps[self.states[0].next_step]
        complete = self.model.advance(self.states, slice_s)
        if complete and step.exit is not None:
            for state, own in zip(self.states, self.masks, strict=False):  # some may be dropped
                self.exits.append(state.latest())
                if step.exit < 4:
                    self.model.override(state, own[step.exit - 1], shrinking=self.shrinking)
        return complete


def alone(model: SparseExecutor, seed: int) -> list[Exit]:
    request = Request(model, seed)
    while not request.finished:
        assert request.advance(None)
    return request.exits


def assert_equal(found: Sequence[Exit], expected: Sequence[Exit]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.index, one.active_share, one.macs) == (other.index, other.active_share, other.macs)
        for name in ("scores", "decided", "mask"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("name", ["segmentation", "pose", "window 5, D = 1/1/1"])
def test_paused_and_interleaved_requests_give_what_they_give_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, random = executor(name), np.random.default_rng(0)
    expected = [alone(model, seed) for seed in range(3)]
    monkeypatch.setattr("models.imaging.geometry.BAND_PX", 2000)
    requests = [Request(model, seed) for seed in range(3)]
    pauses = 0
    while waiting := [request for request in requests if not request.finished]:
        pauses += not waiting[random.integers(len(waiting))].advance(random.choice([0.0, 1e-5, 1e-4]))
    assert pauses > 20
    for request, given in zip(requests, expected, strict=True):
        assert_equal(request.exits, given)


def test_a_step_that_fits_its_slice_takes_one_call() -> None:
    model = executor("segmentation")
    state = model.begin(tiny.image())
    assert all(model.advance([state], 1e6) for _ in model.steps)


@pytest.fixture
def live_runs(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The native runs that have begun and are not freed."""
    lib, live = library(), set[int]()
    begin, free = lib.program_begin, lib.program_free

    def counted_begin(*arguments: object) -> int:
        live.add(run := begin(*arguments))
        return int(run)

    def counted_free(run: int) -> None:
        live.remove(run)
        free(run)

    monkeypatch.setattr(lib, "program_begin", counted_begin)
    monkeypatch.setattr(lib, "program_free", counted_free)
    return live


def pause(model: SparseExecutor, states: Sequence[State], step: int, live_runs: set[int]) -> None:
    """Advances into `step`, until its native run has begun."""
    for _ in range(step):
        model.advance(states)
    others = len(live_runs)
    while len(live_runs) == others:
        assert not model.advance(states, 0)


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_dropping_a_paused_state_frees_all_that_it_has(step: int, live_runs: set[int]) -> None:
    model = SparseExecutor(network("segmentation"), threads=1)
    allocator = model.network.allocator
    states = [model.begin(tiny.image(96, 96)) for _ in range(2)]
    pause(model, states, step, live_runs)
    gc.disable()  # no cycle keeps anything alive
    try:
        del states[0]
        assert live_runs
        states.clear()
        assert not live_runs
        assert not allocator.live
        assert allocator._workspaces
    finally:
        gc.enable()


def test_a_step_goes_on_for_those_of_its_batch_that_are_left(live_runs: set[int]) -> None:
    model = executor("wide")
    request, expected = Request(model, 1), alone(model, 1)
    first, second = request.states
    pause(model, request.states, 1, live_runs)
    assert model.advance([first])
    assert first.next_step == 2 and second.next_step == 1
    assert model.advance([second], 0)  # its part is complete already
    while not request.finished:
        request.advance(None)
    assert_equal(request.exits, expected)

    request = Request(model, 1)
    pause(model, request.states, 1, live_runs)
    del request.states[1], first, second
    while not request.finished:
        request.advance(0.0)
    assert_equal(request.exits, expected[::2])


def test_states_that_paused_apart_do_not_go_on_together(live_runs: set[int]) -> None:
    model = executor("segmentation")
    first, second = model.begin(tiny.image()), model.begin(tiny.image())
    pause(model, [first], 0, live_runs)
    with pytest.raises(ValueError, match="2 states have paused in 2 batches"):
        model.advance([first, second])
    assert model.advance([first])
    assert model.advance([second])


def test_a_state_stays_as_it_was_until_its_step_is_complete(live_runs: set[int]) -> None:
    model = executor("wide")
    state = model.begin(tiny.image())
    pause(model, [state], 4, live_runs)
    assert model.steps[4].exit == 2
    before = state.latest()
    scores, labels = before.scores.clone(), model.render(state).array
    with pytest.raises(ValueError, match="step 4 is paused and uses the mask already"):
        model.override(state, before.mask)
    pauses = 0
    while not model.advance([state], 0):
        pauses += 1
        assert state.latest() is before and state.next_step == 4
    assert pauses > 3
    assert state.latest().index == 2
    assert torch.equal(before.scores, scores)
    assert not np.array_equal(model.render(state).array, labels)


def test_a_step_that_finds_no_memory_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lib = executor("segmentation"), library()
    request, expected = Request(model, 1), alone(model, 1)
    for name, result in ("program_begin", None), ("geometry_build", -1):
        request.advance(None)
        with monkeypatch.context() as patched:
            patched.setattr(lib, name, lambda *_, result=result: result)
            with pytest.raises(MemoryError, match=r"batch fewer|smaller image"):
                request.advance(None)
    while not request.finished:
        request.advance(0.0)
    assert_equal(request.exits, expected)


@pytest.mark.parametrize("extra", [None, "confidence", "exit", "unsure"])
@pytest.mark.parametrize("name", ["segmentation", "pose"])
def test_a_rendering_in_pieces_is_the_map(name: str, extra: Extra | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = executor(name)
    state = model.begin(tiny.image(70, 101))
    while state.next_step == 0 or model.steps[state.next_step - 1].exit != 2:
        model.advance([state])
    expected = model.render(state, extra)
    monkeypatch.setattr("models.imaging.geometry.BAND_PX", 500)
    array = np.full_like(expected.array, 99)
    further = None if expected.extra is None else np.full_like(expected.extra, 99)
    *pauses, found = model.rendering(state, extra, (array, further))
    assert len(pauses) >= 10 * (name == "segmentation") + 10 * (extra is not None)
    assert not any(pauses)
    assert isinstance(found, ExitMap) and found.array is array and found.extra is further
    np.testing.assert_array_equal(array, expected.array)
    if further is not None and expected.extra is not None:
        rounding = extra == "confidence"  # torch's exp of the first and of the last values of an array may differ
        np.testing.assert_allclose(further, expected.extra, atol=int(rounding))


@pytest.mark.parametrize("lines, line_px", [(1, 1), (7, 100), (10, 3), (3, 1 << 30)])
def test_bands_hold_every_line_once(lines: int, line_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.imaging.geometry.BAND_PX", 200)
    found = list(bands(lines, line_px))
    assert [line for band in found for line in range(lines)[band]] == list(range(lines))
    assert all((band.stop - band.start) * line_px <= 200 or band.stop - band.start == 1 for band in found)
