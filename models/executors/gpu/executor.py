"""The GPU executor: inactive positions cost no time, and every step is one CUDA graph.

A `BatchProgram` has the memory and the graphs of one input size and batch. Requests lie in its memory while they
advance, and take copies along when others need the place. The host waits for the device only at the end of an exit.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import MASK_GREW, Exit, ExitMap, MapMemory, State, check_batch, check_mask
from models.executors.gpu.geometry import LEVELS
from models.executors.gpu.graphs import CudaGraphs, Recorder
from models.executors.gpu.kernels.geometry import ACTIVE_AT_LEVEL, ACTIVE_INSIDE
from models.executors.gpu.lowering import TritonNetwork
from models.executors.gpu.memory import BatchMemory, SavedRequest, TritonState
from models.executors.gpu.program import BatchProgram
from models.executors.gpu.tuning import TUNED, LayerTuning, gpu_name, read
from models.executors.registry import PREPARED_SIZES
from models.imaging.geometry import Box, Frame, Size
from models.imaging.postprocess import rendering, whole
from models.imaging.preprocess import check_input, prepare, seen
from models.network.adpc import AdpcNet
from models.network.configs import Extra
from models.network.flops import costs
from models.quantisation import Precision

log = logging.getLogger(__name__)

MAX_PROGRAMS = PREPARED_SIZES + 3
"""Input sizes and batches whose memory and graphs are kept; the least recently used one makes room. There is room for
`PREPARED_SIZES`, and for batches of 2, 4 and 8 at one of them."""


class TritonExecutor:
    """Runs an `AdpcNet` step by step in half precision. See `AnytimeModel`.

    `tunings`: for each input size and batch that was warmed up, such as "512x1024x1", how each masked convolution is
    run, by `layer_name`. `measured`: those of them that no file told, by `tuning_key`; see `tuning.write`.
    `forced_masks`: by exit, bool (1 or N, 1, h, w), masks in place of the exits' own; for measurements, to be set
    before the first request.
    """

    executor = "triton"
    precision: Precision = "fp16"

    def __init__(
        self,
        network: AdpcNet,
        device: str = "cuda",
        dtype: torch.dtype = torch.float16,
        graphs: Callable[[], Recorder | None] | None = None,
        tuned: Path = TUNED,
    ) -> None:
        """`graphs`: makes what records the steps of one program; if it returns None, steps are run as they are, and no
        convolution is measured. By default CUDA graphs on a GPU, nothing on a CPU. `tuned`: a file of convolutions that
        were measured before, see `tuning`. Raises ValueError if that file is broken."""
        self.config = network.config
        self.device = device
        self.steps = network.steps
        self.network = TritonNetwork(network, torch.device(device), dtype)
        self.tunings: dict[str, Mapping[str, LayerTuning]] = {}
        self.measured: dict[str, LayerTuning] = {}
        self.forced_masks: dict[int, Tensor] = {}
        self._tuned = read(tuned, gpu_name(self.network.device))
        self._graphs = CudaGraphs if graphs is None and device != "cpu" else graphs
        self._programs: dict[tuple[Size, int], BatchProgram] = {}

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> TritonState:
        return self.start(*prepare(image, self.config, box, self.device))

    def start(self, inputs: Tensor, frame: Frame) -> TritonState:
        """Raises ValueError on other sizes than multiples of 32, and on an input that kernels cannot index."""
        check_input(inputs, images=1)
        shape = (int(inputs.shape[2]), int(inputs.shape[3]))
        self.network.check_indices(shape, 1)
        saved = SavedRequest((inputs.to(self.device),), ())
        return TritonState(frame, shape, saved=saved, inside=seen(self.config, frame, shape))

    @torch.inference_mode()
    @torch.backends.cudnn.flags(enabled=True, benchmark=True)
    def advance(self, states: Sequence[State], slice_s: float | None = None) -> bool:
        index, own = check_batch(states, self.steps, TritonState)
        step = self.steps[index]
        begins_stage = index > 0 and self.steps[index - 1].exit is not None
        shares = [state.shares[0] for state in own if state.shares]
        with self._on_device():
            program = self._program(own[0].shape, len(own))
            program.memory.bind(own, index)
            if begins_stage:
                for state, mask in zip(own, program.memory.mask, strict=True):
                    _check_promise(state, mask)
            program.run(index, max(shares, default=1.0))
            for state in own:
                state.next_step += 1
            if step.exit is not None:
                self._finish(step.exit, own, program)
        return True

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        return whole(self.rendering(state, extra))

    def rendering(
        self, state: State, extra: Extra | None = None, out: MapMemory | None = None
    ) -> Iterator[ExitMap | None]:
        return rendering(state.latest(), self.config, state.frame, extra, out=out)

    @torch.inference_mode()
    def override(self, state: State, mask: Tensor, *, shrinking: bool = False) -> None:
        """See `Overridable.override`. The promise of `shrinking` is checked when the next stage begins.

        Raises ValueError on a mask of another shape or dtype, and before the first exit.
        """
        assert isinstance(state, TritonState)
        check_mask(mask, state.shape)
        latest = state.latest().index
        with self._on_device():
            program = self._program(state.shape, 1)
            memory = program.memory
            memory.bind([state], state.next_step)
            if not state.overridden:
                state.overridden = True
                if program.masking.shrinks:
                    state.bound = memory.decided[0] == latest  # the mask that the latest stage was computed under
            state.shrinking = shrinking
            program.replace_mask(mask, full_halo=not shrinking)
            self._tell_shares([state], memory)

    @torch.inference_mode()
    def launch_all(self, state: State) -> None:
        """Launches every kernel that `state` may ever need: runs each step, with each masked convolution over its rows
        and densely."""
        assert isinstance(state, TritonState)
        with self._on_device():
            self._program(state.shape, 1).launch_all(dense=True)

    def features(self, state: State) -> tuple[Tensor, ...]:
        """The branches that the latest step of `state` left, each (1, C, h, w), the finest first; to find faults with.

        Active positions and the halo are computed, see `kernels.compact_rows`. The others hold what earlier requests
        left there.
        """
        assert isinstance(state, TritonState)
        with self._on_device():
            memory = self._program(state.shape, 1).memory
            memory.bind([state], state.next_step)
            return memory.features(state.next_step - 1)

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device != "cpu" else nullcontext()

    def _program(self, shape: Size, batch: int) -> BatchProgram:
        """The program of an input size and batch, made when it is first needed. Where the device has no memory for a
        single input beside the other programs, all of them make room; a batch can be computed one by one instead."""
        key = shape, batch
        program = self._programs.pop(key, None)
        if program is None:
            self._drop_programs(MAX_PROGRAMS - 1)
            try:
                program = self._made(shape, batch)
            except torch.OutOfMemoryError:
                if batch > 1 or not self._programs:
                    raise
                log.warning("no memory for an input of %dx%d beside those of other sizes, which are given up", *shape)
            if program is None:  # after the error, which kept what was made
                self._drop_programs(0)
                program = self._made(shape, batch)
        self._programs[key] = program
        return program

    def _made(self, shape: Size, batch: int) -> BatchProgram:
        """A new program. It measures no convolution that the file or an earlier program has measured."""
        recorder, known = self._graphs() if self._graphs else None, self._tuned | self.measured
        program = BatchProgram(self.network, shape, batch, self.forced_masks, recorder, tuned=known)
        self.measured |= program.measured
        self.tunings[f"{shape[0]}x{shape[1]}x{batch}"] = program.tunings
        return program

    def _drop_programs(self, most: int) -> None:
        """Keeps at most so many programs, those that were used last."""
        while len(self._programs) > most:
            self._programs.pop(next(iter(self._programs))).memory.close()

    def _finish(self, index: int, states: Sequence[TritonState], program: BatchProgram) -> None:
        """Records exit `index` of `states`, and the shares of the next stage."""
        memory = program.memory
        statistics = memory.receive_statistics()
        sizes = [memory.level_size(level) for level in range(LEVELS)]
        scores = memory.scores[..., : self.config.outputs].permute(0, 3, 1, 2)
        for row, state in enumerate(states):
            masked = dict(zip(sizes, state.shares, strict=True)) if state.shares else {}
            groups = costs(self.config, *state.shape)[index - 1]
            state.macs += sum(cost.macs(masked.get(size, 1.0)) for (size, _), cost in groups.items())
            active_share = float(statistics[row, ACTIVE_INSIDE.value]) / (state.inside[0] * state.inside[1])
            state.exit = Exit(
                index,
                scores[row].clone(),
                memory.decided[row].clone(),
                memory.mask[row] != 0,
                active_share,
                round(state.macs),
            )
        if self.config.masks_after(index):
            for state in states:
                state.shrinking = program.masking.shrinks
            self._tell_shares(states, memory)

    @staticmethod
    def _tell_shares(states: Sequence[TritonState], memory: BatchMemory) -> None:
        """Gives `states` the active shares of the next stage."""
        sizes = [memory.level_size(level) for level in range(LEVELS)]
        for state, counts in zip(states, memory.receive_statistics(), strict=True):
            active = counts[ACTIVE_AT_LEVEL.value : ACTIVE_AT_LEVEL.value + LEVELS]
            state.shares = tuple(float(count) / (h * w) for count, (h, w) in zip(active, sizes, strict=True))


def _check_promise(state: TritonState, mask: Tensor) -> None:
    """Raises ValueError if the mask of the next stage, uint8 (h, w), is active where an earlier mask promised that none
    would be. Reads nothing from the device unless a mask was overridden."""
    if not state.overridden:
        return
    positions = mask != 0
    if state.bound is not None and bool((positions & ~state.bound).any()):
        raise ValueError(MASK_GREW)
    if state.shrinking:
        state.bound = positions
