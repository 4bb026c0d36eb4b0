"""The sparse executor gives what the reference gives: any mask, size and configuration, every instruction set."""

import ctypes
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import State, run, score_difference
from models.executors.cpu import memory, structures
from models.executors.cpu.executor import SparseExecutor
from models.executors.cpu.geometry import GeometryFactory
from models.executors.cpu.isa import Isa
from models.executors.cpu.library import library
from models.executors.cpu.memory import HUGE_PAGE, KEEP_S, LARGE, PAGE, Buffers, CachingAllocator, empty, touch
from models.executors.cpu.resampling import axis_taps
from models.executors.cpu.structures import LEVELS, NativeTileCosts
from models.executors.cpu.winograd import tile_costs
from models.executors.reference import ReferenceExecutor
from models.executors.selection import build
from models.imaging.geometry import Frame
from models.network.adpc import AdpcNet
from models.network.configs import Criterion, Masking, ModelConfig

MASKED = replace(tiny.SEGMENTATION, masking=Masking("max_probability", 0.998))
WIDE = replace(MASKED, backbone=replace(tiny.BACKBONE, width=18))  # panels of several vectors, both Winograd tiles
CONFIGS = {
    "segmentation": MASKED,
    "pose": replace(tiny.POSE, masking=Masking("max_score", 0.002)),
    "wide": WIDE,
    "deep": replace(MASKED, backbone=replace(tiny.BACKBONE, layer1_blocks=2, modules=(1, 2, 2), blocks=2)),
    "plain heads": replace(MASKED, heads="plain"),
    "plain pose": replace(tiny.POSE, heads="plain", masking=Masking("max_score", 0.002, window=3)),
    "window 9, D = 3/3/3": replace(
        MASKED, masking=Masking("max_probability", 0.998, window=9), downsamplings=(3, 3, 3)
    ),
    "window 5, D = 1/1/1": replace(MASKED, masking=Masking("entropy", 0.01, window=5), downsamplings=(1, 1, 1)),
}
SIZES = [(32, 32), (32, 96), (64, 64), (96, 32), (96, 160), (160, 64)]
SHAPES = ("share", "blobs", "stripes", "pixel", "corner", "border", "empty", "full")


@cache
def network(name: str) -> AdpcNet:
    return tiny.network(CONFIGS[name])


@cache
def executors(name: str) -> tuple[SparseExecutor, ReferenceExecutor]:
    return SparseExecutor(network(name), threads=2), ReferenceExecutor(network(name))


