"""From lowered steps to native programs: weights packed, matrices placed, row loops cut into blocks.

A program belongs to an instruction set and is shared by all requests; what differs between requests is a context.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.isa import Isa
from models.executors.cpu.lowering import LoweredStep
from models.executors.cpu.memory import Value
from models.executors.cpu.ops import Op, Resampling, RowLoop
from models.executors.cpu.placement import place
from models.executors.cpu.structures import (
    LoopDomain,
    NativeMatrix,
    NativeOp,
    NativePhase,
    NativeProgram,
    NativeRowLoop,
    NativeTileCosts,
    OpKind,
    RowDomain,
)
from models.executors.cpu.winograd import tiled

REGISTER_ROWS = 24
"""A multiple of the rows that any kernel accumulates together (4, 6, 8 or 12)."""
MAX_BLOCK_ROWS = 4 * REGISTER_ROWS
TRANSFORMED_FLOATS = 84_000
"""Transformed sources of one block of tiles, so that they stay in a core's cache: as many as 24 tiles of 4x4 have at 96
channels."""
MAX_BLOCK_ROWS_U8 = 4 * MAX_BLOCK_ROWS
"""The same for a convolution of u8, whose rows take a quarter of the memory and of the time."""
BLOCK_BYTES_U8 = 32 * 1024
"""Rows of such a block, those that it reads and those that it writes, so that they stay in a core's cache."""
ITEM_MACS = 10_000_000
"""Multiply-adds that a thread should take at once: about 0.1 ms of one core."""
U8_MACS = 4
"""Multiply-adds of u8 that take as long as one of float32."""


