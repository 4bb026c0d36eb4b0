"""HRNet feature by feature, and in eight bits by plain integers."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from models.anytime import exits_in_turns, exits_of
from models.executors.cpu.executor import SparseExecutor
from models.executors.cpu.lowering import Lowering
from models.executors.cpu.structures import OpKind
from models.executors.reference import ReferenceExecutor
from models.imaging.preprocess import mean_pixel, normal, normalise
from models.network import quantised
from models.network.adpc import AdpcNet
from models.network.adpc_configs import AdpcConfig
from models.network.named import Feature, FoldedConv, NamedNetwork, feature_names, readers
from models.network.network import Progress, Stepwise
from models.network.quantised import QuantisedNetwork
from models.quantisation import Scales

PLAIN = replace(tiny.SEGMENTATION, heads="plain")
CONFIGS = {
    "segmentation": tiny.SEGMENTATION,
    "pose": tiny.POSE,
    "plain heads": PLAIN,
    "plain pose": replace(tiny.POSE, heads="plain"),
    "one exit": replace(tiny.SEGMENTATION, heads="one", masking=None),
    "bottlenecks": replace(PLAIN, backbone=replace(tiny.BACKBONE, layer1_blocks=2, modules=(1, 2, 1), blocks=2)),
}


def images(config: AdpcConfig) -> Tensor:
    return torch.randn(2, 3, *config.size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def scores(network: Stepwise, inputs: Tensor) -> list[Tensor]:
    """Of every exit, under the network's own masks."""
    progress, found = network.start(inputs), []
    for step in network.steps:
        progress = network.advance(progress, step)
        if step.exit is not None:
            assert progress.scores is not None
            found.append(progress.scores)
    return found


class Ranges(NamedNetwork):
    """Notes the largest value of every feature."""

    def __init__(self, network: AdpcNet) -> None:
        super().__init__(network)
        self.largest: dict[str, float] = {}

    def feature(self, name: str, values: Tensor) -> Feature:
        assert values.min() >= 0
        self.largest[name] = float(values.max())
        return super().feature(name, values)


def scales_of(network: AdpcNet, steps: int = 255, float_layers: tuple[str, ...] = ()) -> Scales:
    ranges = Ranges(network)
    scores(ranges, images(network.config))
    return Scales("", {name: (value or 1) / steps for name, value in ranges.largest.items()}, float_layers)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_network_is_the_same_feature_by_feature(name: str) -> None:
    network = tiny.network(CONFIGS[name])
    inputs = images(network.config)
    for found, expected in zip(scores(NamedNetwork(network), inputs), scores(network, inputs), strict=True):
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_feature_has_a_name_and_every_convolution_a_source(name: str) -> None:
    network = tiny.network(CONFIGS[name])
    names, by_feature = feature_names(network), readers(network)
    assert len(set(names)) == len(names) and names[:3] == ["conv1", "conv2", "layer1.0.conv1"]
    assert set(by_feature) == {"image", *names}
    convs = {path for path, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    assert {path for paths in by_feature.values() for path in paths} == convs
    assert by_feature["image"] == ["conv1"]


def test_features_are_named_by_what_makes_them() -> None:
    names = feature_names(tiny.network())
    for name in (
        "layer1.0.conv2", "layer1.0", "transition1.0", "transition2.2", "stage2.0.branches.1.0.conv1",
        "stage2.0.branches.1.0", "stage4.0.fuse_layers.3.0.1", "stage3.0.out.2", "exit1.pooled.2", "exit1.1",
        "exit2.9", "last_layer.0",
    ):  # fmt: skip
        assert name in names
    assert "transition2.0" not in names  # the branch is passed on


def test_one_convolution_by_hand() -> None:
    """A feature of 0.5 a step, and two output channels whose largest weights are 127 and 12.7."""
    network = QuantisedNetwork(tiny.network(), Scales("", {"conv1": 0.5}))
    assert network.stored == {"conv1": 0.5}
    conv = torch.nn.Conv2d(1, 2, 1)
    weight = torch.tensor([127.0, 12.7]).view(2, 1, 1, 1)
    zeros = torch.zeros(2, 1, 1)
    folded = FoldedConv("hand", conv, weight, zeros, zeros)
    x = network.feature("conv1", torch.tensor([0.0, 0.24, 0.25, 0.75, 1.1, 1000.0]).view(1, 1, 1, 6))
    assert x.values.flatten().tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 127.5]  # ties to even; 255 steps at most
    sums = network.sums(folded, x)
    assert sums.dtype == torch.float64 and sums[0, :, 0].tolist() == [[0, 0, 0, 254, 254, 32385]] * 2
    values = network.products(folded, x)[0, :, 0]
    assert values.dtype == torch.float32
    assert torch.allclose(values, torch.tensor([[0, 0, 0, 127, 127, 16192.5], [0, 0, 0, 12.7, 12.7, 1619.25]]))


