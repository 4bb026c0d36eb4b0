"""A model whose answers a test gives, so that scores and costs can be worked out by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import Exit, ExitMap, State, Step
from models.imaging.geometry import Box, Frame
from models.imaging.postprocess import keypoints
from models.network.adpc import ExitHead, Stem
from models.network.configs import GIGA, Extra, ModelConfig
from models.quantisation import Precision

STEPS: tuple[Step, ...] = (Stem(), *(ExitHead(index, exit=index) for index in range(1, 5)))


@dataclass
class Given:
    """A model that answers the k-th image with the k-th of `answers`, which holds a label map for each exit, or
    heatmaps for pose. `active`: the active share after each exit. `scale`: pixels of the image for one pixel of the
    network's input. `clock_s`: a clock that every step moves by 0.5 s. Each exit costs as many GMACs as its number.
    """

    config: ModelConfig
    answers: list[list[Any]]
    active: tuple[float, ...] = (0.75, 0.5, 0.25, 0.125)
    executor: str = "given"
    precision: Precision = "fp32"
    device: str = "cpu"
    steps: tuple[Step, ...] = STEPS
    scale: float = 1.0
    clock_s: float = 0.0
    begun: list[tuple[NDArray[np.uint8], Box | None]] = field(default_factory=list)
    states: dict[int, list[Any]] = field(default_factory=dict)

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> State:
        self.begun.append((image, box))
        state = State(Frame(*image.shape[:2], scale=self.scale), (32, 32))
        self.states[id(state)] = self.answers[len(self.begun) - 1]
        return state

    def start(self, inputs: Tensor, frame: Frame) -> State:
        raise AssertionError("states begin with images here; call begin")

    def advance(self, states: Sequence[State], slice_s: float | None = None) -> bool:
        self.clock_s += 0.5
        for state in states:
            index = self.steps[state.next_step].exit
            state.next_step += 1
            if index is not None:
                answer = self.states[id(state)][index - 1]
                scores = torch.as_tensor(answer) if self.config.task == "pose" else torch.zeros(3, 8, 8)
                nowhere = torch.zeros(8, 8, dtype=torch.bool)
                state.exit = Exit(index, scores, nowhere.byte(), nowhere, self.active[index - 1], index * GIGA)
        return True

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        found = state.latest()
        if self.config.task == "pose":
            return ExitMap(found.index, keypoints(found.scores, state.frame), found.active_share)
        return ExitMap(found.index, np.array(self.states[id(state)][found.index - 1], np.uint8), found.active_share)


def heatmaps(*peaks: tuple[int, int, int, float]) -> Tensor:
    """(16, 8, 8), zero but for (joint, x, y, height)."""
    maps = torch.zeros(16, 8, 8)
    for joint, x, y, height in peaks:
        maps[joint, y, x] = height
    return maps
