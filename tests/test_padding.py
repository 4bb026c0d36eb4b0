"""A network with padded channels computes what the plain one does, and its padding stays zero."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from models.network.configs import ModelConfig
from models.training.padding import is_padded, pad_channels, strip_channels, stripped
from models.training.recipe import Phase, Recipe
from models.training.train import Run, Speed

RECIPE = Recipe(splits=("train",), phases=(Phase(steps=9, batch=2, crop=(64, 64), scale=(0.5, 1.0)),))
CPU = torch.device("cpu")
CONFIGS = pytest.mark.parametrize("config", [tiny.SEGMENTATION, tiny.POSE], ids=["segmentation", "pose"])


def steps(run: Run, count: int, seed: int) -> None:
    run.network.train()
    run.set_rate(1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        run.optimizer.zero_grad()
        scores = run.network(torch.randn(2, 3, 64, 64, generator=generator), False)
        sum(((found - 0.5) ** 2).mean() for found in scores).backward()  # type: ignore[union-attr]
        run.optimizer.step()
        run.follow(0.5)


def padding_of(network: torch.nn.Module, config: ModelConfig) -> float:
    """The sum of all magnitudes of a padded network, without those of its weights."""

    def size(state: dict[str, Tensor]) -> float:
        counted = {name: tensor for name, tensor in state.items() if "running_var" not in name}
        return float(sum(tensor.double().abs().sum() for tensor in counted.values() if tensor.is_floating_point()))

    return size(network.state_dict()) - size(stripped(config, network.state_dict()))


@CONFIGS
def test_a_padded_network_says_the_same(config: ModelConfig) -> None:
    plain = tiny.network(config).eval()
    network = tiny.network(config).eval()
    pad_channels(network)
    assert is_padded(network) and not is_padded(plain)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(network(x), plain(x), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    again = strip_channels(network).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.state_dict().items())


@CONFIGS
def test_padding_stays_zero_in_training_which_goes_the_same_way(config: ModelConfig) -> None:
    runs = [Run.begin(config, RECIPE, CPU, speed=Speed(padded=padded)) for padded in (False, True)]
    for run in runs:
        steps(run, 3, seed=1)
    plain, padded = runs
    assert padding_of(padded.network, config) == padding_of(padded.mean, config) == 0
    for found, wanted in zip(strip_channels(padded.network).parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=3e-3, rtol=1e-2)  # AdamW's step is 1e-3 however small a slope


@pytest.mark.parametrize("padded", [(True, False), (False, True), (True, True)])
def test_a_run_goes_on_with_padding_or_without(padded: tuple[bool, bool], tmp_path: Path) -> None:
    first, second = (Run.begin(tiny.SEGMENTATION, RECIPE, CPU, speed=Speed(padded=each)) for each in padded)
    steps(first, 2, seed=1)
    first.save(tmp_path)
    second.load(tmp_path)
    states = []
    for run in (first, second):
        state = run.network.state_dict()
        states.append(stripped(tiny.SEGMENTATION, state) if is_padded(run.network) else state)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    for run in (first, second):
        steps(run, 1, seed=2)
    moved = [
        (strip_channels(run.network) if is_padded(run.network) else run.network).conv2.weight for run in (first, second)
    ]
    torch.testing.assert_close(moved[0], moved[1], atol=1e-4, rtol=1e-3)
