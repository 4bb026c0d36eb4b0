"""A model whose steps a test releases one by one."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import live
import numpy as np
import tiny
import torch
from numpy.typing import NDArray

from models.anytime import Exit, ExitMap, MapMemory, Step
from models.imaging.geometry import Frame


@dataclass(frozen=True)
class FakeStep(Step):
    name: str = "fake"


STEPS = tuple(FakeStep(exit=number // 2 if number % 2 == 0 else None) for number in range(1, 9))


@dataclass
class FakeState:
    image: NDArray[np.uint8]
    next_step: int = 0
    slices: int = 0
    exit: Exit | None = None
    frame: Frame = field(default_factory=lambda: Frame(3, 4))
    shape: tuple[int, int] = (64, 96)

    def latest(self) -> Exit:
        assert self.exit is not None
        return self.exit


@dataclass
class FakeModel:
    """A model with two steps for each exit. The map of exit k is the image's red channel + k.

    `slices`: the slices that each step takes. `clock_s`: a clock that every slice moves by `seconds` of so many images,
    and every piece of a rendering by `piece_s`. `advanced`, `batches`: the red channels of what has advanced, one by
    one and call by call. `unlucky`: a red channel with which no step runs.
    """

    config: Any = tiny.SEGMENTATION
    executor: str = "fake"
    device: str = "cpu"
    precision: str = "fp32"
    steps: tuple[Step, ...] = STEPS
    released: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    advanced: list[int] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    unlucky: int = -1
    final_exit: int = 0
    """The exit after which no other differs; 0 for none."""
    slices: int = 1
    clock_s: float = 0.0
    seconds: Callable[[int], float] = lambda images: 0.01
    piece_s: float = 0.01

    def begin(self, image: NDArray[np.uint8], box: object = None) -> FakeState:
        if (image == 13).all():
            raise ValueError("an unlucky image")
        return FakeState(image.copy())

    def advance(self, states: Sequence[FakeState], slice_s: float | None = None) -> bool:
        assert self.released.acquire(timeout=live.PATIENCE_S)
        assert len({(state.next_step, state.slices, state.shape) for state in states}) == 1
        values = [int(state.image[0, 0, 0]) for state in states]
        if self.unlucky in values:
            raise ValueError("an unlucky step")
        self.advanced += values
        self.batches.append(values)
        self.clock_s += self.seconds(len(states))
        for state in states:
            self._advance(state)
        return states[0].slices == 0

    def _advance(self, state: FakeState) -> None:
        state.slices = (state.slices + 1) % self.slices
        if state.slices:
            return
        index = self.steps[state.next_step].exit
        state.next_step += 1
        if index is not None:
            sure = 0.4 + 0.1 * index  # the larger of two probabilities, everywhere
            scores = torch.tensor([sure, 1 - sure]).log().view(2, 1, 1)
            state.exit = SimpleNamespace(
                index=index,
                active_share=1 / index,
                macs=10 * index,
                scores=scores,
                changed=True,
                final=index == self.final_exit,
            )  # type: ignore[assignment]

    def render(self, state: FakeState, extra: str | None = None) -> ExitMap:
        found = state.latest()
        array = state.image[..., 0] + np.uint8(found.index)
        return ExitMap(found.index, array, found.active_share, np.full_like(array, 7) if extra else None)

    def rendering(
        self, state: FakeState, extra: str | None = None, out: MapMemory | None = None
    ) -> Iterator[ExitMap | None]:
        found = self.render(state, extra)
        for _ in range(2):
            self.clock_s += self.piece_s
            yield None
        if out is not None:
            np.copyto(out[0], found.array)
            if out[1] is not None and found.extra is not None:
                np.copyto(out[1], found.extra)
        yield found
