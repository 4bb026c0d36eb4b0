"""The GPU executor in Triton's interpreter, on a CPU. Only a GPU can show real CUDA graphs and speed."""

import importlib
import importlib.util
import json
import re
import sys
import tomllib
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from interpreter import interpreting

from models.anytime import AnytimeModel, Exit, State
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import Frame
from models.network.adpc import AdpcNet
from models.network.confidence import Masks
from models.network.configs import Masking, ModelConfig
from models.network.masked import MaskedConv2d

ACTIVE_AT_LEVEL, ACTIVE_INSIDE = 0, 7
"""Columns of statistics."""

# A tile that is not full multiplies memory that nobody has written, and the results are thrown away.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
MODULES = [
    f"models.executors.gpu.{name}"
    for name in ("streams", "geometry", "layers", "ops", "tuning", "memory", "program", "executor")
]


@pytest.fixture(scope="module")
def gpu() -> Iterator[dict[str, ModuleType]]:
    """The executor's modules, by the last part of their names; their kernels are interpreted."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is published for Linux only")
    if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
        pytest.skip("this process compiles kernels for its GPU already; run this file by itself")
    with interpreting():
        yield {name.rpartition(".")[2]: importlib.import_module(name) for name in MODULES}


def network(config: ModelConfig = tiny.POSE) -> AdpcNet:
    """A tiny network with the initial lambda, which reaches one position far; more takes the interpreter long. Pose has
    half as many layers as segmentation."""
    net = tiny.network(config)
    for name, parameter in net.named_parameters():
        if name.endswith("Lambda"):
            parameter.data.fill_(3)
    return net


def exits(model: AnytimeModel, inputs: torch.Tensor) -> list[list[Exit]]:
    """The exits of a batch that advances as one: by exit, by input."""
    states = [model.start(one[None], Frame(*one.shape[1:])) for one in inputs]
    found = []
    for step in model.steps:
        model.advance(states)
        if step.exit is not None:
            found.append([state.exit for state in states if state.exit is not None])
    return found


def same(one: AnytimeModel, other: AnytimeModel, inputs: torch.Tensor, tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(exits(one, inputs), exits(other, inputs), strict=True):
        for mine, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                mine.scores, their.scores, rtol=0, atol=tolerance * float(their.scores.abs().max())
            )
            assert torch.equal(mine.mask, their.mask)
            assert torch.equal(mine.decided, their.decided)
            assert mine.active_share == pytest.approx(their.active_share, abs=1e-6)
            assert mine.macs == pytest.approx(their.macs, rel=1e-5)


SHALLOW = replace(tiny.SEGMENTATION, downsamplings=(1, 1, 1))
"""Its heads have fewer layers."""


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.randn(*shape[:2], shape[2] // 8, shape[3] // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, scale_factor=8, mode="nearest")


@pytest.mark.parametrize(
    "config",
    [
        tiny.SEGMENTATION,
        tiny.POSE,
        replace(SHALLOW, masking=Masking("random", 0.6, window=5)),
        replace(SHALLOW, masking=Masking("margin", 0.4)),
        replace(SHALLOW, masking=Masking("max_probability", -1)),  # nothing stays active
        replace(SHALLOW, masking=Masking("entropy", -1)),  # everything does
        replace(tiny.POSE, heads="one", masking=None),
    ],
    ids=["segmentation", "pose", "random", "margin", "empty", "full", "one"],
)
def test_networks_equal_the_reference(gpu: dict[str, ModuleType], config: ModelConfig) -> None:
    ours = gpu["executor"].TritonExecutor(network(config), "cpu", torch.float32)
    same(ours, ReferenceExecutor(network(config)), inputs(1, 3, 32, 32))


def test_batches_in_half_precision(gpu: dict[str, ModuleType]) -> None:
    config = replace(tiny.POSE, masking=Masking("random", 0.4))
    batch = inputs(2, 3, 32, 32)
    halves = exits(gpu["executor"].TritonExecutor(network(config), "cpu", torch.float16), batch)
    for ours, theirs in zip(halves, exits(ReferenceExecutor(network(config)), batch), strict=True):
        for half, full in zip(ours, theirs, strict=True):
            torch.testing.assert_close(half.scores, full.scores, rtol=0, atol=0.03 * float(full.scores.abs().max()))


def test_layers_that_are_faster_dense_give_the_same(
    gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu["ops"], "layer_name", lambda conv, x: "any")
    monkeypatch.setattr(gpu["program"].BatchProgram, "dense_layers", lambda program, index, share: frozenset({"any"}))
    ours = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    same(ours, ReferenceExecutor(network()), inputs(1, 3, 32, 32))


def test_recorded_steps_of_interleaved_requests(gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the rules of CUDA graphs, with convolutions that turn dense at different shares."""
    from paper_graphs import PaperGraphs  # noqa: PLC0415 - after Triton

    def tuning(conv: Any, shape: torch.Size, geometry: Any) -> Any:
        dense_from = 0.6 if conv.stride == 2 else gpu["tuning"].NEVER_DENSE
        return gpu["tuning"].LayerTuning(gpu["layers"].candidate_tiles(conv, 64)[0], dense_from)

    monkeypatch.setattr(gpu["program"], "measure", tuning)
    graphs = PaperGraphs(monkeypatch)
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32, lambda: graphs)
    program = model._program((32, 32), 1)
    assert len(program._replays) > len(model.steps)  # some steps were recorded for several shares
    for index in range(len(model.steps)):
        # Rows that no request computes keep what is in them now, and dense convolutions read them.
        assert all(bool(branch.isfinite().all()) for branch in program.memory.after(index)), model.steps[index]
    both = inputs(2, 3, 32, 32)
    first, second = (model.start(one[None], Frame(32, 32)) for one in both)
    expected = exits(ReferenceExecutor(network()), both)
    for step in model.steps:
        for row, state in enumerate((first, second)):
            model.advance([state])
            if step.exit is not None:
                torch.testing.assert_close(state.exit.scores, expected[step.exit - 1][row].scores, rtol=1e-4, atol=1e-4)
    graphs.verify()


