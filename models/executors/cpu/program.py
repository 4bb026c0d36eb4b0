"""From lowered steps to programs in the native layout: weights packed, matrices given slots, jobs cut into blocks.

A program belongs to an instruction set and is shared by all requests; what differs between them is a context.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from models.executors.cpu import library as native
from models.executors.cpu.library import CONVOLVE, INTERPOLATE, WINOGRAD, Floats
from models.executors.cpu.lowering import Lowered
from models.executors.cpu.memory import aligned
from models.executors.cpu.ops import ROW_MULTIPLE, Job, Matrix, Op, Resampling, Stages, padded
from models.executors.cpu.winograd import tiled

HOLDS = {"needed": 0, "active": 1, "positions": 2, "pixels": 3}  # `Holds` in native.h, by a matrix's rows
TILES = 24  # a multiple of every kernel's rows in registers (4, 6, 8 and 12)
BLOCK_ROWS = 4 * TILES
# Of a block of tiles: they stay in a core's cache. As many as 24 tiles of 4x4 have at 96 channels.
TRANSFORMED_FLOATS = 84_000
ITEM_MACS = 10_000_000  # about 0.1 ms of one core: what a thread should take at once


@dataclass(frozen=True)
class Isa:
    """An instruction set: its kernels, floats in a vector, vectors in a panel of packed weights."""

    kernels: int
    name: str
    lanes: int
    panel: int

    @classmethod
    def find(cls, name: str | None = None) -> "Isa":
        """The best of this machine, or the one called `name`. Raises ValueError if the machine lacks it."""
        lib = native.library()
        kernels = lib.kernels_find(None if name is None else name.encode())
        if not kernels:
            raise ValueError(f"this machine has no {name} kernels; leave the name out for the best that it has")
        return cls(kernels, lib.kernels_name(kernels).decode(), lib.kernels_lanes(kernels), lib.kernels_panel(kernels))

    def panels(self, channels: int) -> list[slice]:
        """How output channels are cut into panels, each a whole number of vectors."""
        vectors = -(-padded(channels) // self.lanes)
        count = -(-vectors // self.panel)
        edges = [vectors * i // count * self.lanes for i in range(count + 1)]
        return [slice(*pair) for pair in pairwise(edges)]

    def packed(self, weights: Floats) -> Floats:
        """(taps, in, out) -> [panel][tap][in][out of the panel], zeros where the last vector is cut."""
        panels = self.panels(weights.shape[2])
        whole = np.pad(weights, ((0, 0), (0, 0), (0, panels[-1].stop - weights.shape[2])))
        return aligned(np.concatenate([whole[:, :, panel].ravel() for panel in panels]))

    def vector(self, values: Floats) -> Floats:
        """One value a channel, zeros up to the end of the row and of its last vector."""
        return aligned(np.pad(values, (0, -values.size % max(self.lanes, ROW_MULTIPLE))))


class StepProgram:
    """One step of a network.

    `outputs`: what it leaves of each request. `near`: classes of distance that weigh anything in an interpolation.
    `prices`: of the tiles of every level.
    """

    def __init__(
        self, lowered: Lowered, isa: Isa, resamplings: dict[Resampling, int], prices: Sequence[native.Prices]
    ) -> None:
        self._isa = isa
        self._arrays: list[Floats] = []
        stages = [stage for stage in lowered.stages if stage]
        features = (*lowered.inputs, *lowered.outputs)
        placed, self._place = _placed(stages, features)
        self.outputs = lowered.outputs
        floats, self.near = 0, 0
        matrices: list[native.Matrix] = []
        for matrix in placed:
            feature = features.index(matrix) if matrix in features else -1
            scratch = floats if matrix.rows == "scratch" else -1
            floats += matrix.stride * BLOCK_ROWS if matrix.rows == "scratch" else 0
            holds = HOLDS.get(matrix.rows, 0)
            matrices.append(native.Matrix(matrix.level, holds, matrix.stride, feature, scratch))
        passes: list[native.Pass] = []
        jobs: list[native.Job] = []
        ops: list[native.Op] = []
        for stage in stages:
            # Long blocks first, so that short ones fill the end of the pass.
            parts = (part for job in stage for part in tiled(job, prices[job.level]))
            cut = sorted(((*_cut(job, isa), job) for job in parts), key=lambda item: -item[0] * item[1] // item[2])
            passes.append(native.Pass(len(jobs), len(cut)))
            for cost, block, groups, job in cut:
                floats = max(floats, _transformed_floats(job, block, isa))
                jobs.append(native.Job(job.level, job.rows, len(ops), len(job.ops), block, groups, cost))
                ops += [self._op(op, resamplings) for op in job.ops]
        self.native = native.Program(
            (native.Pass * len(passes))(*passes),
            (native.Job * len(jobs))(*jobs),
            (native.Op * len(ops))(*ops),
            (native.Matrix * len(matrices))(*matrices),
            len(passes),
            len(matrices),
            floats,
        )

    def _op(self, op: Op, resamplings: dict[Resampling, int]) -> native.Op:
        weights, channels = 0, 0
        if op.convolution is not None and op.kind != INTERPOLATE:
            channels = op.convolution.weights.shape[1]
            weights = self._keep(self._isa.packed(op.convolution.weights))
        elif op.convolution is not None and op.convolution.classes is not None:
            weights = self._keep(op.convolution.classes)
            self.near = max(self.near, int(np.count_nonzero(op.convolution.classes)))
        number = len(resamplings) if op.resampling is None else resamplings.setdefault(op.resampling, len(resamplings))
        return native.Op(
            kind=op.kind,
            source=self._place[op.source],
            target=self._place[op.target],
            residual=-1 if op.residual is None else self._place[op.residual],
            kept=-1 if op.kept is None else self._place[op.kept],
            source_level=op.source.level,
            previous=op.previous,
            lookup=op.lookup,
            step=op.step,
            taps=1 if op.convolution is None else len(op.convolution.weights),
            resampling=number,
            in_=channels,
            out=op.channels,
            column=op.column,
            scatter=op.target.rows == "positions",
            relu=op.relu,
            weights=weights,
            bias=0 if op.bias is None else self._keep(self._isa.vector(op.bias)),
            shift=0 if op.shift is None else self._keep(self._isa.vector(op.shift)),
        )

    def _keep(self, values: Floats) -> int:
        self._arrays.append(values)
        return int(values.ctypes.data)


def _placed(stages: Stages, fixed: Sequence[Matrix]) -> tuple[list[Matrix], dict[Matrix, int]]:
    """A slot for every matrix; working memory is shared by matrices of one shape that are never alive together."""
    slots: list[Matrix] = []
    place: dict[Matrix, int] = {}
    for matrix in fixed:
        if matrix not in place:
            place[matrix] = len(slots)
            slots.append(matrix)
    uses = [_matrices(stage) for stage in stages]
    last = {matrix: index for index, used in enumerate(uses) for matrix in used}
    free: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for index, used in enumerate(uses):
        for matrix in used:
            if matrix in place:
                continue
            shape = (matrix.level, matrix.stride, matrix.rows)
            if free[shape]:
                place[matrix] = free[shape].pop()
            else:
                place[matrix] = len(slots)
                slots.append(matrix)
        for matrix in used:
            if last[matrix] == index and matrix not in fixed:
                free[matrix.level, matrix.stride, matrix.rows].append(place[matrix])
    return slots, place


def _matrices(stage: Sequence[Job]) -> list[Matrix]:
    """What a stage touches, each once, in order."""
    every = (
        matrix
        for job in stage
        for op in job.ops
        for matrix in (op.source, op.target, op.residual, op.kept)
        if matrix is not None
    )
    return list(dict.fromkeys(every))


def _transformed_floats(job: Job, block: int, isa: Isa) -> int:
    """Scratch for a block of tiles: its transformed rows and the products of one panel."""
    op = job.ops[0]
    if op.kind != WINOGRAD or op.convolution is None:
        return 0
    points, channels, _ = op.convolution.weights.shape
    return int(points * (block * (-(-channels // isa.lanes) + isa.panel) * isa.lanes + 32))


def _cut(job: Job, isa: Isa) -> tuple[int, int, int]:
    """Multiply-adds of one row (or tile), rows of a block, and groups of channels: an item is a block of one group.

    Where weights are many, an item takes some channels of many rows rather than all channels of a few. Of tiles it
    takes all, so that they are transformed once.
    """
    per_row = sum(
        op.convolution.weights.size if op.convolution is not None and op.kind != INTERPOLATE else 16 * op.channels
        for op in job.ops
    )
    op, groups, least, most = job.ops[0], 1, TILES // 2, BLOCK_ROWS
    if op.kind == WINOGRAD and op.convolution is not None:
        points, channels, _ = op.convolution.weights.shape
        least, most = TILES, TRANSFORMED_FLOATS // (points * channels)
    elif op.kind == CONVOLVE and len(job.ops) == 1:
        groups = min(len(isa.panels(op.channels)), max(1, per_row * most // ITEM_MACS))
    rows = min(most, ITEM_MACS * groups // per_row) // (TILES // 2) * (TILES // 2)
    block = min(max(least, rows), BLOCK_ROWS)
    return per_row, block, groups
