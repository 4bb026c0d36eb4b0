"""The sparse executor: on a CPU, inactive positions cost no time.

Features are rows of active positions and of their halo. Nothing else is computed or interpolated, because nothing reads
it. The results are those of the reference executor, see models/network/masked.py.
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

from models.anytime import Exit, ExitMap, State, Step, check_batch, check_mask
from models.executors.cpu import exits
from models.executors.cpu.geometry import Geometry, GeometryFactory
from models.executors.cpu.image import normalise
from models.executors.cpu.isa import Isa
from models.executors.cpu.library import Bytes, Floats, library
from models.executors.cpu.lowering import FINEST, Lowering
from models.executors.cpu.memory import CachingAllocator, empty
from models.executors.cpu.ops import Matrix, Resampling
from models.executors.cpu.program import StepProgram
from models.executors.cpu.quantise import quantise
from models.executors.cpu.resampling import resampling_taps
from models.executors.cpu.structures import NativeContext, RowDomain
from models.executors.cpu.thread_pool import ThreadPool
from models.executors.cpu.winograd import tile_costs
from models.imaging.geometry import MAX_SIDE, MULTIPLE, STRIDE, Box, Frame
from models.imaging.postprocess import render
from models.imaging.preprocess import check_input, cut, seen
from models.network.adpc import AdpcNet
from models.network.confidence import make_mask
from models.network.configs import PAPER_MASKING, Extra
from models.network.flops import costs
from models.network.quantised import check
from models.quantisation import Precision, Scales

MAX_WINDOW = 21
"""The widest interpolation window that the kernels have room for (MAX_SOURCES in native/weighted_sums.h)."""
MAX_PIXELS = 1 << 27
"""The finest features have a sixteenth as many rows, and tables number rows in 23 bits."""


@dataclass
class SparseState(State):
    """One request.

    `features`: what the latest step left, each with room for (1 + rows, row bytes), the first row zeros.
    `geometry`: the tables of the mask that these rows belong to; None for all active.
    `mask`: bool (h, w), the mask of the next stage; None for all active. `shrinking`: whether later masks stay within
    it. `bound`: the latest mask that promised so; None if none did.
    `scores`: of float32 (1 + h * w, row pitch), those of the latest exit.
    """

    features: list[Bytes] = field(default_factory=list)
    geometry: Geometry | None = None
    mask: NDArray[np.bool_] | None = None
    shrinking: bool = True
    bound: NDArray[np.bool_] | None = None
    scores: Bytes | None = None
    macs: float = 0.0


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
        self.isa = Isa.find(isa)
        lowering = Lowering(network)
        numbers: dict[Resampling, int] = {}
        window = self.config.masking.window if self.config.masking else 3
        if window > MAX_WINDOW:
            raise ValueError(
                f"the window is {window}; the sparse executor takes at most {MAX_WINDOW}: use executor reference"
            )
        by_level = [tile_costs(64)] * FINEST + [tile_costs(width) for width in self.config.backbone.channels(4)]
        lowered = [lowering.lower(step) for step in self.steps]
        if scales is not None:
            check(network, scales)
            lowered = quantise(lowered, scales)
        self._programs = {
            step: StepProgram(work, self.isa, numbers, by_level) for step, work in zip(self.steps, lowered, strict=True)
        }
        self.phase_times: dict[Step, NDArray[np.float64]] | None = None
        """Set this to {} to add up the seconds of each phase: by step, (phases,). `describe` says what they do."""
        used_classes = max(program.used_classes for program in self._programs.values())
        self._geometries = GeometryFactory(window, used_classes, by_level)
        self._pool = ThreadPool(threads or torch.get_num_threads())
        self._allocator = CachingAllocator()
        resamplings, config = tuple(numbers), network.config
        self._resampling_taps = lru_cache(maxsize=8)(lambda shape: resampling_taps(resamplings, shape))
        self._costs = lru_cache(maxsize=8)(lambda shape: costs(config, *shape))

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> SparseState:
        pixels, frame = cut(image, self.config, box)
        height, width = pixels.shape[:2]
        state, lines = self._new_state(frame, height + -height % MULTIPLE, width + -width % MULTIPLE)
        normalise(self._pool, pixels, self.config, lines)
        return state

    def start(self, inputs: Tensor, frame: Frame) -> SparseState:
        """`inputs`: float32 (1, 3, H, W), normalised, H and W multiples of 32. Raises ValueError on other sizes."""
        check_input(inputs, images=1)
        height, width = inputs.shape[-2:]
        state, lines = self._new_state(frame, height, width)
        lines.reshape(height, width, 3)[:] = inputs[0].permute(1, 2, 0).numpy()
        return state

    def _new_state(self, frame: Frame, height: int, width: int) -> tuple[SparseState, Floats]:
        """A new request, and where its input is to be written: (H, 3 * W), the colours of a pixel adjacent."""
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
            raise ValueError(
                f"the input is {height}x{width}; at most {MAX_PIXELS} pixels and sides of {MAX_SIDE} are taken: scale "
                "it down"
            )
        self._allocator.begin_request(height * width)
        # A margin of one pixel is the convolution's padding. Before it lies the row of zeros that every matrix has.
        floats = 3 * (height + 2) * (width + 2)
        pixels = self._allocator.take(4 * (3 + floats))
        padded = pixels[4 * 3 : 4 * (3 + floats)].view(np.float32).reshape(height + 2, 3 * (width + 2))
        padded[0] = padded[-1] = padded[:, :3] = padded[:, -3:] = 0
        state = SparseState(frame, (height, width), features=[pixels])
        weakref.finalize(state, self._allocator.release, state.features, height * width).atexit = False
        return state, padded[1:-1, 3:-3]

    def override(self, state: State, mask: Tensor, *, shrinking: bool = False) -> None:
        """See `Overridable.override`. The promise of `shrinking` is checked when the next stage begins.

        Raises ValueError on a mask of another shape or dtype, with which the native code would read beyond it.
        """
        assert isinstance(state, SparseState)
        check_mask(mask, state.shape)
        state.mask = mask.cpu().numpy().copy()  # the caller may use its memory again
        state.shrinking = shrinking

    def advance(self, states: Sequence[State]) -> None:
        index, own = check_batch(states, self.steps, SparseState)
        step = self.steps[index]
        begins_stage = index > 0 and self.steps[index - 1].exit is not None
        previous = [state.geometry or self._all_active(state) for state in own]
        geometries = [self._next_geometry(state) for state in own] if begins_stage else previous
        results = self._run(step, own, previous, geometries)
        for state, geometry, outputs in zip(own, geometries, results, strict=True):
            state.geometry = geometry
            state.next_step += 1
            if step.exit is not None:
                with _one_torch_thread():
                    self._finish(step.exit, state, outputs[0], geometry)
            else:
                self._allocator.release(state.features, state.shape[0] * state.shape[1])
                state.features[:] = outputs

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        return render(state.latest(), self.config, state.frame, extra, partial(exits.labels, self._pool))

    def _all_active(self, state: SparseState) -> Geometry:
        return self._geometries.all_active((state.shape[0] // STRIDE, state.shape[1] // STRIDE))

    def _next_geometry(self, state: SparseState) -> Geometry:
        """The geometry of the mask that the latest exit (or `override`) left."""
        mask, bound = state.mask, state.bound
        if mask is None or mask.all():
            mask = None
        if bound is not None and (mask is None or (mask & ~bound).any()):
            raise ValueError(
                "the mask of an exit grew, though it was promised to shrink; override it without `shrinking`"
            )
        if mask is None:
            return self._all_active(state)
        if state.shrinking:
            state.bound = mask
        return self._geometries.under(mask, full_halo=not state.shrinking)

    def _run(
        self,
        step: Step,
        states: Sequence[SparseState],
        previous: Sequence[Geometry],
        geometries: Sequence[Geometry],
    ) -> list[list[Bytes]]:
        """Runs a step for all states: from features under `previous` to outputs under `geometries`. Returns the outputs
        of each state, in the order of the program's."""
        program = self._programs[step]
        contexts = (NativeContext * len(states))()
        results: list[list[Bytes]] = []
        for context, state, before, geometry in zip(contexts, states, previous, geometries, strict=True):
            results.append([self._output(matrix, state, geometry) for matrix in program.outputs])
            features = [memory.ctypes.data for memory in (*state.features, *results[-1])]
            context.geometry, context.previous = geometry.native, before.native
            context.features = (c_void_p * len(features))(*features)
            context.resamplings, _ = self._resampling_taps(state.shape)
        lib = library()
        pool, count = self._pool.native, len(states)
        size = lib.program_workspace_bytes(pool, program.native, contexts, count)
        height, width = states[0].shape  # the same for all, see check_batch
        workspace = self._allocator.workspace(size, height * width).ctypes.data
        times = self._times_of(step)
        if lib.program_run(pool, self.isa.kernels, program.native, contexts, count, workspace, times):
            raise MemoryError(f"no memory to run {count} requests at once; batch fewer")
        return results

    def _times_of(self, step: Step) -> int | None:
        """Where the native code adds up the seconds of the step's phases; None for nowhere."""
        if self.phase_times is None:
            return None
        times = self.phase_times.setdefault(step, np.zeros(self._programs[step].native.phase_count))
        return int(times.ctypes.data)

    def describe(self, step: Step) -> list[str]:
        """What each phase of a step does, in the order of `phase_times`."""
        return self._programs[step].descriptions

    def phase_macs(self, step: Step, state: State) -> list[int]:
        """Multiply-adds of each phase of `step`, which `state` has just taken: those of its convolutions at active
        positions, however they are computed."""
        assert isinstance(state, SparseState)
        geometry = state.geometry or self._all_active(state)
        return [
            sum(each * geometry.level(level).active_rows for level, each in by_level.items())
            for by_level in self._programs[step].macs
        ]

    def _output(self, matrix: Matrix, state: SparseState, geometry: Geometry) -> Bytes:
        """Memory for one output of a step, at least (1 + rows, row bytes)."""
        size = (1 + geometry.output_rows(matrix)) * matrix.row_bytes
        if matrix.domain != RowDomain.ALL_POSITIONS:
            return self._allocator.take(size)
        if geometry.mask is None or state.scores is None:
            return empty(size)
        return state.scores.copy()  # equation 7: scores at inactive positions are carried over

    def _finish(self, index: int, state: SparseState, scores: Bytes, geometry: Geometry) -> None:
        """Records exit `index`, whose scores were computed under `geometry`, and the mask of the next stage."""
        height, width = (side // STRIDE for side in state.shape)
        state.macs += self._macs(index, state.shape, geometry)
        state.scores = scores
        rows = torch.from_numpy(scores.view(np.float32).reshape(1 + height * width, -1)[1:, : self.config.outputs])
        grid = rows.view(height, width, -1).permute(2, 0, 1)
        masking = self.config.masking or PAPER_MASKING[self.config.task]
        carried = None if geometry.mask is None else state.exit  # the exit whose scores stand at inactive positions
        if geometry.mask is None or carried is None:
            decided = torch.full((height, width), index, dtype=torch.uint8)
        else:
            decided = carried.decided.masked_fill(torch.from_numpy(geometry.mask), index)
        if masking.criterion in exits.CRITERIA:
            before = None if carried is None else carried.mask.numpy()
            mask = exits.update_mask(self._pool, grid, masking, geometry.mask, before)
        else:
            mask = make_mask(grid[None].contiguous(), masking, index)[0, 0].numpy()
        image_height, image_width = seen(self.config, state.frame, state.shape)
        active_share = np.count_nonzero(mask[:image_height, :image_width]) / (image_height * image_width)
        state.exit = Exit(index, grid, decided, torch.from_numpy(mask), active_share, round(state.macs))
        state.mask = None
        if self.config.masks_after(index):
            state.mask, state.shrinking = mask, masking.shrinks

    def _macs(self, index: int, shape: tuple[int, int], geometry: Geometry) -> float:
        """Multiply-adds of the stage that ends at exit `index`, under its mask."""
        finest = shape[0] // STRIDE
        return sum(
            cost.macs(geometry.active_share(FINEST + (finest // size[0]).bit_length() - 1))
            for (size, _), cost in self._costs(shape)[index - 1].items()
        )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keeps torch to the calling thread. The little work of an exit needs no more, and once torch's other threads wake
    up, they spin for milliseconds on the cores that the thread pool needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
