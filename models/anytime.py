"""The interface between networks and the code that runs them: steps, states, exits and their maps.

A server must notice new requests soon, even while it computes a large image. So three kinds of work can pause: a step
(`AnytimeModel.advance`, by a time), a rendering (`AnytimeModel.rendering`, after each piece), and the reading of an
image, which belongs to the first step (`AnytimeModel.begin` takes no time).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.imaging.geometry import STRIDE, Box, Frame, Size
from models.network.configs import Extra, ModelConfig
from models.quantisation import Precision


@dataclass(frozen=True)
class Step(ABC):
    """A part of the network. Requests are put in order between steps; between the slices of a step, its state is as it
    was before the step. Each kind of network derives its own kinds of steps, which say what they compute by their type
    and fields.

    `exit` is the number of the exit that the step completes (from 1), or None.
    """

    exit: int | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def name(self) -> str:
        """The step's name, for people; no code depends on it."""


@dataclass(frozen=True)
class Exit:
    """The result of one exit, on the network's device; (h, w) is a quarter of the padded input.

    `scores`: float (C, h, w), logits of C classes or heatmaps of C joints.
    `decided`: uint8 (h, w), the exit whose scores each position holds (equation 7 carries them over).
    `mask`: bool (h, w), True at the positions that the next stage computes (M of equation 2). Every exit has one, even
    where nothing follows or nothing is masked.
    `active_share`: the share of active positions in the mask inside the image, 0..1.
    `macs`: multiply-adds from the image to this exit, counted as in the paper.
    `changed`: whether the scores differ from those of the exit before. `final`: no later exit will differ.
    """

    index: int
    scores: Tensor
    decided: Tensor
    mask: Tensor
    active_share: float
    macs: int
    changed: bool = True
    final: bool = False


@dataclass(frozen=True)
class ExitMap:
    """An exit's answer on the host: the only part of an exit that leaves the process.

    `array`: uint8 (H, W) class labels at the image's size, or float32 (J, 3) keypoints: x, y in pixels of the
    image (pixel centres at integers) and the height of the heatmap's peak.
    `extra`: uint8 (H, W), the further map if one was asked for.
    """

    index: int
    array: NDArray[np.uint8] | NDArray[np.float32]
    active_share: float
    extra: NDArray[np.uint8] | None = None


MASK_GREW = "the mask of an exit grew, though it was promised to shrink; override it without `shrinking`"
"""The error of a mask that breaks the promise of `Overridable.override`."""
MapMemory = tuple[NDArray[Any], NDArray[np.uint8] | None]
"""Where `ExitMap.array` and `ExitMap.extra` are to be written: contiguous, of their shapes and dtypes."""


@dataclass
class State:
    """The state of one request in a model; executors derive classes with more fields. Dropping it cancels the request,
    also in the middle of a step, and frees all that it has.

    `frame`: where the input lies in the image. `shape`: height and width of the padded input; only states of equal
    shape advance together. `next_step`: the number of steps once the state is finished, which a final exit may bring
    about early. `exit`: the latest one.
    """

    frame: Frame
    shape: Size
    next_step: int = 0
    exit: Exit | None = None

    def latest(self) -> Exit:
        """The latest exit. Raises ValueError if no exit is finished."""
        if self.exit is None:
            raise ValueError(f"no exit is finished after {self.next_step} steps; advance further")
        return self.exit