def test_sums_of_a_negative_weight_round_to_even_steps() -> None:
    network = QuantisedNetwork(tiny.network(), Scales("", {"conv1": 1.0}))
    weight = torch.tensor([127.0, -2.5, 3.5]).view(1, 3, 1, 1)
    zero = torch.zeros(1, 1, 1)
    folded = FoldedConv("hand", torch.nn.Conv2d(3, 1, 1), weight, zero, zero)
    x = network.feature("conv1", torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1))
    assert network.sums(folded, x).item() == 127 - 2 * 10 + 4 * 100


@pytest.mark.parametrize("name", CONFIGS)
def test_with_fine_steps_it_is_the_float_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, steps = tiny.network(CONFIGS[name]), 1 << 20
    scales, inputs = scales_of(network, steps, ("conv1",)), images(network.config)
    expected = scores(network, inputs)
    monkeypatch.setattr(quantised, "LARGEST", steps)
    monkeypatch.setattr(quantised, "WEIGHT_LARGEST", steps)
    for found, wanted in zip(scores(QuantisedNetwork(network, scales), inputs), expected, strict=True):
        close = (found - wanted).abs() < 1e-3 * wanted.abs().max()
        assert close.float().mean() > 0.99  # a mask may flip where a confidence meets the threshold


def test_the_first_convolution_reads_pixels_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny.network()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    inputs = normalise(pixels, network.config)
    monkeypatch.setattr(quantised, "WEIGHT_LARGEST", 1 << 20)
    exact, oracle = NamedNetwork(network), QuantisedNetwork(network, Scales("", {"conv1": 1.0}))
    conv = exact._fold(network.conv1, network.bn1)
    found, expected = (which.products(conv, Feature("image", inputs)) for which in (oracle, exact))
    scale = float(expected.abs().max())
    torch.testing.assert_close(found[..., 1:, 1:], expected[..., 1:, 1:], rtol=0, atol=1e-5 * scale)
    off = (found - expected).abs().max()
    assert 1e-5 * scale < off < 0.01 * scale  # the padding is a whole pixel, up to half a step from the mean
    mean = torch.tensor(mean_pixel(network.config)).round()
    corner = oracle.sums(conv, Feature("image", inputs))[0, 0, 0, 0]
    weight = (conv.weight.double() * torch.from_numpy(normal(network.config)[0]).double().view(3, 1, 1))[0]
    weight = (weight / weight.abs().max() * (1 << 20)).round()
    taken = mean.view(3, 1, 1).repeat(1, 3, 3)
    taken[:, 1:, 1:] = torch.from_numpy(pixels[:2, :2]).permute(2, 0, 1)
    assert float(corner) == pytest.approx(float((weight * taken).sum()), rel=1e-6)


def test_eight_bits_are_close_to_the_float_network_and_not_equal() -> None:
    network = tiny.network()
    inputs = images(network.config)
    found, expected = scores(QuantisedNetwork(network, scales_of(network)), inputs)[0], scores(network, inputs)[0]
    off = float((found - expected).abs().max() / expected.abs().max())
    assert 1e-4 < off < 0.1


