"""The sparse executor: on a CPU, inactive positions cost no time.

Features are rows of active positions and of their halo. Nothing else is computed or interpolated, because nothing reads
it. The results are those of the reference executor, see models/network/masked.py.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import ExitMap, MapMemory, State, check_batch, check_mask
from models.executors.cpu import exits
from models.executors.cpu.image import PaddedImage
from models.executors.cpu.network import SparseNetwork, SparseProgress
from models.executors.cpu.slice import Slice
from models.imaging.geometry import MAX_SIDE, Box, Frame, Size, padded_size
from models.imaging.postprocess import rendering, whole
from models.imaging.preprocess import check_input, locate
from models.network.adpc import AdpcNet
from models.network.configs import Extra
from models.quantisation import Precision, Scales

MAX_PIXELS = 1 << 27
"""The finest features have a sixteenth as many rows, and tables number rows in 23 bits."""


class StepRun:
    """A step that some requests run together, from its first piece to its last. It refers to no state, so that dropping
    the states drops it, too."""

    def __init__(self, batch: Sequence[SparseProgress], pieces: Generator[None, None, list[SparseProgress]]) -> None:
        self._batch = batch
        self._pieces = pieces
        self._results: list[SparseProgress] | None = None

    def go_on(self, until: Slice) -> bool:
        """Runs pieces until the slice is over, at least one; returns whether all have run."""
        while self._results is None:
            try:
                next(self._pieces)
            except StopIteration as end:
                assert end.value is not None, "the step has failed before"
                self._results = end.value
            else:
                if until.over():
                    return False
        return True

    def result(self, before: SparseProgress) -> SparseProgress:
        """The progress after the step of the request whose progress was `before`."""
        assert self._results is not None
        return next(own for given, own in zip(self._batch, self._results, strict=True) if given is before)


@dataclass
class SparseState(State):
    """One request. `run`: the step that is paused; None between steps."""

    progress: SparseProgress = field(kw_only=True)
    run: StepRun | None = None


class SparseExecutor:
    """Runs a network on rows, a batch of requests at a time. Only one thread may use it at a time. See `AnytimeModel`.

    `threads`: 0 for torch's number. `isa`: the name of an instruction set, see `Isa`; None for the machine's best.
    `scales`: of the features, to compute in eight bits; None to compute in float32. `precision` says which it is.
    Raises OSError if the native library is not built, ValueError if the machine lacks `isa` or threads, if the
    network's window is too wide, or if `scales` are another network's.
    """

    executor = "sparse"
    device = "cpu"

    def __init__(
        self, network: AdpcNet, threads: int = 0, isa: str | None = None, scales: Scales | None = None
    ) -> None:
        self.config = network.config
        self.steps = network.steps
        self.precision: Precision = "fp32" if scales is None else "int8"
        self.network = SparseNetwork(network, threads, isa, scales)

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> SparseState:
        frame = locate(image, self.config, box)
        size = self.config.size if self.config.task == "pose" else (frame.height, frame.width)
        progress, padded = self._begin(frame, padded_size(*size))
        return SparseState(frame, progress.shape, progress=replace(progress, unread=(image, padded)))

    def start(self, inputs: Tensor, frame: Frame) -> SparseState:
        """`inputs`: float32 (1, 3, H, W), normalised, H and W multiples of 32. Raises ValueError on other sizes."""
        check_input(inputs, images=1)
        height, width = inputs.shape[-2:]
        progress, padded = self._begin(frame, (height, width))
        self.network.image_format.write_normalised(inputs, padded)
        return SparseState(frame, progress.shape, progress=progress)

    def _begin(self, frame: Frame, shape: Size) -> tuple[SparseProgress, PaddedImage]:
        height, width = shape
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
            raise ValueError(
                f"the input is {height}x{width}; at most {MAX_PIXELS} pixels and sides of {MAX_SIDE} are taken: scale "
                "it down"
            )
        return self.network.begin(frame, shape)

    def override(self, state: State, mask: Tensor, *, shrinking: bool = False) -> None:
        """See `Overridable.override`. The promise of `shrinking` is checked when the next stage begins.

        Raises ValueError on a mask of another shape or dtype, with which the native code would read beyond it, before
        the first exit, and if the next step is paused.
        """
        assert isinstance(state, SparseState)
        check_mask(mask, state.shape)
        state.latest()
        if state.run is not None:
            raise ValueError(f"step {state.next_step} is paused and uses the mask already; advance it to its end first")
        own = mask.cpu().numpy().copy()  # the caller may use its memory again
        state.progress = replace(state.progress, mask=own, shrinking=shrinking)

    def advance(self, states: Sequence[State], slice_s: float | None = None) -> bool:
        index, own = check_batch(states, self.steps, SparseState)
        step, runs = self.steps[index], {id(state.run): state.run for state in own}
        if len(runs) != 1:
            raise ValueError(f"{len(states)} states have paused in {len(runs)} batches; go on with each batch alone")
        (run,) = runs.values()
        if run is None:
            batch = [state.progress for state in own]
            run = StepRun(batch, self.network.run(step, batch))
        for state in own:
            state.run = None  # an error ends the run
        self.network.slice.begin(slice_s)
        complete = run.go_on(self.network.slice)
        for state in own:
            if complete:
                state.progress = run.result(state.progress)
                state.exit = state.progress.exit
                state.next_step += 1
            else:
                state.run = run
        return complete

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        return whole(self.rendering(state, extra))

    def rendering(
        self, state: State, extra: Extra | None = None, out: MapMemory | None = None
    ) -> Iterator[ExitMap | None]:
        labels = partial(exits.labels, self.network.pool)
        return rendering(state.latest(), self.config, state.frame, extra, out=out, labels=labels)