def mask(shape: str, height: int, width: int, random: np.random.Generator) -> NDArray[np.bool_]:
    found = np.zeros((height, width), bool)
    match shape:
        case "share":
            found = random.random((height, width)) < random.random()
        case "blobs":
            found = random.random((height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width] < 0.4
        case "stripes":
            found[:: random.integers(2, 7)] = True
            found = found if random.random() < 0.5 else np.resize(found.T, (height, width))
        case "pixel":
            found[random.integers(height), random.integers(width)] = True
        case "corner":
            found[-1, -1] = True
        case "border":
            found[0] = found[:, 0] = found[-1] = found[:, -1] = True
        case "full":
            found[:] = True
    return found


def masks(height: int, width: int, random: np.random.Generator, *, shrinking: bool) -> list[Tensor]:
    """One mask for each of the first three exits."""
    found = [mask(SHAPES[random.integers(len(SHAPES))], height, width, random) for _ in range(3)]
    return [torch.from_numpy(m) for m in (itertools.accumulate(found, np.logical_and) if shrinking else found)]


def compare(
    sparse: SparseExecutor, reference: ReferenceExecutor, seed: int, batch: int, *, shrinking: bool
) -> Iterator[float]:
    random = np.random.default_rng(seed)
    height, width = SIZES[random.integers(len(SIZES))]
    inputs = torch.from_numpy(random.standard_normal((batch, 1, 3, height, width)).astype(np.float32))
    given = [masks(height // 4, width // 4, random, shrinking=shrinking) for _ in range(batch)]
    states = [sparse.start(x, Frame(height, width)) for x in inputs]
    expected = [reference.start(x, Frame(height, width)) for x in inputs]
    for step in sparse.steps:
        sparse.advance(states)
        reference.advance(expected)
        if step.exit is None:
            continue
        for state, oracle, own in zip(states, expected, given, strict=True):
            assert state.exit is not None and oracle.exit is not None
            yield score_difference(state.exit.scores, oracle.exit.scores)
            assert torch.equal(state.exit.decided, oracle.exit.decided)
            assert (state.exit.mask != oracle.exit.mask).sum() <= 2  # rounding flips single positions
            assert state.exit.macs == pytest.approx(oracle.exit.macs, rel=1e-6)
            if step.exit < 4:
                sparse.override(state, own[step.exit - 1], shrinking=shrinking)
                reference.override(oracle, own[step.exit - 1])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shrinking", [True, False], ids=["shrinking", "any"])
def test_any_masks_give_what_the_reference_gives(name: str, shrinking: bool) -> None:
    for seed in range(14):
        for found in compare(*executors(name), seed, batch=1 + seed % 3 // 2, shrinking=shrinking):
            assert found < 1e-4 / 2, seed


@pytest.mark.parametrize("isa", ["portable", "neon", "neondot", "avx2", "avxvnni", "avx512", "avx512vnni"])
def test_every_instruction_set_of_this_machine(isa: str) -> None:
    if not library().kernels_find(isa.encode()):
        with pytest.raises(ValueError, match=f"no {isa} kernels"):
            Isa.find(isa)
        return
    for name in ("wide", "pose"):
        sparse = SparseExecutor(network(name), threads=1, isa=isa)
        for seed in range(4):
            for found in compare(sparse, executors(name)[1], seed, batch=1, shrinking=True):
                assert found < 1e-4 / 2, seed


@pytest.mark.parametrize(
    "costs",
    [(0.01, math.inf), (math.inf, 0.01), (math.inf, math.inf), (2, 0.7), (8, 1.5)],
    ids=["tiles of 4x4", "tiles of 2x2", "single rows", "cheap tiles", "mixed"],
)
def test_every_way_to_cover_a_mask(costs: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.executors.cpu.network.tile_costs", lambda _: NativeTileCosts(*costs, 0, 0))
    for name in ("wide", "pose"):
        sparse = SparseExecutor(network(name), threads=2)
        for seed in range(6):
            for found in compare(sparse, executors(name)[1], seed, batch=1 + seed % 2, shrinking=seed % 3 > 0):
                assert found < 1e-4 / 2, seed


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8, 1])
@pytest.mark.parametrize("channels", [18, 384])
def test_a_cover_holds_every_active_position_once_and_costs_no_more_than_single_rows(
    channels: int, share: float
) -> None:
    costs = tile_costs(channels)
    mask = np.random.default_rng(0).random((48, 80)) < share
    geometry = GeometryFactory(7, 3, [costs] * LEVELS).under(mask, full_halo=False)
    assert geometry.build()
    active = mask[::8, ::8]  # 6x10
    level = geometry.level(5)
    covered = np.zeros((10, 14), int)
    for side, count, yx in (4, level.tiles_4x4, level.tile_4x4_yx), (2, level.tiles_2x2, level.tile_2x2_yx):
        for y, x in (yx[2 * i : 2 * i + 2] for i in range(count)):
            covered[y : y + side, x : x + side] += 1
    for row in level.single_rows[: level.singles]:
        assert active[level.yx[2 * row], level.yx[2 * row + 1]]
        covered[level.yx[2 * row], level.yx[2 * row + 1]] += 1
    assert covered.max() <= 1
    assert covered[:6, :10][active].all()
    cost = level.singles + sum(
        count and count * each + first
        for count, each, first in (
            (level.tiles_4x4, costs.tile_4x4, costs.first_tile_4x4),
            (level.tiles_2x2, costs.tile_2x2, costs.first_tile_2x2),
        )
    )
    assert cost <= active.sum() + 1e-3


@pytest.mark.parametrize(
    "masking",
    [
        Masking("max_probability", 0.6),
        Masking("margin", 0.4),
        Masking("entropy", 0.5),
        Masking("top_k", 0.4),
        Masking("random", 0.5),
        Masking("max_probability", 0.6, adaptivity="training"),
        None,
    ],
    ids=lambda masking: masking and f"{masking.criterion} {masking.adaptivity}",
)
def test_every_criterion(masking: Masking | None) -> None:
    net = tiny.network(replace(tiny.SEGMENTATION, masking=masking))
    follow(SparseExecutor(net, threads=1), ReferenceExecutor(net))


@pytest.mark.parametrize("config", [tiny.POSE, replace(MASKED, heads="one")], ids=["pose", "one exit"])
def test_other_networks(config: ModelConfig) -> None:
    net = tiny.network(config)
    follow(SparseExecutor(net, threads=1), ReferenceExecutor(net))


def follow(sparse: SparseExecutor, reference: ReferenceExecutor) -> None:
    """Runs both on the sparse executor's masks: rounding flips single positions."""
    state, expected = sparse.begin(tiny.image()), reference.begin(tiny.image())
    for step in sparse.steps:
        sparse.advance([state])
        reference.advance([expected])
        if step.exit is None:
            continue
        assert state.exit is not None and expected.exit is not None
        assert score_difference(state.exit.scores, expected.exit.scores) < 1e-4 / 2
        assert (state.exit.mask != expected.exit.mask).float().mean() < 0.01
        assert state.exit.active_share == pytest.approx(expected.exit.active_share, abs=0.01)
        if expected.progress.masks is not None:
            reference.override(expected, state.exit.mask)
        else:
            assert state.progress.mask is None


def check_changing_batches(sparse: SparseExecutor) -> None:
    """Three requests in changing batches each give what they give alone."""
    alone = [[found.array for _, found in run(sparse, tiny.image(seed=seed))] for seed in range(3)]
    states = [sparse.begin(tiny.image(seed=seed)) for seed in range(3)]
    maps: list[list[NDArray[np.generic]]] = [[] for _ in states]
    random = np.random.default_rng(0)
    while waiting := [row for row, state in enumerate(states) if state.next_step < len(sparse.steps)]:
        step = states[random.choice(waiting)].next_step
        group = [row for row in waiting if states[row].next_step == step and random.random() < 0.7]
        if not group:
            continue
        sparse.advance([states[row] for row in group])
        if sparse.steps[step].exit is not None:
            for row in group:
                maps[row].append(sparse.render(states[row]).array)
    for found, expected in zip(maps, alone, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_requests_interleave_and_batches_change() -> None:
    check_changing_batches(SparseExecutor(network("segmentation"), threads=2))


def test_memory_that_was_never_written_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(size: int) -> NDArray[np.uint8]:
        array = empty(size)
        array[:] = 126  # 8e37 as float32
        return array

    monkeypatch.setattr("models.executors.cpu.memory.empty", poisoned)
    monkeypatch.setattr("models.executors.cpu.network.empty", poisoned)
    for name in ("wide", "window 9, D = 3/3/3", "plain heads"):
        sparse = SparseExecutor(network(name), threads=1)
        for seed in range(4):
            for found in compare(sparse, executors(name)[1], seed, batch=1, shrinking=seed % 2 == 0):
                assert found < 1e-4 / 2


def test_threads_do_not_change_a_bit() -> None:
    scores = []
    for threads in (1, 2, 3, 17):
        state = (sparse := SparseExecutor(network("wide"), threads)).begin(tiny.image())
        for _ in sparse.steps:
            sparse.advance([state])
        assert state.exit is not None
        scores.append(state.exit.scores)
    assert all(torch.equal(scores[0], other) for other in scores[1:])


def test_a_mask_that_grows_against_the_promise_is_refused() -> None:
    sparse, _ = executors("segmentation")
    state = sparse.begin(tiny.image())
    few = torch.zeros(16, 24, dtype=torch.bool)
    few[3, 3] = True
    for step in sparse.steps[:-2]:
        sparse.advance([state])
        if step.exit is not None:
            sparse.override(state, few if step.exit == 1 else ~few, shrinking=True)
        if step.exit == 2:
            break
    with pytest.raises(ValueError, match="grew"):
        sparse.advance([state])


def test_a_promise_is_kept_though_a_later_mask_promises_nothing() -> None:
    sparse, _ = executors("segmentation")
    state = sparse.begin(tiny.image())
    half = torch.zeros(16, 24, dtype=torch.bool)
    half[:8] = True
    masks = {1: (half, True), 2: (half, False), 3: (~half, False)}
    with pytest.raises(ValueError, match="grew"):
        for step in sparse.steps:
            sparse.advance([state])
            if step.exit in masks:
                mask, shrinking = masks[step.exit]
                sparse.override(state, mask, shrinking=shrinking)
    assert state.exit is not None and state.exit.index == 3


def test_nan_stays_nan() -> None:
    broken = tiny.network(CONFIGS["segmentation"])
    with torch.no_grad():
        broken.stage2[0].branches[0][0].conv1.weight[0, 0, 0, 0] = torch.nan
    sparse = SparseExecutor(broken)
    state = sparse.begin(tiny.image())
    for _ in sparse.steps:
        sparse.advance([state])
    assert state.exit is not None and state.exit.scores.isnan().any()


def free_bytes(allocator: CachingAllocator) -> int:
    return sum(array.size for array, _ in (*allocator._free, *allocator._workspaces))


def test_memory_of_a_request_that_ends_early_is_kept_for_the_next() -> None:
    sparse = SparseExecutor(network("segmentation"), threads=1)
    for steps in (0, 1, 2, 3):
        state = sparse.begin(tiny.image())
        for _ in range(steps):
            sparse.advance([state])
        before = free_bytes(sparse.network.allocator)
        own = sum(array.size for array in state.progress.features.arrays)
        del state
        assert free_bytes(sparse.network.allocator) == before + own


def test_memory_of_a_large_image_is_given_back_by_small_ones_some_time_later() -> None:
    sparse, now_s = SparseExecutor(network("segmentation"), threads=1), [0.0]
    sparse.network.allocator = CachingAllocator(clock=lambda: now_s[0])

    def kept(height: int, width: int) -> int:
        state = sparse.begin(tiny.image(height, width))
        for _ in sparse.steps:
            sparse.advance([state])
        return free_bytes(sparse.network.allocator)

    small, large = kept(32, 32), kept(256, 256)
    assert large > 4 * small > 0
    now_s[0] = KEEP_S
    assert kept(32, 32) >= large
    now_s[0] += 0.1
    after = [kept(32, 32) for _ in range(8)]  # each gives one buffer back
    assert after == sorted(after, reverse=True)
    assert after[-1] <= 2 * small
    kept(256, 256)
    now_s[0] += KEEP_S + 0.1
    running = sparse.begin(tiny.image(256, 256))
    now_s[0] += KEEP_S + 0.1
    assert kept(32, 32) > large / 2  # the large image in work will need it
    del running


@pytest.mark.parametrize("workspace", [False, True])
def test_requests_that_end_while_memory_is_taken_keep_apart(workspace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run anywhere, and end a request whose state is in a reference cycle."""
    allocator, taken = CachingAllocator(), memory._take

    def take() -> NDArray[np.uint8]:
        return allocator.take_workspace(1000, 1)[0] if workspace else allocator.take(1000)

    def paused_step() -> Iterator[None]:
        array, pixels = allocator.take_workspace(1000, 1)
        try:
            yield
        finally:
            allocator.release_workspace(array, pixels)

    def begin() -> object:
        if not workspace:
            return Buffers(allocator, [allocator.take(1000)], 1)
        next(step := paused_step())
        return step

    def collected(*arguments: Any) -> Any:
        requests.pop()
        return taken(*arguments)

    allocator.begin_request(1)
    requests = [begin(), begin()]
    requests.pop()  # leaves a free buffer
    with monkeypatch.context() as patched:
        patched.setattr(memory, "_take", collected)
        first = take()
    addresses = {array.ctypes.data for array in (first, take(), take())}
    assert len(addresses) == 3
    assert not allocator.live and not free_bytes(allocator)


def test_large_memory_is_touched_one_huge_page_at_a_time() -> None:
    small, large = np.ones(LARGE - 1, np.uint8), np.ones(LARGE + 1, np.uint8)
    touching = touch([small, large])
    for pages in range(4):
        touched = np.count_nonzero(large == 0)
        assert touched == min(pages * HUGE_PAGE // PAGE, LARGE // PAGE + 1)
        assert next(touching, "end") is ("end" if pages == 3 else None)
    assert small.all() and not large[::PAGE].any()


def test_a_step_pauses_while_it_touches_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor writes to new memory for features, scores and workspace itself, before it calls native code. The
    system provides each page at its first write, which can take milliseconds."""
    monkeypatch.setattr("models.executors.cpu.memory.LARGE", 1)
    sparse = SparseExecutor(network("segmentation"), threads=1)
    for _ in run(sparse, tiny.image()):  # the geometry without a mask is kept
        pass
    expected, state = sparse.begin(tiny.image()), sparse.begin(tiny.image())
    with monkeypatch.context() as patched:
        patched.setattr("models.executors.cpu.network.touch", lambda arrays: iter(()))
        whole = [pauses(sparse, expected) for _ in sparse.steps]
    for before, step in zip(whole, sparse.steps, strict=True):
        arrays = len(sparse.network.programs[step].outputs) if step.exit is None else 1
        assert pauses(sparse, state) == before + arrays + 1  # the workspace
    assert state.exit is not None and expected.exit is not None
    assert torch.equal(state.exit.scores, expected.exit.scores)


def pauses(sparse: SparseExecutor, state: State) -> int:
    """How often a step pauses, in slices that are over at once."""
    count = 0
    while not sparse.advance([state], 0):
        count += 1
    return count


IN_A_PROCESS = """
import os, resource, tiny, torch
from models.executors.cpu.geometry import Geometry
from models.executors.cpu.executor import SparseExecutor

sparse = SparseExecutor(tiny.network(), threads=2)
def answer():
    state = sparse.begin(tiny.image())
    for _ in sparse.steps:
        sparse.advance([state])
    return state.exit.scores
before = answer()
child = os.fork()
if not child:
    os._exit(0 if torch.equal(answer(), before) else 1)
assert os.waitpid(child, 0)[1] == 0

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, resource.RLIM_INFINITY))
try:
    SparseExecutor(tiny.network(), threads=2000)
except ValueError as error:
    print(error)
try:
    Geometry(None, (1 << 13, 1 << 13), sparse.network._geometries, full_halo=False).build()
except MemoryError as error:
    print(error)
assert torch.equal(answer(), before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the test limits memory and forks, as Linux can")
def test_a_fork_has_threads_of_its_own_and_what_the_system_refuses_is_said() -> None:
    code = [sys.executable, "-c", IN_A_PROCESS]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    told = subprocess.run(
        code, env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True, timeout=60
    )
    assert "gives this process no 2000 threads; ask for fewer" in told.stdout
    assert "no memory for the tables of a mask of 8192x8192" in told.stdout


@pytest.mark.parametrize("mode", ["bilinear", "pool_up"])
@pytest.mark.parametrize("source, factor", [(1, 2), (2, 4), (5, 2), (3, 8)])
def test_resampling_is_torchs(mode: str, source: int, factor: int) -> None:
    x = torch.randn(1, 1, source, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(x, size=source * factor, mode="linear", align_corners=False)
    target = source * factor
    if mode == "pool_up":
        expected, target = torch.nn.functional.avg_pool1d(expected, 2), target // 2
    index, weight = axis_taps(mode, source, target)  # type: ignore[arg-type]
    np.testing.assert_allclose((x[0, 0].numpy()[index] * weight).sum(1), expected[0, 0].numpy(), atol=1e-12)


def test_auto_is_sparse_where_the_kernels_are_built_and_the_reference_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert build(tiny.network()).executor == "sparse"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    library.cache_clear()
    try:
        assert build(tiny.network()).executor == "reference"
        assert "compiler" in caplog.text
        with pytest.raises(ValueError, match="not built"):
            build(tiny.network(), executor="sparse")
    finally:
        library.cache_clear()


def test_kernels_of_other_sources_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.executors.cpu.library.digest", lambda _: "0123")
    library.cache_clear()
    try:
        with pytest.raises(OSError, match="built from other sources than these; run `make native`"):
            library()
    finally:
        library.cache_clear()


def test_structures_have_the_layout_of_the_native_ones() -> None:
    sizes = [
        ctypes.sizeof(getattr(structures, f"Native{name}"))
        for name in ("Level", "TileCosts", "Matrix", "ResamplingTaps", "Op", "RowLoop", "Phase", "Program", "Context")
    ]
    native_sizes = (ctypes.c_int32 * len(sizes))()
    library().structure_sizes(native_sizes)
    assert list(native_sizes) == sizes


def test_inputs_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        executors("segmentation")[0].start(torch.zeros(1, 3, 40, 64), Frame(40, 64))
    for height, width in ((32, 1 << 23), (32, (1 << 17) + 32)):
        with pytest.raises(ValueError, match="at most"):
            executors("segmentation")[0].start(torch.zeros(1, 1, 1).expand(1, 3, height, width), Frame(height, width))


def test_windows_that_are_too_wide_are_refused() -> None:
    wide = replace(tiny.SEGMENTATION, masking=Masking("max_probability", 0.6, window=23))
    with pytest.raises(ValueError, match="at most 21"):
        SparseExecutor(AdpcNet(wide))


@pytest.mark.parametrize("mask", [torch.ones(40, 40, dtype=torch.bool), torch.ones(16, 16)], ids=["shape", "dtype"])
def test_a_mask_that_does_not_fit_is_refused(mask: Tensor) -> None:
    model = SparseExecutor(tiny.network(), threads=1)
    state = model.start(torch.zeros(1, 3, 64, 64), Frame(64, 64))
    with pytest.raises(ValueError, match=r"it must be bool of \(16, 16\)"):
        model.override(state, mask)


@pytest.mark.parametrize("criterion, lean", [("max_probability", True), ("top_k", False)])
def test_a_request_computes_only_the_rows_that_its_own_masks_need(criterion: Criterion, lean: bool) -> None:
    masking = Masking(criterion, 0.4)
    model = SparseExecutor(tiny.network(replace(tiny.SEGMENTATION, masking=masking)), threads=1)
    state = model.begin(tiny.image(256, 256))
    for step in model.steps:
        model.advance([state])
        if step.exit == 1:  # one corner stays active
            assert state.progress.mask is not None
            state.progress.mask[:] = False
            state.progress.mask[:8, :8] = True
        if step.exit == 2:
            level = state.progress.geometry.level(2)
            assert (level.needed_rows < level.height * level.width) is lean
            return
