"""The GPU executor in Triton's interpreter, on a CPU. What only a GPU can show (graphs, speed) is in the benchmark."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from models.anytime import AnytimeModel, Exit
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import Frame
from models.network.adpc import AdpcNet
from models.network.confidence import Masks
from models.network.configs import Masking, ModelConfig
from models.network.masked import MaskedConv2d

# Where a tile is not full, it multiplies memory that nobody has written, and throws the result away.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
MODULES = [
    f"models.executors.gpu.{name}" for name in ("geometry", "layers", "ops", "tuning", "memory", "program", "executor")
]


@pytest.fixture(scope="module")
def gpu() -> Iterator[dict[str, ModuleType]]:
    """The executor's modules, by the last part of their names; their kernels are interpreted."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is published for Linux only")
    if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
        pytest.skip("this process compiles kernels for its GPU already; run this file by itself")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # is read when triton and its kernels are imported
        interpreter = importlib.import_module("triton.runtime.interpreter")
        # Checking every sum of integers for overflow takes half of the time.
        options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        yield {name.rpartition(".")[2]: importlib.import_module(name) for name in MODULES}


def network(config: ModelConfig = tiny.SEGMENTATION) -> AdpcNet:
    """A tiny network with the initial lambda, which reaches one position far; more takes the interpreter long."""
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


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.randn(*shape[:2], shape[2] // 8, shape[3] // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, scale_factor=8, mode="nearest")


@pytest.mark.parametrize(
    "config",
    [
        tiny.SEGMENTATION,
        tiny.POSE,
        replace(tiny.SEGMENTATION, masking=Masking("random", 0.6, window=5)),
        replace(tiny.SEGMENTATION, masking=Masking("max_probability", -1)),  # nothing stays active
        replace(tiny.SEGMENTATION, masking=Masking("entropy", -1)),  # everything does
        replace(tiny.POSE, heads="one", masking=None),
    ],
    ids=["segmentation", "pose", "random", "empty", "full", "one"],
)
def test_networks_equal_the_reference(gpu: dict[str, ModuleType], config: ModelConfig) -> None:
    ours = gpu["executor"].TritonExecutor(network(config), "cpu", torch.float32)
    same(ours, ReferenceExecutor(network(config)), inputs(1, 3, 32, 32))


def test_batches_in_half_precision(gpu: dict[str, ModuleType]) -> None:
    config = replace(tiny.SEGMENTATION, masking=Masking("random", 0.4))
    batch = inputs(2, 3, 32, 64)
    halves = exits(gpu["executor"].TritonExecutor(network(config), "cpu", torch.float16), batch)
    for ours, theirs in zip(halves, exits(ReferenceExecutor(network(config)), batch), strict=True):
        for half, full in zip(ours, theirs, strict=True):
            torch.testing.assert_close(half.scores, full.scores, rtol=0, atol=0.03 * float(full.scores.abs().max()))


def test_layers_that_are_faster_dense_give_the_same(
    gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu["ops"], "name", lambda layer, x: "any")
    monkeypatch.setattr(gpu["executor"].Plan, "dense", lambda plan, index, share: frozenset({"any"}))
    ours = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    same(ours, ReferenceExecutor(network()), inputs(1, 3, 32, 32))


def test_recorded_steps_of_interleaved_requests(gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the rules of CUDA graphs, with layers that turn dense at different shares."""
    from paper_graphs import PaperGraphs  # noqa: PLC0415 - after Triton

    def choice(layer: Any, shape: torch.Size, *_: object) -> Any:
        return gpu["tuning"].Choice(gpu["layers"].tiles(layer, 64)[0], layer.weight.shape[0] % 3 * 0.3 + 0.3)

    monkeypatch.setattr(gpu["program"], "choose", choice)
    graphs = PaperGraphs(monkeypatch)
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32, lambda: graphs)
    both = inputs(2, 3, 32, 32)
    first, second = (model.start(one[None], Frame(32, 32)) for one in both)
    expected = exits(ReferenceExecutor(network()), both)
    for step in model.steps:
        for row, state in enumerate((first, second)):
            model.advance([state])
            if step.exit is not None:
                torch.testing.assert_close(state.exit.scores, expected[step.exit - 1][row].scores, rtol=1e-4, atol=1e-4)
    graphs.verify()
    (plan,) = model._plans.values()
    assert len(plan._replays) > len(model.steps)  # some steps were recorded for several shares


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
            del third  # cancelled while it sat in the plan
    for state, expected in zip((first, second), exits(ReferenceExecutor(network()), both)[-1], strict=True):
        assert state.exit is not None
        torch.testing.assert_close(state.exit.scores, expected.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("kernel, stride, level", [(3, 1, 0), (3, 2, 1), (1, 1, 2)])
def test_a_convolution_at_any_share(
    gpu: dict[str, ModuleType], kernel: int, stride: int, level: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(round(100 * share) + level)
    mask = torch.rand(2, 1, 16, 8, generator=generator) < share
    height, width = 16 >> level, 8 >> level
    conv = MaskedConv2d(20, 40, kernel, stride, padding=kernel // 2, bias=True, window=7)
    x = torch.randn(2, 20, height * stride, width * stride, generator=generator)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * 0.3 if parameter.ndim else torch.tensor(0.7)
            )
        expected = F.relu(conv(x, Masks(mask))).permute(0, 2, 3, 1)
    work_on: Any = gpu["ops"]
    layer = gpu["layers"].fold(conv, None, True, torch.float32)
    rows, counts = work_on.empty_rows(mask[:, 0].to(torch.uint8))
    work = work_on.Pass(rows, 16)
    crop = torch.tensor([[16, 5], [3, 8]], dtype=torch.int32)
    work_on.list_rows(work, counts, crop, layer.reach, everywhere=True)
    found = work.convolve(layer, F.pad(x.permute(0, 2, 3, 1), (0, 12)).contiguous())
    torch.testing.assert_close(found[..., :40], expected, rtol=1e-4, atol=1e-4)
    statistics = counts[work_on.LEVELS :].view(2, 8)
    assert statistics[:, level].tolist() == [int(m[:, :: 1 << level, :: 1 << level].sum()) for m in mask]
    assert statistics[:, 7].tolist() == [int(mask[0, 0, :16, :5].sum()), int(mask[1, 0, :3, :8].sum())]


def test_needed_rows_are_all_that_a_later_layer_can_read(gpu: dict[str, ModuleType]) -> None:
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, 13, 21] = mask[0, 0, 0] = 1
    work_on: Any = gpu["ops"]
    rows, counts = work_on.empty_rows(mask)
    crop = torch.zeros(1, 2, dtype=torch.int32)
    work_on.list_rows(work_on.Pass(rows, 32), counts, crop, 1, everywhere=False)
    for level, these in enumerate(rows):
        active, interpolated = these.counts[:2].tolist()
        size = 32 >> level
        listed = torch.zeros(size * size, dtype=torch.bool)
        listed[(these.entries[:active] // 2).long()] = True
        listed[(these.entries[len(these.entries) - interpolated :] // 2).long()] = True
        blocks = F.max_pool2d(mask[None].float(), 1 << level)
        assert torch.equal(listed.view(size, size), F.max_pool2d(blocks, 3, 1, 1)[0, 0] > 0)
        assert active == int(mask[0, :: 1 << level, :: 1 << level].sum())


@pytest.mark.parametrize("config", [tiny.SEGMENTATION, tiny.POSE], ids=["segmentation", "pose"])
def test_the_first_wrong_step_is_found(gpu: dict[str, ModuleType], config: ModelConfig) -> None:
    localise = importlib.import_module("models.bench.gpu_localise").localise
    told: list[str] = []
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "tolerance": 1e-4, "say": told.append}
    assert localise(lambda: network(config), (32, 64), (0.6, 0.4, 0.2), **options) is None
    assert len(told) == len(network(config).steps)
    calls: list[AdpcNet] = []

    def different() -> AdpcNet:
        """The second network, which is the GPU's, has another weight."""
        calls.append(network(config))
        if len(calls) == 2:
            with torch.no_grad():
                calls[-1].get_submodule("stage3.0.branches.1.0.conv1").weight += 0.5
        return calls[-1]

    fault = localise(different, (32, 64), (0.6, 0.4, 0.2), **options)
    assert fault is not None and fault.step == "stage3.0" and fault.branch is not None and fault.difference > 1e-4


def test_an_error_of_the_gpu_is_found(gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    localise = importlib.import_module("models.bench.gpu_localise").localise

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu["program"].TritonNetwork, "head", fails)
    fault = localise(network, (32, 64), device="cpu", dtype=torch.float32, say=lambda _: None)
    assert str(fault) == "exit1: RuntimeError: an illegal memory access"


def test_inputs_beyond_the_indices_are_refused(gpu: dict[str, ModuleType]) -> None:
    model = gpu["executor"].TritonExecutor(network(), "cpu", torch.float32)
    with pytest.raises(
        ValueError, match=r"1 inputs of 16384x16384 need maps of 4294967296 elements.* at most 2147483647"
    ):
        model.network.check_indices((16384, 16384), 1)
    model.network.check_indices((8192, 8192), 1)


def test_measured_layers_are_read_from_the_file(
    gpu: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tuning = gpu["tuning"]
    path = tmp_path / "tuned.json"
    choice = tuning.Choice(gpu["layers"].Tile(64, 32, 16, 4, 3, cached=False), 0.7)
    assert tuning.read(path, "a") == {}
    tuning.write(path, "a", {"3x3 16 -> 16 at 2^7": choice})
    tuning.write(path, "b", {"3x3 16 -> 16 at 2^7": choice})
    tuning.write(path, "a", {"1x1 16 -> 16 at 2^7": choice})
    assert set(tuning.read(path, "a")) == {"3x3 16 -> 16 at 2^7", "1x1 16 -> 16 at 2^7"}
    assert tuning.read(path, "b") == {"3x3 16 -> 16 at 2^7": choice}
    path.write_text('{"a": {"x": {"tile": {}}}}')
    with pytest.raises(ValueError, match="holds no measured layers"):
        tuning.read(path, "a")