class StepProgram:
    """One step of a network.

    `outputs`: the matrices that it leaves in a request's own memory. `used_classes`: the number of distance classes
    that have a weight in any of its interpolations. `on_tiles`: whether any of its loops runs on tiles. `descriptions`:
    what each phase does. `macs`: multiply-adds of the convolutions of each phase at one active position, by level.
    """

    def __init__(
        self,
        lowered: LoweredStep,
        isa: Isa,
        resamplings: dict[Resampling, int],
        tile_costs: Sequence[NativeTileCosts],
    ) -> None:
        """`resamplings`: the number of each resampling of the network, to which the step adds its own. `tile_costs`:
        those of each level."""
        self._isa = isa
        self._arrays: list[NDArray[np.generic]] = []
        phases = [phase for phase in lowered.phases if phase]
        features = (*lowered.inputs, *lowered.outputs)
        placed, self._slot_of = place(phases, features)
        self.outputs = lowered.outputs
        self.descriptions = [", ".join(dict.fromkeys(str(op) for loop in phase for op in loop.ops)) for phase in phases]
        self.macs = [_macs(phase) for phase in phases]
        size, self.used_classes, self.on_tiles = 0, 0, False
        matrices: list[NativeMatrix] = []
        for matrix in placed:
            feature = features.index(matrix) if matrix in features else -1
            scratch = size if matrix.scratch else -1
            size += matrix.row_bytes * MAX_BLOCK_ROWS if matrix.scratch else 0
            matrices.append(NativeMatrix(matrix.level, matrix.domain, matrix.row_bytes, feature, scratch))
        native_phases: list[NativePhase] = []
        loops: list[NativeRowLoop] = []
        ops: list[NativeOp] = []
        for phase in phases:
            parts = [part for loop in phase for part in tiled(loop, tile_costs[loop.level])]
            self.on_tiles |= any(loop.domain == LoopDomain.SINGLES for loop in parts)
            blocked = [(*_blocking(loop, isa), loop) for loop in parts]
            # Costly items first, so that cheap ones even out the end of the phase.
            blocked.sort(key=lambda item: -item[0] * item[1] // item[2])
            native_phases.append(NativePhase(len(loops), len(blocked)))
            for cost, block_rows, groups, loop in blocked:
                size = max(size, 4 * _transformed_floats(loop, block_rows, isa))
                loops.append(NativeRowLoop(loop.level, loop.domain, len(ops), len(loop.ops), block_rows, groups, cost))
                every = [part for op in loop.ops for part in (op, *op.parts)]
                loops[-1].op_count = len(every)
                ops += [self._op(op, resamplings) for op in every]
        self.native = NativeProgram(
            (NativePhase * len(native_phases))(*native_phases),
            (NativeRowLoop * len(loops))(*loops),
            (NativeOp * len(ops))(*ops),
            (NativeMatrix * len(matrices))(*matrices),
            len(native_phases),
            len(matrices),
            size,
        )

    def _op(self, op: Op, resamplings: dict[Resampling, int]) -> NativeOp:
        weights, channels, scales, first_sums, shift = 0, 0, None, None, op.shift
        if op.convolution is not None and op.kind == OpKind.CONVOLVE_U8:
            quantised = op.convolution.quantised()
            channels = quantised.shape[1]
            weights = self._keep(self._isa.pack_u8(quantised))
            steps = 1 / op.target.scale if op.target.scale else 1  # in a value of 1 of the target
            scales = (op.source.scale * steps * op.convolution.weight_steps.astype(np.float64)).astype(np.float32)
            first_sums = self._isa.first_sums(quantised)
            added = sum((x * np.float64(steps) for x in (op.bias, op.shift) if x is not None), np.zeros(op.channels))
            shift = added.astype(np.float32)
        elif op.convolution is not None and op.kind != OpKind.INTERPOLATE:
            channels = op.convolution.weights.shape[1]
            weights = self._keep(self._isa.pack(op.convolution.weights))
        elif op.convolution is not None and op.convolution.halo_weights is not None:
            weights = self._keep(op.convolution.halo_weights)
            self.used_classes = max(self.used_classes, int(np.count_nonzero(op.convolution.halo_weights)))
        number = len(resamplings) if op.resampling is None else resamplings.setdefault(op.resampling, len(resamplings))
        return NativeOp(
            kind=op.kind,
            source=self._slot_of[op.source],
            target=self._slot_of[op.target],
            residual=-1 if op.residual is None else self._slot_of[op.residual],
            pre_activation=-1 if op.pre_activation is None else self._slot_of[op.pre_activation],
            source_level=op.source.level,
            from_previous=op.from_previous,
            addressing=op.addressing,
            stride=op.stride,
            taps=1 if op.convolution is None else len(op.convolution.weights),
            resampling=number,
            parts=1 + len(op.parts),
            in_channels=channels,
            out_channels=op.channels,
            target_column=op.column,
            scatter=op.target.domain == RowDomain.ALL_POSITIONS,
            relu=op.relu,
            source_scale=op.source.scale,
            target_scale=op.target.scale,
            residual_scale=0 if op.residual is None else op.residual.scale,
            weights=weights,
            bias=self._vector(op.bias),
            shift=self._vector(shift),
            scales=self._vector(scales),
            first_sums=self._vector(first_sums),
        )

    def _vector(self, values: NDArray[Value] | None) -> int:
        """The address of one value a channel; 0 for None."""
        return 0 if values is None else self._keep(self._isa.pad_vector(values))

    def _keep(self, values: NDArray[Value]) -> int:
        """The address of `values`, which live as long as the program."""
        self._arrays.append(values)
        return int(values.ctypes.data)


def _macs(phase: Sequence[RowLoop]) -> dict[int, int]:
    found: dict[int, int] = {}
    for loop in phase:
        for op in loop.ops:
            if op.convolution is not None and op.kind != OpKind.INTERPOLATE:
                found[loop.level] = found.get(loop.level, 0) + op.convolution.weights.size
    return found


def _blocking(loop: RowLoop, isa: Isa) -> tuple[int, int, int]:
    """Cost of one row (or tile) in multiply-adds of float32, rows of a block, and channel groups. An item is one group
    of one block.

    Where a convolution has many weights, an item takes some channels of many rows rather than all channels of few rows,
    so that weights are read less often. A block of tiles has one group, so that its sources are transformed once.
    """
    per_row = sum(_cost(op) for op in loop.ops)
    op, groups, least, most, limit = loop.ops[0], 1, REGISTER_ROWS // 2, MAX_BLOCK_ROWS, MAX_BLOCK_ROWS
    if any(op.kind == OpKind.CONVOLVE_U8 for op in loop.ops):
        limit = MAX_BLOCK_ROWS_U8 if len(loop.ops) == 1 else MAX_BLOCK_ROWS
        most = min(limit, max(REGISTER_ROWS, BLOCK_BYTES_U8 // _row_bytes(loop)))
    if op.kind == OpKind.WINOGRAD and op.convolution is not None:
        points, channels, _ = op.convolution.weights.shape
        least, most = REGISTER_ROWS, TRANSFORMED_FLOATS // (points * channels)
    elif op.kind in (OpKind.CONVOLVE, OpKind.CONVOLVE_U8) and len(loop.ops) == 1:
        groups = min(len(isa.panels(op.channels)), max(1, per_row * most // ITEM_MACS))
    rows = min(most, ITEM_MACS * groups // per_row) // (REGISTER_ROWS // 2) * (REGISTER_ROWS // 2)
    block_rows = min(max(least, rows), limit)
    return per_row, block_rows, groups


def _row_bytes(loop: RowLoop) -> int:
    """Bytes of one row in all matrices that a loop uses, together."""
    used = {matrix.first for op in loop.ops for matrix in op.matrices}
    return sum(matrix.row_bytes for matrix in used)


def _cost(op: Op) -> int:
    """The cost of one row (or tile), in multiply-adds of float32."""
    if op.convolution is None or op.kind == OpKind.INTERPOLATE:
        return 16 * op.channels * (1 + len(op.parts))
    macs = op.convolution.weights.size
    return -(-macs // U8_MACS) if op.kind == OpKind.CONVOLVE_U8 else macs


def _transformed_floats(loop: RowLoop, block_rows: int, isa: Isa) -> int:
    """Scratch for a block of tiles: its transformed sources and the products of one panel, see native/winograd.h."""
    op = loop.ops[0]
    if op.kind != OpKind.WINOGRAD or op.convolution is None:
        return 0
    points, channels, _ = op.convolution.weights.shape
    return int(points * (block_rows * (-(-channels // isa.lanes) + isa.panel_vectors) * isa.lanes + 32))
