"""A network lowered to native programs, which advance the progress of requests step by step.

Work that may take long is a generator. It yields where the step can pause; dropping the generator ends the step.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from ctypes import Array, c_void_p
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from models.anytime import MASK_GREW, Exit, Step
from models.executors.cpu import exits
from models.executors.cpu.geometry import Geometry, GeometryFactory
from models.executors.cpu.image import ImageFormat, PaddedImage
from models.executors.cpu.isa import Isa
from models.executors.cpu.library import Bytes, library
from models.executors.cpu.lowering import FINEST, Lowering
from models.executors.cpu.memory import Buffers, CachingAllocator, empty, touch
from models.executors.cpu.ops import Resampling
from models.executors.cpu.program import StepProgram
from models.executors.cpu.quantise import quantise
from models.executors.cpu.resampling import resampling_taps
from models.executors.cpu.slice import Slice
from models.executors.cpu.structures import NativeContext
from models.executors.cpu.thread_pool import ThreadPool
from models.executors.cpu.winograd import tile_costs
from models.imaging.geometry import STRIDE, Frame, Size, bands
from models.imaging.preprocess import seen
from models.network.adpc import AdpcNet
from models.network.flops import costs
from models.network.quantised import check
from models.quantisation import Scales

MAX_WINDOW = 21
"""The widest interpolation window that the kernels have room for (MAX_SOURCES in native/weighted_sums.h)."""


@dataclass(frozen=True)
class SparseProgress:
    """The progress of one request: what its steps so far have computed.

    `unread`: the image, uint8 (H, W, 3), and where to write it, see `SparseNetwork.begin`; None once the first step has
    read it. `features`: what the latest step left, each with room for (1 + rows, row bytes), the first row zeros.
    `geometry`: the tables of the mask that these rows belong to. `mask`: bool (h, w), the mask of the next stage; None
    for all active. `shrinking`: whether later masks stay within it. `bound`: the latest mask that promised so; None if
    none did. `exit`: the latest exit. `scores`: its own, float32 (1 + h * w, row pitch). `macs`: until that exit.
    """

    frame: Frame
    shape: Size
    features: Buffers
    geometry: Geometry
    unread: tuple[NDArray[np.uint8], PaddedImage] | None = None
    mask: NDArray[np.bool_] | None = None
    shrinking: bool = True
    bound: NDArray[np.bool_] | None = None
    exit: Exit | None = None
    scores: Bytes | None = None
    macs: float = 0.0


Pieces = Generator[None, None, SparseProgress]
"""Work that yields where it can pause, and returns what it leaves of a request."""


class SparseNetwork:
    """The programs of a network's steps, and what all its requests share; for the arguments see `SparseExecutor`.

    `slice`: when it is over, native work returns, and `run` yields. `phase_times`: where to add up the seconds of each
    phase, by step, (phases,); None for nowhere.
    """

    def __init__(self, network: AdpcNet, threads: int, isa: str | None, scales: Scales | None) -> None:
        self.config = network.config
        self.steps = network.steps
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
            lowered = quantise(lowered, scales, network.config)
        self.image_format = ImageFormat(self.config, as_pixels=bool(lowered[0].inputs[0].scale))
        self.programs = {
            step: StepProgram(work, self.isa, numbers, by_level) for step, work in zip(self.steps, lowered, strict=True)
        }
        self.phase_times: dict[Step, NDArray[np.float64]] | None = None
        self._begin_stages = {step for before, step in pairwise(self.steps) if before.exit is not None}
        used_classes = max(program.used_classes for program in self.programs.values())
        on_tiles = any(program.on_tiles for program in self.programs.values())
        self._geometries = GeometryFactory(window, used_classes, by_level if on_tiles else None)
        self.pool = ThreadPool(threads or torch.get_num_threads())
        self.allocator = CachingAllocator()
        self.slice = Slice()
        resamplings, config = tuple(numbers), network.config
        self._resampling_taps = lru_cache(maxsize=8)(lambda shape: resampling_taps(resamplings, shape))
        self._costs = lru_cache(maxsize=8)(lambda shape: costs(config, *shape))

    def begin(self, frame: Frame, shape: Size) -> tuple[SparseProgress, PaddedImage]:
        """A new request, and where its image is to be written."""
        height, width = shape
        self.allocator.begin_request(height * width)
        memory, padded = self.image_format.allocate(self.allocator, height, width)
        features = Buffers(self.allocator, [memory], height * width)
        return SparseProgress(frame, shape, features, self._geometries.all_active(_at_stride(shape))), padded

    def run(self, step: Step, batch: Sequence[SparseProgress]) -> Generator[None, None, list[SparseProgress]]:
        """Runs `step` for requests of one shape that wait for it; returns what it leaves of them.

        Raises ValueError before it yields if a mask grew against a promise.
        """
        before = batch
        if step in self._begin_stages:
            batch = [self._under_next_mask(progress) for progress in before]
        for progress in batch:
            yield from self._prepare(progress)
        if step.exit is None:
            features = [self._features(step, progress) for progress in batch]
            yield from touch(array for own in features for array in own.arrays)
            yield from self._compute(step, before, batch, [own.arrays for own in features])
            return [replace(each, features=own, unread=None) for each, own in zip(batch, features, strict=True)]
        scores = [self._empty_scores(step, progress) for progress in batch]
        yield from touch(scores)
        for progress, own in zip(batch, scores, strict=True):
            yield from self._carry_over(progress, own)
        yield from self._compute(step, before, batch, [(own,) for own in scores])
        found: list[SparseProgress] = []
        for progress, own in zip(batch, scores, strict=True):
            found.append((yield from self._finish(step.exit, replace(progress, scores=own))))
        return found

    def _under_next_mask(self, progress: SparseProgress) -> SparseProgress:
        """With the geometry of the mask that the latest exit (or `override`) left."""
        mask, bound = progress.mask, progress.bound
        if mask is None or mask.all():
            mask = None
        if bound is not None and (mask is None or (mask & ~bound).any()):
            raise ValueError(MASK_GREW)
        if mask is None:
            return replace(progress, geometry=self._geometries.all_active(_at_stride(progress.shape)))
        geometry = self._geometries.under(mask, full_halo=not progress.shrinking)
        return replace(progress, geometry=geometry, bound=mask if progress.shrinking else bound)

    def _prepare(self, progress: SparseProgress) -> Iterator[None]:
        """Reads the image if it is unread, and builds the geometry if it is new."""
        if progress.unread is not None:
            image, padded = progress.unread
            yield from self.image_format.read(self.pool, image, progress.frame, padded)
        while not progress.geometry.build(self.slice.left_s()):
            yield

    def _features(self, step: Step, progress: SparseProgress) -> Buffers:
        """Memory for what a step leaves, for each matrix at least (1 + rows, row bytes)."""
        sizes = [
            (1 + progress.geometry.level(matrix.level).needed_rows) * matrix.row_bytes
            for matrix in self.programs[step].outputs
        ]
        return Buffers(self.allocator, [self.allocator.take(size) for size in sizes], math.prod(progress.shape))

    def _empty_scores(self, step: Step, progress: SparseProgress) -> Bytes:
        """Memory for the scores of an exit, (1 + h * w, row bytes)."""
        (matrix,) = self.programs[step].outputs
        return empty((1 + math.prod(_at_stride(progress.shape))) * matrix.row_bytes)

    def _carry_over(self, progress: SparseProgress, scores: Bytes) -> Iterator[None]:
        """Copies the scores of the exit before; those at inactive positions stay (equation 7)."""
        if progress.scores is None or progress.geometry.mask is None:
            return
        rows = 1 + math.prod(_at_stride(progress.shape))
        before, after = progress.scores.reshape(rows, -1), scores.reshape(rows, -1)
        for band in bands(rows, STRIDE**2):
            after[band] = before[band]
            yield

    def _compute(
        self,
        step: Step,
        before: Sequence[SparseProgress],
        batch: Sequence[SparseProgress],
        outputs: Sequence[Sequence[Bytes]],
    ) -> Iterator[None]:
        """Runs the program of a step, from features under the geometries of `before` to `outputs` under those of
        `batch`."""
        contexts, program = (NativeContext * len(batch))(), self.programs[step].native
        shape = batch[0].shape  # the same for all
        taps = self._resampling_taps(shape)  # kept here until the run ends
        for context, old, new, written in zip(contexts, before, batch, outputs, strict=True):
            features = [memory.ctypes.data for memory in (*old.features.arrays, *written)]
            context.geometry, context.previous = new.geometry.native, old.geometry.native
            context.features = (c_void_p * len(features))(*features)
            context.resamplings = taps[0]
        size = library().program_workspace_bytes(self.pool.native, program, contexts, len(batch))
        workspace, largest = self.allocator.take_workspace(size, math.prod(shape))
        try:
            yield from touch([workspace[:size]])
            yield from self._run_program(step, contexts, workspace)
        finally:
            self.allocator.release_workspace(workspace, largest)

    def _run_program(self, step: Step, contexts: Array[NativeContext], workspace: Bytes) -> Iterator[None]:
        """Runs the program of a step until it ends; yields when the slice is over."""
        lib, pool, count, times = library(), self.pool.native, len(contexts), self._times_of(step)
        program, memory = self.programs[step].native, workspace.ctypes.data
        run = lib.program_begin(pool, self.isa.kernels, program, contexts, count, memory, times)
        if not run:
            raise MemoryError(f"no memory to run {count} requests at once; batch fewer")
        try:
            while not lib.program_run(pool, run, self.slice.left_s()):
                yield
        finally:
            lib.program_free(run)

    def _times_of(self, step: Step) -> int | None:
        """Where the native code adds up the seconds of the step's phases; None for nowhere."""
        if self.phase_times is None:
            return None
        times = self.phase_times.setdefault(step, np.zeros(self.programs[step].native.phase_count))
        return int(times.ctypes.data)

    def describe(self, step: Step) -> list[str]:
        """What each phase of a step does, in the order of `phase_times`."""
        return self.programs[step].descriptions

    def phase_macs(self, step: Step, progress: SparseProgress) -> list[int]:
        """Multiply-adds of each phase of `step`, which has just left `progress`: those of its convolutions at active
        positions, however they are computed."""
        return [
            sum(each * progress.geometry.level(level).active_rows for level, each in by_level.items())
            for by_level in self.programs[step].macs
        ]

    def _finish(self, index: int, progress: SparseProgress) -> Pieces:
        """Records exit `index`, whose scores are computed, and the mask of the next stage."""
        (height, width), under, scores = _at_stride(progress.shape), progress.geometry.mask, progress.scores
        assert scores is not None
        rows = torch.from_numpy(scores.view(np.float32).reshape(1 + height * width, -1)[1:, : self.config.outputs])
        grid = rows.view(height, width, -1).permute(2, 0, 1)
        masking = self.config.exit_masking
        decided = np.full((height, width), index, np.uint8)
        before = None
        if under is not None and progress.exit is not None:  # whose scores stand at inactive positions
            before = progress.exit.mask.numpy()
            np.copyto(decided, progress.exit.decided.numpy(), where=~under)
        mask = yield from exits.next_mask(self.pool, grid, masking, index, active=under, before=before)
        image_height, image_width = seen(self.config, progress.frame, progress.shape)
        active_share = np.count_nonzero(mask[:image_height, :image_width]) / (image_height * image_width)
        macs = progress.macs + self._macs(index, progress)
        found = Exit(index, grid, torch.from_numpy(decided), torch.from_numpy(mask), active_share, round(macs))
        follows = self.config.masks_after(index)
        return replace(
            progress,
            exit=found,
            macs=macs,
            mask=mask if follows else None,
            shrinking=masking.shrinks if follows else progress.shrinking,
        )

    def _macs(self, index: int, progress: SparseProgress) -> float:
        """Multiply-adds of the stage that ends at exit `index`, under its mask."""
        finest = progress.shape[0] // STRIDE
        return sum(
            cost.macs(progress.geometry.active_share(FINEST + (finest // size[0]).bit_length() - 1))
            for (size, _), cost in self._costs(progress.shape)[index - 1].items()
        )


def _at_stride(shape: Size) -> Size:
    """The size of the scores for an input of `shape`."""
    height, width = shape
    return height // STRIDE, width // STRIDE
