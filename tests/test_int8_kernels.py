"""Ops in eight bits against plain integers, for every instruction set of this machine."""

import math
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from test_sparse import SHAPES, mask

from models.executors.cpu.geometry import Geometry, GeometryFactory
from models.executors.cpu.isa import Isa
from models.executors.cpu.layers import Convolution, distance_classes
from models.executors.cpu.library import library
from models.executors.cpu.lowering import LoweredStep
from models.executors.cpu.memory import empty
from models.executors.cpu.ops import Matrix, Op, Resampling, RowLoop, convolve, resample, with_halo
from models.executors.cpu.program import StepProgram
from models.executors.cpu.resampling import resampling_taps
from models.executors.cpu.structures import LEVELS, LoopDomain, NativeContext, OpKind, RowDomain
from models.executors.cpu.thread_pool import ThreadPool
from models.executors.cpu.winograd import tile_costs

ISAS = ("portable", "neon", "neondot", "avx2", "avxvnni", "avx512", "avx512vnni")
WINDOW = 5
CASES = 60
"""Random convolutions for each instruction set; all of them run at least 200."""

Dense = NDArray[np.generic]
"""(height, width, channels) of one level."""


@dataclass
class Request:
    """Values of all positions by matrix, of which a program sees those of the rows that a geometry has."""

    previous: Geometry
    geometry: Geometry
    values: dict[Matrix, Dense]


def isas() -> list[str]:
    return [name for name in ISAS if library().kernels_find(name.encode())]


def geometries(
    random: np.random.Generator, height: int, width: int, shape: str, factory: GeometryFactory
) -> tuple[Geometry, Geometry]:
    """Of a mask and of one within it."""
    outer = mask(SHAPES[random.integers(len(SHAPES))], height, width, random)
    inner = outer & mask(shape, height, width, random)
    full = bool(random.integers(2))
    found = factory.under(outer, full_halo=full), factory.under(inner, full_halo=full)
    assert all(geometry.build() for geometry in found)
    return found


