"""The stochastic sampling baseline: gradients, sparsity, determinism, cost."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from models.anytime import run
from models.checkpoint import load_directory, load_weights
from models.network.configs import GIGA
from models.network.flops import gmacs
from models.training.comparison.sampling import (
    EXIT_WEIGHTS,
    MASK_WEIGHTS,
    SPARSITY,
    SampledExecutor,
    SampledNet,
    SampledSegmentation,
)
from models.training.recipe import Phase, Recipe
from models.training.train import Run, train

RECIPE = Recipe(
    splits=("train",),
    phases=(
        Phase(steps=3, batch=2, crop=(32, 64), scale=(0.7, 1.5), masks=False),
        Phase(steps=3, batch=2, crop=(32, 64), scale=(0.7, 1.5)),
    ),
)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(bias: float = 0.0, steps: int = 10) -> SampledNet:
    """A network whose samplers make some positions active and some inactive."""
    torch.manual_seed(0)
    net = SampledNet(tiny.SEGMENTATION, steps)
    for exit_index in (1, 2, 3):
        torch.nn.init.normal_(net.get_parameter(f"sampler{exit_index}.weight"), std=0.1)
        torch.nn.init.constant_(net.get_parameter(f"sampler{exit_index}.bias"), bias)
    return net


@pytest.fixture
def task(tmp_path: Path) -> SampledSegmentation:
    tiny.write_scenes(tmp_path / "data")
    return SampledSegmentation(tiny.SEGMENTATION, RECIPE, tmp_path / "data", torch.device("cpu"))


def shares(net: SampledNet) -> list[float]:
    with torch.no_grad():
        return [float(found.masks.finest.float().mean()) for found in net.eval().exits(IMAGES) if found.masks]


def test_gradients_of_the_scores_alone_reach_the_samplers() -> None:
    net = network().train()
    found = net(IMAGES)
    assert [tuple(each.shape) for each in found] == [(2, 3, 16, 16)] * 4 + [(2, 1, 16, 16)] * 3
    found[3].square().mean().backward()
    for exit_index in (1, 2, 3):
        gradient = net.get_parameter(f"sampler{exit_index}.weight").grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_the_samples_are_soft_noisy_and_decided_by_the_seed() -> None:
    net = network().train()

    def masks() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        net.temperature.fill_(1.0)
        return tuple(net(IMAGES)[4:])

    first, again = masks(), masks()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert net.temperature == pytest.approx(0.03**0.1)
    other = net(IMAGES)[4:]
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert ((first[0] > 0.1) & (first[0] < 0.9)).float().mean() > 0.3


def test_evaluation_draws_nothing_and_masks_are_binary() -> None:
    net = network().eval()
    assert all(0 < share < 1 for share in shares(net))
    assert len(net(IMAGES)) == 4
    assert all(torch.equal(a, b) for a, b in zip(net(IMAGES), net(IMAGES), strict=True))
    assert shares(network(bias=100.0)) == [1, 1, 1]
    assert shares(network(bias=-100.0)) == [0, 0, 0]


def test_the_loss_weighs_exits_and_adds_the_shares(task: SampledSegmentation) -> None:
    inputs, targets = task.batch(0)
    found = network().train()(inputs)
    plain = super(SampledSegmentation, task).losses(found[:4], targets)
    expected = plain * torch.tensor(EXIT_WEIGHTS)
    for index, mask in enumerate(found[4:]):
        expected[index] += SPARSITY * MASK_WEIGHTS[index] * mask.mean()
    torch.testing.assert_close(task.losses(found, targets), expected)
    torch.testing.assert_close(task.losses(found[:4], targets), plain * torch.tensor(EXIT_WEIGHTS))


def test_the_penalty_drives_the_share_down() -> None:
    net = network(bias=2.0, steps=1000)
    before = shares(net)
    samplers = [parameter for name, parameter in net.named_parameters() if name.startswith("sampler")]
    optimizer = torch.optim.SGD(samplers, lr=50.0)
    net.train()
    for _ in range(10):
        optimizer.zero_grad()
        penalty = sum(
            SPARSITY * weight * mask.mean() for weight, mask in zip(MASK_WEIGHTS, net(IMAGES)[4:], strict=True)
        )
        penalty.backward()  # type: ignore[union-attr]
        optimizer.step()
    after = shares(net)
    assert all(a < b - 0.1 for a, b in zip(after, before, strict=True))


def test_a_run_that_was_stopped_ends_with_the_same_weights(task: SampledSegmentation, tmp_path: Path) -> None:
    def begin() -> Run:
        return Run.begin(tiny.SEGMENTATION, RECIPE, torch.device("cpu"), make=lambda model: SampledNet(model, 6))

    whole = begin()
    (tmp_path / "whole").mkdir()
    train(whole, task, RECIPE, tmp_path / "whole")
    assert float(whole.network.get_buffer("temperature")) == pytest.approx(0.03**0.5)  # masks in 3 of 6 steps
    parts = tmp_path / "parts"
    parts.mkdir()
    train(begin(), task, RECIPE, parts, steps=4)
    resumed = begin()
    resumed.load(parts)
    train(resumed, task, RECIPE, parts)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    stored = SampledNet(tiny.SEGMENTATION)
    load_weights(stored, parts / "model.safetensors")
    kept, mean = (net.get_parameter("sampler3.bias") for net in (stored, resumed.mean))
    torch.testing.assert_close(kept, mean, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="tensors are unknown: sampler"):
        load_directory(parts)


def test_the_samplers_are_counted() -> None:
    """All active: the dense network, and three 3x3 convolutions to one channel at a quarter of 64x96."""
    net = network(bias=100.0)
    model = SampledExecutor(net)
    samplers = np.cumsum([0, *(9 * channels * 16 * 24 for channels in (256, 4 + 8, 4 + 8 + 16))])
    dense = np.multiply(gmacs(tiny.SEGMENTATION, 64, 96), GIGA)
    found = [state.exit.macs for state, _ in run(model, tiny.image(60, 90)) if state.exit]
    np.testing.assert_allclose(found, dense + samplers, rtol=0, atol=0.5)
    masked = [state.exit.macs for state, _ in run(SampledExecutor(network()), tiny.image(60, 90)) if state.exit]
    assert masked[3] < found[3]


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="sampling wants segmentation"):
        SampledNet(tiny.POSE)