class AnytimeModel(Protocol):
    """A trained network on a device, run by an executor."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def executor(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> State:
        """A state before its first step, for `image`, uint8 (H, W, 3) RGB of any size. `box` is the person's, for pose;
        None means the whole image. The first step reads `image`, which must stay as it is until then.

        Raises ValueError if `preprocess.cut` refuses the image or the box.
        """

    def start(self, inputs: Tensor, frame: Frame) -> State:
        """A state for an input that is normalised and padded already: float (1, 3, H, W), on any device. Raises
        ValueError unless H and W are multiples of 32."""

    def advance(self, states: Sequence[State], slice_s: float | None = None) -> bool:
        """Runs the next step of every state; returns True once it is complete.

        With `slice_s`, an executor that can do so pauses the step after about that many seconds, and returns False. The
        next call goes on with it, for all these states or for those of them that are still wanted. Other states may
        advance in between. Until the step is complete, the states keep the exit and the step number that they had.

        Raises ValueError if one is given twice, or if they wait for different steps, have inputs of different shapes,
        are finished, or have not paused together.
        """

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        """The latest exit of `state` at the image's size.

        `extra` adds `confidence` (0..255 for 0..1; pose scores are clipped to 0..1), `exit` (the exit that decided
        each pixel) or `unsure` (1 where the mask is active). Raises ValueError if no exit is finished.
        """

    def rendering(
        self, state: State, extra: Extra | None = None, out: MapMemory | None = None
    ) -> Iterator[ExitMap | None]:
        """`render` in pieces of a few milliseconds: yields None after each piece, and at last the map.

        The map is that of the exit which is the latest one now. It is written to `out`, which may be
        shared memory; None: to new memory. Dropping the iterator ends the rendering.
        """


@runtime_checkable
class Overridable(AnytimeModel, Protocol):
    """A model whose masks can be replaced."""

    def override(self, state: State, mask: Tensor, *, shrinking: bool = False) -> None:
        """Replaces the mask that the latest exit of `state` made: bool (h, w), see `Exit.mask`.

        `shrinking` promises that every later mask lies within this one, as `Masking.shrinks` says of a criterion; an
        executor then computes less. Raises ValueError on a mask of another shape or dtype, and before the first exit.
        """


Own = TypeVar("Own", bound=State)


def check_batch(states: Sequence[State], steps: tuple[Step, ...], kind: type[Own]) -> tuple[int, list[Own]]:
    """The index of the step that `states` wait for, and the states as the executor's own `kind`.

    Raises ValueError if one is given twice, or if they wait for different steps, have different shapes or are finished,
    and TypeError if another executor began one of them.
    """
    own = [state for state in states if isinstance(state, kind)]
    if len(own) != len(states):
        others = {type(state).__name__ for state in states} - {kind.__name__}
        raise TypeError(
            f"a state is {', '.join(others)}, not {kind.__name__}; advance it by the executor that began it"
        )
    if len({id(state) for state in own}) != len(own):
        raise ValueError(f"a state is given twice in a batch of {len(own)} states; give each state once")
    waiting = {(state.next_step, state.shape) for state in states}
    if len(waiting) != 1:
        raise ValueError(
            f"{len(states)} states wait for {len(waiting)} different steps or shapes; batch only equal ones"
        )
    step = states[0].next_step
    if step >= len(steps):
        raise ValueError(f"the state is finished: all {len(steps)} steps have run")
    return step, own


def exits_of(model: AnytimeModel, states: Sequence[State]) -> Iterator[int]:
    """Advances `states` together from where they stand to the last step; yields the number of each exit when they have
    come to it. There the caller may render them, or override their masks. After a final exit nothing is computed, and
    the latest exit stands for those that are left."""
    return exits_in_turns([(model, states)])


def exits_in_turns(runs: Sequence[tuple[AnytimeModel, Sequence[State]]]) -> Iterator[int]:
    """As `exits_of`, for several models with the same steps: each step runs on every model before the next step."""
    model, states = runs[0]
    for step in model.steps[states[0].next_step :]:
        for each, together in runs:
            if together[0].next_step < len(each.steps):
                each.advance(together)
        if step.exit is not None:
            yield step.exit


def run(model: AnytimeModel, image: NDArray[np.uint8], box: Box | None = None) -> Iterator[tuple[State, ExitMap]]:
    """Runs `model` on one image from the first step to the last; yields at every exit."""
    state = model.begin(image, box)
    for _ in exits_of(model, [state]):
        yield state, model.render(state)


def check_mask(mask: Tensor, shape: Size) -> None:
    """Raises ValueError unless `mask` is bool (H / 4, W / 4) of an input of `shape` (H, W)."""
    size = (shape[0] // STRIDE, shape[1] // STRIDE)
    if mask.dtype != torch.bool or tuple(mask.shape) != size:
        raise ValueError(f"the mask is {mask.dtype} of {tuple(mask.shape)}; it must be bool of {size}")


def score_difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of scores, as a share of the largest expected one; nan if a score is nan."""
    expected = expected.float()
    return float((found.float() - expected).abs().max() / expected.abs().max())


def largest(differences: Iterable[float]) -> float:
    """The largest of the differences and 0; nan if one of them is nan, which `max` may miss."""
    return float(torch.tensor([0.0, *differences]).max())