def positions(geometry: Geometry, matrix: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    level = geometry.level(matrix.level)
    if not level.needed_rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    yx = np.ctypeslib.as_array(level.yx, (level.needed_rows, 2)).astype(np.int64)
    return yx[:, 0], yx[:, 1]


def run(lowered: LoweredStep, requests: Sequence[Request], isa: str, threads: int = 2) -> list[list[Dense]]:
    """The rows of every output of each request, (needed rows, channels)."""
    numbers: dict[Resampling, int] = {}
    program = StepProgram(lowered, Isa.find(isa), numbers, [tile_costs(16)] * LEVELS)
    contexts = (NativeContext * len(requests))()
    alive: list[object] = []
    found: list[list[Dense]] = []
    for context, request in zip(contexts, requests, strict=True):
        memory = []
        for matrix in (*lowered.inputs, *lowered.outputs):
            before = matrix in lowered.inputs and any(
                op.from_previous and op.source is matrix
                for phase in lowered.phases
                for loop in phase
                for op in loop.ops
            )
            y, x = positions(request.previous if before else request.geometry, matrix)
            buffer = empty((1 + len(y)) * matrix.row_bytes)
            buffer[:] = 0x7E
            if matrix in lowered.inputs:
                rows(buffer, matrix)[1:, : matrix.channels] = request.values[matrix][y, x]
            memory.append(buffer)
        level = request.geometry.level(2)
        taps, arrays = resampling_taps(tuple(numbers), (4 * level.height, 4 * level.width))
        pointers = (c_void_p * len(memory))(*(buffer.ctypes.data for buffer in memory))
        context.geometry, context.previous = request.geometry.native, request.previous.native
        context.features, context.resamplings = pointers, taps
        alive += [memory, taps, arrays, pointers]
        found.append(
            [rows(b, m)[1:, : m.channels] for b, m in zip(memory, lowered.inputs + lowered.outputs, strict=True)]
        )
    pool = ThreadPool(threads)
    lib = library()
    workspace = empty(lib.program_workspace_bytes(pool.native, program.native, contexts, len(requests)))
    workspace[:] = 0x7E
    kernels = Isa.find(isa).kernels
    begun = lib.program_begin(
        pool.native, kernels, program.native, contexts, len(requests), workspace.ctypes.data, None
    )
    assert lib.program_run(pool.native, begun, math.inf) == 1
    lib.program_free(begun)
    return [each[len(lowered.inputs) :] for each in found]


def rows(buffer: NDArray[np.uint8], matrix: Matrix) -> Dense:
    shaped = buffer.reshape(-1, matrix.row_bytes)
    return shaped if matrix.scale else shaped.view(np.float32)


def convolved(x: NDArray[np.integer], weights: NDArray[np.integer], stride: int) -> NDArray[np.int64]:
    """Plain integers: (h, w, in) and (taps, in, out) -> (h / stride, w / stride, out)."""
    height, width = x.shape[0] // stride, x.shape[1] // stride
    found = np.zeros((height, width, weights.shape[2]), np.int64)
    padded = np.pad(x.astype(np.int64), ((1, 1), (1, 1), (0, 0)))
    for tap, matrix in enumerate(weights.astype(np.int64)):
        y, x0 = (1, 1) if len(weights) == 1 else divmod(tap, 3)
        shifted = padded[y : y + stride * (height - 1) + 1 : stride, x0 : x0 + stride * (width - 1) + 1 : stride]
        found += shifted @ matrix
    return found


@dataclass
class Layer:
    """A random convolution. `exact`: its scales are 1 and its target float32, so that the result is the sums."""

    op: Op
    exact: bool

    @classmethod
    def draw(cls, random: np.random.Generator) -> "Layer":
        taps, stride = (1, 1) if random.random() < 0.4 else (9, int(random.integers(1, 3)))
        channels, out = int(random.integers(1, 71)), int(random.integers(1, 140))
        level = int(random.integers(2 + (stride == 2), LEVELS))
        exact, biased, shifted, masked, from_previous = random.random(5) < 0.5
        steps = np.ones(out, np.float32) if exact else random.uniform(0.001, 0.01, out).astype(np.float32)
        halo = np.exp(-0.4 * np.array(distance_classes(WINDOW))).astype(np.float32)
        conv = Convolution(
            "layer",
            (random.integers(-127, 128, (taps, channels, out)) * steps).astype(np.float32),
            random.normal(0, 5, out).astype(np.float32) if biased and not exact else None,
            random.normal(0, 5, out).astype(np.float32) if shifted and not exact else None,
            halo / halo.sum() if masked else None,
            steps,
        )
        source = Matrix(level - (stride == 2), channels, scale=1.0 if exact else 0.05)
        target = Matrix(level, out, scale=0.0 if exact else random.choice([0.3, 0.3, 0.0]))
        residual = random.choice([None, Matrix(level, out), Matrix(level, out, scale=0.2)])
        op = convolve(
            conv,
            source,
            target,
            stride=stride,
            residual=None if exact else residual,
            relu=not exact,
            from_previous=bool(from_previous),
        )
        return cls(of_kind(op, OpKind.CONVOLVE_U8), bool(exact))

    @property
    def conv(self) -> Convolution:
        assert self.op.convolution is not None
        return self.op.convolution

    def lowered(self) -> LoweredStep:
        loop = RowLoop(self.op.target.level, LoopDomain.ACTIVE, (self.op,))
        inputs = (self.op.source,) if self.op.residual is None else (self.op.source, self.op.residual)
        return LoweredStep(inputs, (self.op.target,), with_halo(self.conv, loop))

    def expected(self, request: "Request") -> Dense:
        """The rows before rounding, float64 (rows, out): of active positions, and of the halo if it is masked."""
        op, conv = self.op, self.conv
        y, x = positions(request.geometry, op.target)
        actives = request.geometry.level(op.target.level).active_rows
        sums = convolved(request.values[op.source], np.rint(conv.weights / conv.weight_steps), op.stride)
        before = sums * (op.source.scale * conv.weight_steps.astype(np.float64)) + (
            0 if conv.bias is None else conv.bias
        )
        found = before[y[:actives], x[:actives]]
        if conv.halo_weights is not None:
            found = np.concatenate([found, interpolated(found, y, x, conv.halo_weights)])
        found += 0 if conv.shift is None else conv.shift
        if op.residual is not None:
            added = request.values[op.residual][y, x].astype(np.float64) * (op.residual.scale or 1)
            found += added[: len(found)]
        return found


def check(layer: Layer, found: Dense, expected: Dense, actives: int) -> None:
    found = found[: len(expected)]
    scale = layer.op.target.scale
    if layer.exact:
        np.testing.assert_array_equal(found[:actives], expected[:actives].astype(np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2)
    elif scale:
        off = np.abs(found.astype(np.int64) - np.rint(np.clip(expected / scale, 0, 255)))
        assert off.max(initial=0) <= 1
        assert np.count_nonzero(off) <= 1 + off.size // 200
    else:
        np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-4, atol=1e-3)


def case(seed: int, isa: str) -> None:
    """One convolution of random size, share, channels and epilogue, for one or two requests."""
    random = np.random.default_rng(seed)
    height, width = (8 * random.integers(1, 5, 2)).tolist()
    factory = GeometryFactory(WINDOW, len(distance_classes(WINDOW)), [tile_costs(16)] * LEVELS)
    layer = Layer.draw(random)
    lowered = layer.lowered()
    requests = []
    for _ in range(int(random.integers(1, 3))):
        previous, geometry = geometries(random, height, width, SHAPES[seed % len(SHAPES)], factory)
        values = {matrix: dense(random, height, width, matrix) for matrix in lowered.inputs}
        requests.append(Request(previous, geometry, values))
    results = run(lowered, requests, isa, threads=int(random.integers(1, 4)))
    for request, (found,) in zip(requests, results, strict=True):
        actives = request.geometry.level(layer.op.target.level).active_rows
        check(layer, found, layer.expected(request), actives)


def of_kind(op: Op, kind: OpKind) -> Op:
    return replace(op, kind=kind)


def dense(random: np.random.Generator, height: int, width: int, matrix: Matrix) -> Dense:
    shape = (height >> (matrix.level - 2), width >> (matrix.level - 2), matrix.channels)
    if not matrix.scale:
        return random.normal(0, 3, shape).astype(np.float32)
    return random.choice([0, 1, 254, 255, *range(256)], shape).astype(np.uint8)


def interpolated(
    active: NDArray[np.float64], y: NDArray[np.int64], x: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The halo rows: weighted sums of the active positions in the window. `active`: their values, (active rows, out);
    `y`, `x`: of all rows."""
    reach, count, distances = WINDOW // 2, len(active), distance_classes(WINDOW)
    grid = np.zeros((y.max(initial=0) + 2 * reach + 1, x.max(initial=0) + 2 * reach + 1, active.shape[1]))
    grid[y[:count] + reach, x[:count] + reach] = active
    total = np.zeros((len(y) - count, active.shape[1]))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dy or dx:
                weight = float(weights[distances.index(dy * dy + dx * dx)])
                total += weight * grid[y[count:] + reach + dy, x[count:] + reach + dx]
    return total


@pytest.mark.parametrize("isa", ISAS)
def test_random_convolutions_are_those_of_plain_integers(isa: str) -> None:
    if isa not in isas():
        pytest.skip(f"this machine has no {isa} kernels")
    for seed in range(CASES):
        case(1000 * ISAS.index(isa) + seed, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_sums_do_not_saturate(isa: str) -> None:
    if isa not in isas():
        pytest.skip(f"this machine has no {isa} kernels")
    factory = GeometryFactory(3, 2, [tile_costs(16)] * LEVELS)
    geometry = factory.all_active((8, 8))
    assert geometry.build()
    for sign in (1, -1):
        weights = np.full((9, 384, 24), sign * 127.0, np.float32)
        conv = Convolution("layer", weights, None, None, None, np.ones(24, np.float32))
        source, target = Matrix(2, 384, scale=1.0), Matrix(2, 24)
        op = of_kind(convolve(conv, source, target, relu=False), OpKind.CONVOLVE_U8)
        lowered = LoweredStep((source,), (target,), [[RowLoop(2, LoopDomain.ACTIVE, (op,))]])
        values = {source: np.full((8, 8, 384), 255, np.uint8)}
        [[found]] = run(lowered, [Request(geometry, geometry, values)], isa)
        inner = found.reshape(8, 8, 24)[1:-1, 1:-1]
        assert (inner == np.float32(sign * 9 * 384 * 255 * 127)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [8, 16, 24, 64, 72])
def test_bytes_saturate_and_what_is_no_number_becomes_0(isa: str, channels: int) -> None:
    """Whatever the width of a panel, and so the way in which it is stored."""
    if isa not in isas():
        pytest.skip(f"this machine has no {isa} kernels")
    geometry = GeometryFactory(3, 2, [tile_costs(16)] * LEVELS).all_active((8, 8))
    assert geometry.build()
    cases = {
        math.nan: 0,
        -math.inf: 0,
        -1e10: 0,
        -0.6: 0,
        0.4: 0,
        2.5: 2,
        254.4: 254,
        255.6: 255,
        1e10: 255,
        math.inf: 255,
    }
    shift = np.resize(np.array(list(cases), np.float32), channels)
    conv = Convolution(
        "layer", np.zeros((1, 4, channels), np.float32), None, shift, None, np.ones(channels, np.float32)
    )
    source, target = Matrix(2, 4, scale=1.0), Matrix(2, channels, scale=1.0)
    op = of_kind(convolve(conv, source, target), OpKind.CONVOLVE_U8)
    lowered = LoweredStep((source,), (target,), [[RowLoop(2, LoopDomain.ACTIVE, (op,))]])
    [[found]] = run(lowered, [Request(geometry, geometry, {source: np.zeros((8, 8, 4), np.uint8)})], isa)
    np.testing.assert_array_equal(found, np.broadcast_to(np.resize(list(cases.values()), channels), found.shape))


@pytest.mark.parametrize("isa", ISAS)
def test_resampling_of_bytes(isa: str) -> None:
    if isa not in isas():
        pytest.skip(f"this machine has no {isa} kernels")
    factory = GeometryFactory(WINDOW, 3, [tile_costs(16)] * LEVELS)
    for seed in range(12):
        random = np.random.default_rng(seed)
        _, geometry = geometries(random, 32, 24, "blobs", factory)
        channels = int(random.integers(1, 60))
        source, target = Matrix(3, channels, scale=0.25), Matrix(2, channels, scale=0.5)
        plain = Matrix(2, channels)
        loops = [RowLoop(2, LoopDomain.ACTIVE, (resample("nearest", source, t),)) for t in (target, plain)]
        values = {source: dense(random, 32, 24, source)}
        [[found, floats]] = run(
            LoweredStep((source,), (target, plain), [loops]), [Request(geometry, geometry, values)], isa
        )
        y, x = (axis[: geometry.level(2).active_rows] for axis in positions(geometry, target))
        taken = values[source][y // 2, x // 2]
        np.testing.assert_array_equal(found[: len(y)], np.rint(taken * 0.5))  # halves to the nearest even
        np.testing.assert_array_equal(floats[: len(y)], taken * np.float32(0.25))


@pytest.mark.parametrize("isa", ISAS)
def test_copies_take_the_rows_of_a_mask_to_those_of_the_next(isa: str) -> None:
    if isa not in isas():
        pytest.skip(f"this machine has no {isa} kernels")
    factory = GeometryFactory(WINDOW, 3, [tile_costs(16)] * LEVELS)
    random = np.random.default_rng(0)
    previous, geometry = geometries(random, 32, 24, "blobs", factory)
    source, target = Matrix(2, 18, scale=0.25), Matrix(2, 18, scale=0.25)
    op = resample("same", source, target, from_previous=True)
    copy = of_kind(op, OpKind.COPY)
    lowered = LoweredStep((source,), (target,), [[RowLoop(2, LoopDomain.NEEDED, (copy,))]])
    values = {source: dense(random, 32, 24, source)}
    [[found]] = run(lowered, [Request(previous, geometry, values)], isa)
    y, x = positions(geometry, target)
    np.testing.assert_array_equal(found, values[source][y, x])


def test_u8_rows_are_aligned_and_float_rows_are_as_wide_as_vectors() -> None:
    assert [Matrix(2, channels, scale=1.0).row_bytes for channels in (1, 16, 17, 18, 144)] == [16, 16, 32, 32, 144]
    assert [Matrix(2, channels).row_bytes for channels in (1, 8, 18)] == [32, 32, 96]
    assert [Matrix(0, 3, RowDomain.PADDED_PIXELS, scale=scale).row_bytes for scale in (0.0, 1.0)] == [12, 3]