def test_layers_that_stay_in_float_are_the_float_network() -> None:
    network = tiny.network()
    floating = QuantisedNetwork(network, Scales("", {}))
    inputs = images(network.config)
    for found, expected in zip(scores(floating, inputs), scores(NamedNetwork(network), inputs), strict=True):
        assert torch.equal(found, expected)
    kept = QuantisedNetwork(network, Scales("", {"conv1": 0.5, "conv2": 0.5}, ("conv2",)))
    x = kept.feature("conv1", torch.full((1, 64, 4, 4), 0.6))
    conv = kept._fold(network.conv2, network.bn2)
    assert torch.equal(kept.products(conv, x), NamedNetwork(network).products(conv, x))
    assert float(x.values.max()) == 0.5  # the feature is stored in eight bits all the same


def test_features_hold_whole_steps() -> None:
    network = tiny.network()
    scales = scales_of(network)

    class Watched(QuantisedNetwork):
        def feature(self, name: str, values: Tensor) -> Feature:
            found = super().feature(name, values)
            if name in self.stored:
                steps = found.values / self.stored[name]
                assert torch.allclose(steps, steps.round(), atol=1e-4) and steps.max() <= 255.01
                seen.add(name)
            return found

    seen: set[str] = set()
    watched = Watched(network, scales)
    scores(watched, images(network.config))
    assert seen == set(watched.stored) == set(feature_names(network))


def test_scales_that_do_not_fit_the_network_are_refused() -> None:
    network = tiny.network()
    with pytest.raises(ValueError, match=r"1 features of the scales are not in tiny-segmentation.* conv9"):
        QuantisedNetwork(network, Scales("", {"conv9": 1.0}))
    with pytest.raises(ValueError, match=r"1 float_layers of the scales are not in tiny-segmentation.* exit9"):
        QuantisedNetwork(network, Scales("", {"conv1": 1.0}, ("exit9",)))


def test_the_reference_executor_runs_it() -> None:
    network = tiny.network()
    inputs, scales = images(network.config)[:1], scales_of(network)
    expected = scores(QuantisedNetwork(network, scales), inputs)
    model = ReferenceExecutor(network, scales=scales)
    assert model.precision == "int8" and ReferenceExecutor(tiny.network()).precision == "fp32"
    state = model.begin(tiny.image())
    state.progress = model.network.start(inputs)
    for exit_index in exits_of(model, [state]):
        assert torch.equal(state.latest().scores, expected[exit_index - 1][0])
        assert isinstance(state.progress, Progress)


@pytest.mark.parametrize("name", CONFIGS)
def test_lowered_steps_use_exactly_these_names(name: str) -> None:
    network = tiny.network(CONFIGS[name])
    lowering = Lowering(network)
    phases = [phase for step in network.steps for phase in lowering.lower(step).phases]
    ops = [op for phase in phases for loop in phase for op in loop.ops]
    names = {matrix.name for op in ops for matrix in (op.source, op.target) if matrix.name is not None}
    assert names == set(feature_names(network))
    convs = {op.convolution.name for op in ops if op.kind == OpKind.CONVOLVE and op.convolution is not None}
    assert convs == {path for paths in readers(network).values() for path in paths}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("floating", [False, True])
def test_the_sparse_executor_computes_the_same(name: str, floating: bool) -> None:
    """Both run under the masks that the plain integers left: a confidence at the threshold may go either way."""
    network = tiny.network(CONFIGS[name])
    kept = tuple(path for path, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d))[5::7]
    scales = scales_of(network, float_layers=kept if floating else ())
    plain, fast = ReferenceExecutor(network, scales=scales), SparseExecutor(network, 1, scales=scales)
    height, width = network.config.size
    states = [model.begin(tiny.image(height, width)) for model in (plain, fast)]
    for exit_index in exits_in_turns([(plain, states[:1]), (fast, states[1:])]):
        expected, found = (state.latest() for state in states)
        close = (found.scores - expected.scores).abs() < 0.02 * expected.scores.abs().max()
        assert close.float().mean() > 0.98
        if network.config.masks_after(exit_index):
            fast.override(states[1], expected.mask, shrinking=True)
