"""The CPU executor: saved work is saved time.

Features are rows of active positions and of those that something active reads; everything else is neither computed
nor interpolated. Exact: the reference's meaning, see models/network/masked.py.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_void_p
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import Exit, ExitMap, State, check_batch
from models.executors.cpu import exits
from models.executors.cpu import library as native
from models.executors.cpu.geometry import Geometries, Geometry
from models.executors.cpu.image import normalise
from models.executors.cpu.library import Floats, library
from models.executors.cpu.lowering import FINEST, Lowering
from models.executors.cpu.memory import Memory, empty
from models.executors.cpu.ops import Matrix, Resampling
from models.executors.cpu.thread_pool import Pool
from models.executors.cpu.program import Isa, StepProgram
from models.executors.cpu.resampling import tables
from models.executors.cpu.winograd import prices
from models.imaging.geometry import MAX_SIDE, MULTIPLE, STRIDE, Box, Frame
from models.imaging.postprocess import render
from models.imaging.preprocess import check_input, cut, seen
from models.network.adpc import AdpcNet
from models.network.confidence import active
from models.network.configs import GROWING, UNSURE, Extra
from models.network.flops import costs

MAX_WINDOW = 21  # as many neighbours of a position as the kernels have room for
MAX_PIXELS = 1 << 27  # rows of the finest features are numbered in 23 bits


@dataclass
class SparseState(State):
    """A request's own rows. `features`: of the latest step, room for (1 + rows, stride) each, zeros in the first row.

    `positions`: the mask that the next stage computes under, bool (h, w), or None for all. `promised`: what later masks
    stay within, because this one was `shrinking`.
    """

    features: list[Floats] = field(default_factory=list)
    geometry: Geometry | None = None
    positions: NDArray[np.bool_] | None = None
    shrinking: bool = True
    promised: NDArray[np.bool_] | None = None
    scores: Floats | None = None
    macs: float = 0.0


class SparseExecutor:
    """Runs a network on rows, a batch of requests at a time; not from several threads at once. See `AnytimeModel`.

    `threads`: 0 for torch's number. `isa`: "avx512", "avx2", "neon" or "portable"; None for the machine's best.
    Raises OSError if the native library is not built, ValueError if the machine lacks `isa` or threads.
    """

    executor = "sparse"
    device = "cpu"

    def __init__(self, network: AdpcNet, threads: int = 0, isa: str | None = None) -> None:
        self.config = network.config
        self.steps = network.steps
        self.isa = Isa.find(isa)
        lowering = Lowering(network)
        resamplings: dict[Resampling, int] = {}
        window = self.config.masking.window if self.config.masking else 3
        if window > MAX_WINDOW:
            raise ValueError(
                f"the window is {window}; the sparse executor takes at most {MAX_WINDOW}: use executor reference"
            )
        by_level = [prices(64)] * FINEST + [prices(width) for width in self.config.backbone.channels(4)]
        self._programs = {
            step.name: StepProgram(lowering.step(step), self.isa, resamplings, by_level) for step in self.steps
        }
        self._geometries = Geometries(window, max(program.near for program in self._programs.values()), by_level)
        self._pool = Pool(threads or torch.get_num_threads())
        used, config = tuple(resamplings), network.config
        self._taps = lru_cache(maxsize=8)(lambda shape: tables(used, shape))
        self._costs = lru_cache(maxsize=8)(lambda shape: costs(config, *shape))
        self._memory = Memory()

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> SparseState:
        pixels, frame = cut(image, self.config, box)
        height, width = pixels.shape[:2]
        state, lines = self._empty(frame, height + -height % MULTIPLE, width + -width % MULTIPLE)
        normalise(self._pool, pixels, self.config, lines)
        return state

    def start(self, inputs: Tensor, frame: Frame) -> SparseState:
        """`inputs`: float32 (1, 3, H, W), normalised, H and W multiples of 32. Raises ValueError on other sizes."""
        check_input(inputs, images=1)
        height, width = inputs.shape[-2:]
        state, lines = self._empty(frame, height, width)
        lines.reshape(height, width, 3)[:] = inputs[0].permute(1, 2, 0).numpy()
        return state

    def _empty(self, frame: Frame, height: int, width: int) -> tuple[SparseState, Floats]:
        """A state whose input is yet to be written, and where: (H, 3 * W), colours of a pixel side by side."""
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
            raise ValueError(
                f"the input is {height}x{width}; at most {MAX_PIXELS} pixels and sides of {MAX_SIDE} are taken: scale "
                "it down"
            )
        self._memory.expect(height * width)
        # A row of pixels around stands for the convolution's padding; the row before it is every matrix's zero row.
        floats = 3 * (height + 2) * (width + 2)
        pixels = self._memory.take(3 + floats)
        padded = pixels[3 : 3 + floats].reshape(height + 2, 3 * (width + 2))
        padded[0] = padded[-1] = padded[:, :3] = padded[:, -3:] = 0
        state = SparseState(frame, (height, width), features=[pixels])
        weakref.finalize(state, self._memory.leave, state.features, height * width).atexit = False
        return state, padded[1:-1, 3:-3]

    def override(self, state: State, positions: Tensor, *, shrinking: bool = False) -> None:
        """See `Overridable.override`; what `shrinking` promises is checked when the next stage begins.

        Raises ValueError on a mask of another shape or dtype, from which the native code would read astray.
        """
        assert isinstance(state, SparseState)
        size = (state.shape[0] // STRIDE, state.shape[1] // STRIDE)
        if positions.dtype != torch.bool or tuple(positions.shape) != size:
            raise ValueError(f"the mask is {positions.dtype} of {tuple(positions.shape)}; it must be bool of {size}")
        state.positions = positions.cpu().numpy().copy()  # the caller may use its memory again
        state.shrinking = shrinking

    def advance(self, states: Sequence[State]) -> None:
        index, own = check_batch(states, self.steps, SparseState)
        step = self.steps[index]
        program = self._programs[step.name]
        begins_stage = index > 0 and self.steps[index - 1].exit is not None
        previous = [state.geometry or self._dense_of(state) for state in own]
        now = previous
        if begins_stage:
            now = [self._settled(state) for state in own]
        outputs = self._run(program, own, previous, now)
        for state, geometry, made in zip(own, now, outputs, strict=True):
            state.geometry = geometry
            state.next_step += 1
            if step.exit is not None:
                with _torch_alone():
                    self._finish(step.exit, state, made[0], geometry)
            if step.exit is None:
                self._memory.leave(state.features, state.shape[0] * state.shape[1])
                state.features[:] = made

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        return render(state.latest(), self.config, state.frame, extra, partial(exits.labels, self._pool))

    def _dense_of(self, state: SparseState) -> Geometry:
        return self._geometries.dense((state.shape[0] // STRIDE, state.shape[1] // STRIDE))

    def _settled(self, state: SparseState) -> Geometry:
        """The geometry of the mask that the latest exit left."""
        mask, promised = state.positions, state.promised
        if mask is None or mask.all():
            mask = None
        if promised is not None and (mask is None or (mask & ~promised).any()):
            raise ValueError(
                "the mask of an exit grew, though it was promised to shrink; override it without `shrinking`"
            )
        if mask is None:
            return self._dense_of(state)
        if state.shrinking:
            state.promised = mask
        return self._geometries.under(mask, everywhere=not state.shrinking)

    def _run(
        self,
        program: StepProgram,
        states: Sequence[SparseState],
        previous: Sequence[Geometry],
        now: Sequence[Geometry],
    ) -> list[list[Floats]]:
        """Run a step for all states; returns what it made for each, in the order of the program's outputs."""
        contexts = (native.Context * len(states))()
        made: list[list[Floats]] = []
        for context, state, before, geometry in zip(contexts, states, previous, now, strict=True):
            made.append([self._output(matrix, state, geometry) for matrix in program.outputs])
            features = [memory.ctypes.data for memory in (*state.features, *made[-1])]
            context.now, context.previous = geometry.native, before.native
            context.features = (c_void_p * len(features))(*features)
            context.taps, _ = self._taps(state.shape)
        lib = library()
        pool = self._pool.native
        floats = lib.program_floats(pool, program.native, contexts, len(states))
        work = self._memory.working(floats, max(height * width for height, width in (state.shape for state in states)))
        if lib.program_run(pool, self.isa.kernels, program.native, contexts, len(states), work.ctypes.data):
            raise MemoryError(f"no memory to run {len(states)} requests at once; batch fewer")
        return made

    def _output(self, matrix: Matrix, state: SparseState, geometry: Geometry) -> Floats:
        """Memory for what a step leaves, at least (1 + rows, stride)."""
        floats = (1 + geometry.rows(matrix)) * matrix.stride
        if matrix.rows != "positions":
            return self._memory.take(floats)
        if geometry.mask is None or state.scores is None:
            return empty(floats)
        return state.scores.copy()  # equation 7: what is not computed is carried over

    def _finish(self, index: int, state: SparseState, scores: Floats, settled: Geometry) -> None:
        """Note the exit and, if more follow, the mask for the next stage."""
        height, width = (side // STRIDE for side in state.shape)
        state.macs += self._macs(index, state.shape, settled)
        state.scores = scores
        rows = torch.from_numpy(scores.reshape(1 + height * width, -1)[1:, : self.config.outputs])
        grid = rows.view(height, width, -1).permute(2, 0, 1)
        masking = self.config.masking or UNSURE[self.config.task]
        computed = settled.mask
        carried = None if computed is None else state.exit  # what stands where nothing was computed
        if computed is None or carried is None:
            decided = torch.full((height, width), index, dtype=torch.uint8)
        else:
            decided = carried.decided.masked_fill(torch.from_numpy(computed), index)
        if masking.criterion in exits.CRITERIA:
            before = None if carried is None else carried.active.numpy()
            positions = exits.active(self._pool, grid, masking, computed, before)
        else:
            positions = active(grid[None].contiguous(), masking, index)[0, 0].numpy()
        rows_seen, columns_seen = seen(self.config, state.frame, state.shape)
        unsure = np.count_nonzero(positions[:rows_seen, :columns_seen]) / (rows_seen * columns_seen)
        state.exit = Exit(index, grid, decided, torch.from_numpy(positions), unsure, round(state.macs))
        state.positions = None
        if self.config.settles_after(index):
            state.positions, state.shrinking = positions, masking.criterion not in GROWING

    def _macs(self, index: int, shape: tuple[int, int], settled: Geometry) -> float:
        """Multiply-adds between the exit before and this one, under the mask of the exit before."""
        finest = shape[0] // STRIDE
        return sum(
            cost.macs(settled.share(FINEST + (finest // size[0]).bit_length() - 1))
            for (size, _), cost in self._costs(shape)[index - 1].items()
        )


@contextmanager
def _torch_alone() -> Iterator[None]:
    """Leaves torch's threads asleep. What an exit asks of torch is little, and threads that it wakes go on to spin for
    milliseconds on the cores that the pool needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