def corner(side: int, *, size: int) -> torch.Tensor:
    """A mask, bool (side, side), of a square in the upper left corner."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:size, :size] = True
    return mask


def test_masks_that_grow_equal_the_reference(gpu: dict[str, ModuleType]) -> None:
    """One request is given masks, each in another corner than the one before; one that runs beside it has its own. They
    advance in a batch, but for one stage, which the first begins in the memory where it was given its mask."""
    ours, reference = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32), ReferenceExecutor(network())
    both = inputs(2, 3, 32, 32)
    masks = [corner(8, size=2), corner(8, size=3).flip(0, 1), corner(8, size=2).flip(1)]
    mine, theirs = ([model.start(one[None], Frame(32, 32)) for one in both] for model in (ours, reference))
    for step in ours.steps:
        for states in [mine] if getattr(step, "stage", 0) != 3 else [mine[:1], mine[1:]]:
            ours.advance(states)
        for state in theirs:
            reference.advance([state])
        if step.exit is None:
            continue
        for my, their in zip(mine, theirs, strict=True):
            scores = their.latest().scores
            torch.testing.assert_close(my.latest().scores, scores, rtol=0, atol=1e-5 * float(scores.abs().max()))
            assert torch.equal(my.latest().decided, their.latest().decided)
        if step.exit < ours.config.exits:
            ours.override(mine[0], masks[step.exit - 1])
            reference.override(theirs[0], masks[step.exit - 1])


KEY = r"([13])x\1(?: / ([12]))? (\d+) -> (\d+) at 2\^(\d+)"
"""A convolution of the file: kernel, stride, channels, output channels, and the power of two of its positions."""
GREW = "the mask of an exit grew, though it was promised to shrink; override it without `shrinking`"


def advance_to(model: AnytimeModel, state: State, index: int) -> None:
    """Advances `state` to an exit."""
    while state.exit is None or state.exit.index < index:
        model.advance([state])


@pytest.mark.parametrize("executor", ["triton", "sparse"])
def test_a_mask_that_grows_in_spite_of_a_promise_is_refused(gpu: dict[str, ModuleType], executor: str) -> None:
    """The GPU's executor refuses what the CPU's does."""
    if executor == "triton":
        model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    else:
        model = importlib.import_module("models.executors.cpu.executor").SparseExecutor(network(), threads=1)
    everywhere = torch.ones(8, 8, dtype=torch.bool)

    def at_exit(index: int) -> State:
        state: State = model.start(inputs(1, 3, 32, 32), Frame(32, 32))
        advance_to(model, state, index)
        return state

    # The third stage is computed under the network's own mask.
    state = at_exit(2)
    own = state.latest().mask.clone()
    assert 0 < int(own.sum()) < own.numel()
    advance_to(model, state, 3)
    model.override(state, everywhere)
    with pytest.raises(ValueError, match=GREW):
        model.advance([state])
    model.override(state, own)  # a mask within that one is taken after all
    advance_to(model, state, 4)
    # The second stage is computed under a given mask, and the exit after it finds others active.
    state = at_exit(1)
    model.override(state, ~everywhere, shrinking=True)
    advance_to(model, state, 2)
    assert state.latest().mask.any()
    with pytest.raises(ValueError, match=GREW):
        model.advance([state])
    # The first exit's own mask is given up before anything is computed under it.
    state = at_exit(1)
    model.override(state, everywhere, shrinking=True)
    advance_to(model, state, 2)


@pytest.mark.parametrize(
    "mask, told",
    [
        (torch.ones(8, 8, dtype=torch.uint8), "the mask is torch.uint8 of (8, 8); it must be bool of (8, 8)"),
        (torch.ones(8, 9, dtype=torch.bool), "the mask is torch.bool of (8, 9); it must be bool of (8, 8)"),
        (torch.ones(1, 8, 8, dtype=torch.bool), "the mask is torch.bool of (1, 8, 8); it must be bool of (8, 8)"),
    ],
)
def test_masks_of_another_shape_or_dtype_are_refused(gpu: dict[str, ModuleType], mask: torch.Tensor, told: str) -> None:
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    state = model.start(inputs(1, 3, 32, 32), Frame(32, 32))
    with pytest.raises(ValueError, match=re.escape(told)):
        model.override(state, mask)
    with pytest.raises(ValueError, match="no exit is finished"):
        model.override(state, torch.ones(8, 8, dtype=torch.bool))


def test_requests_make_room_for_each_other(gpu: dict[str, ModuleType]) -> None:
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    both = inputs(2, 3, 32, 32)
    first, second = (model.start(one[None], Frame(32, 32)) for one in both)
    third = model.start(both[:1], Frame(32, 32))
    for index, _ in enumerate(model.steps):
        if index % 2:  # now together, now one after the other
            model.advance([first, second])
        else:
            model.advance([second])
            model.advance([first])
        if index == 0:
            model.advance([third])
            del third  # cancelled while it was in the memory
    for state, expected in zip((first, second), exits(ReferenceExecutor(network()), both)[-1], strict=True):
        assert state.exit is not None
        torch.testing.assert_close(state.exit.scores, expected.scores, rtol=1e-4, atol=1e-5)


def test_a_size_for_which_there_is_no_memory_gets_that_of_the_others(
    gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The device has room for one program. A program's memory is free once nobody refers to it."""
    made: list[weakref.ref[Any]] = []
    program, room = gpu["executor"].BatchProgram, 1

    def limited(*arguments: Any, **options: Any) -> Any:
        if sum(ref() is not None for ref in made) >= room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found = program(*arguments, **options)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(gpu["executor"], "BatchProgram", limited)
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    square, wide = inputs(1, 3, 32, 32), inputs(1, 3, 32, 64)
    states = [model.start(one, Frame(*one.shape[2:])) for one in (square, wide)]
    for _ in range(3):  # to exit 1, each in place of the other
        for state in states:
            model.advance([state])
    assert "no memory for an input of 32x64 beside those of other sizes, which are given up" in caplog.text
    for state, one in zip(states, (square, wide), strict=True):
        right = exits(ReferenceExecutor(network()), one)[0][0]
        torch.testing.assert_close(state.latest().scores, right.scores, rtol=1e-4, atol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):  # a batch is no reason to give up a single input
        model.advance([model.start(square, Frame(32, 32)) for _ in range(2)])
    model._drop_programs(0)
    room = 0
    with pytest.raises(torch.OutOfMemoryError):  # there is nothing to give up
        model.advance(states[:1])


def test_a_request_that_went_on_elsewhere_is_not_moved_again(
    gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch makes room, memory runs out after its first request."""
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    both = inputs(2, 3, 32, 32)
    pair = [model.start(one[None], Frame(32, 32)) for one in both]
    model.advance(pair)
    saved, evict = gpu["memory"].SavedRequest, model._program((32, 32), 2).memory.evict

    def saves_one(*arguments: Any) -> Any:
        if pair[0].saved is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return saved(*arguments)

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(gpu["memory"], "SavedRequest", saves_one)
        evict()
    advance_to(model, pair[0], 1)
    advance_to(model, pair[1], 1)  # which still lay in the memory of both
    advance_to(model, pair[0], 2)
    expected = exits(ReferenceExecutor(network()), both)
    for state, right in ((pair[0], expected[1][0]), (pair[1], expected[0][1])):
        torch.testing.assert_close(state.latest().scores, right.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel, stride, level", [(3, 1, 0), (3, 2, 1), (1, 1, 2)])
def test_a_convolution_at_any_share(gpu: dict[str, ModuleType], kernel: int, stride: int, level: int) -> None:
    """A batch of two inputs, of which few and many positions are active."""
    generator = torch.Generator().manual_seed(level)
    mask = torch.rand(2, 1, 16, 8, generator=generator) < torch.tensor([0.1, 0.6])[:, None, None, None]
    height, width = 16 >> level, 8 >> level
    conv = MaskedConv2d(20, 40, kernel, stride, padding=kernel // 2, bias=True, window=7)
    x = torch.randn(2, 20, height * stride, width * stride, generator=generator)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * 0.3 if parameter.ndim else torch.tensor(0.7)
            )
        expected = F.relu(conv(x, Masks(mask))).permute(0, 2, 3, 1)
    folded = gpu["layers"].fold(conv, None, True, torch.float32)
    geometry = gpu["geometry"].DeviceGeometry(mask[:, 0].to(torch.uint8))
    streams = gpu["streams"].SideStreams(enabled=False)
    inside = torch.tensor([[16, 5], [3, 8]], dtype=torch.int32)
    geometry.update(inside, folded.reach, streams, full_halo=True)
    ops = gpu["ops"].RowOps(geometry, streams)
    found = ops.convolve(folded, F.pad(x.permute(0, 2, 3, 1), (0, 12)).contiguous())
    torch.testing.assert_close(found[..., :40], expected, rtol=1e-4, atol=1e-4)
    active = geometry.statistics[:, ACTIVE_AT_LEVEL + level]
    assert active.tolist() == [int(m[:, :: 1 << level, :: 1 << level].sum()) for m in mask]
    active_inside = geometry.statistics[:, ACTIVE_INSIDE]
    assert active_inside.tolist() == [int(mask[0, 0, :16, :5].sum()), int(mask[1, 0, :3, :8].sum())]


def test_needed_rows_are_all_that_a_later_layer_can_read(gpu: dict[str, ModuleType]) -> None:
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, 13, 21] = mask[0, 0, 0] = 1
    geometry = gpu["geometry"].DeviceGeometry(mask)
    inside = torch.zeros(1, 2, dtype=torch.int32)
    geometry.update(inside, 1, gpu["streams"].SideStreams(enabled=False), full_halo=False)
    for level, rows in enumerate(geometry.levels):
        active, halo = rows.counts[:2].tolist()
        size = 32 >> level
        listed = torch.zeros(size * size, dtype=torch.bool)
        listed[(rows.row_list[:active] // 2).long()] = True
        listed[(rows.row_list[len(rows.row_list) - halo :] // 2).long()] = True
        blocks = F.max_pool2d(mask[None].float(), 1 << level)
        assert torch.equal(listed.view(size, size), F.max_pool2d(blocks, 3, 1, 1)[0, 0] > 0)
        assert active == int(mask[0, :: 1 << level, :: 1 << level].sum())


def test_the_first_wrong_step_is_found(gpu: dict[str, ModuleType]) -> None:
    localise = importlib.import_module("models.bench.gpu_localise").localise
    told: list[str] = []
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "tolerance": 1e-4, "say": told.append}
    assert localise(network, (32, 32), (0.6, 0.4, 0.2), **options) is None
    assert len(told) == len(network().steps)
    calls: list[AdpcNet] = []

    def different() -> AdpcNet:
        """The second network, which is the GPU's, has another weight."""
        calls.append(network())
        if len(calls) == 2:
            with torch.no_grad():
                calls[-1].get_submodule("stage3.0.branches.1.0.conv1").weight += 0.5
        return calls[-1]

    fault = localise(different, (32, 32), (0.6, 0.4, 0.2), **options)
    assert fault is not None and fault.step == "stage3.0" and fault.branch is not None and fault.difference > 1e-4


def test_an_error_of_the_gpu_is_found(gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    localise = importlib.import_module("models.bench.gpu_localise").localise

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu["program"].TritonNetwork, "head", fails)
    fault = localise(network, (32, 32), device="cpu", dtype=torch.float32, say=lambda _: None)
    assert str(fault) == "exit1: RuntimeError: an illegal memory access"


def test_inputs_beyond_the_indices_are_refused(gpu: dict[str, ModuleType]) -> None:
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    with pytest.raises(
        ValueError, match=r"1 inputs of 16384x16384 need maps of 4294967296 elements.* at most 2147483647"
    ):
        model.network.check_indices((16384, 16384), 1)
    model.network.check_indices((8192, 8192), 1)


def test_what_one_size_has_measured_the_next_one_knows(
    gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []

    def program(*_: object, tuned: dict[str, Any]) -> SimpleNamespace:
        told.append(tuned)
        return SimpleNamespace(measured={f"layer {len(told)}": len(told)}, tunings={})

    monkeypatch.setattr(gpu["executor"], "BatchProgram", program)
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32, tuned=tmp_path / "none")
    for size in ((32, 64), (64, 32), (64, 64)):
        model._program(size, 1)
    assert told == [{}, {"layer 1": 1}, {"layer 1": 1, "layer 2": 2}]


def test_measured_layers_are_read_from_the_file(gpu: dict[str, ModuleType], tmp_path: Path) -> None:
    tuning = gpu["tuning"]
    path = tmp_path / "tuned.json"
    one = tuning.LayerTuning(gpu["layers"].Tile(64, 32, 16, 4, 3, cached=False), 0.7)
    assert tuning.read(path, "a") == {}
    tuning.write(path, "a", {"3x3 16 -> 16 at 2^7": one})
    tuning.write(path, "b", {"3x3 16 -> 16 at 2^7": one})
    tuning.write(path, "a", {"1x1 16 -> 16 at 2^7": one})
    assert set(tuning.read(path, "a")) == {"3x3 16 -> 16 at 2^7", "1x1 16 -> 16 at 2^7"}
    assert tuning.read(path, "b") == {"3x3 16 -> 16 at 2^7": one}
    path.write_text('{"a": {"x": {"tile": {}}}}')
    with pytest.raises(ValueError, match="holds no measured layers"):
        tuning.read(path, "a")


def test_the_file_of_the_package_holds_candidates(gpu: dict[str, ModuleType]) -> None:
    tuning, layers = gpu["tuning"], gpu["layers"]
    names = json.loads(tuning.TUNED.read_text())
    assert names
    for name in names:
        found = tuning.read(tuning.TUNED, name)
        assert found
        for key, one in found.items():
            kernel, stride, channels, out, power = re.fullmatch(KEY, key).groups()
            weight = torch.empty(int(out), int(channels), int(kernel), int(kernel), device="meta")
            conv = layers.TritonConvolution(*[weight] * 6, None, 0, int(stride or 1), relu=True)
            assert tuning.tuning_key(conv, 1 << int(power)) == key
            assert one.tile in layers.candidate_tiles(conv, 1 << int(power)), key
            assert 0 <= one.dense_from <= tuning.NEVER_DENSE, key
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert tuning.TUNED.name in pyproject["tool"]["setuptools"]["package-data"]["models.executors.gpu"]
