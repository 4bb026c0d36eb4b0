from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
import torch

from models.network.adpc import AdpcNet
from models.network.adpc_configs import AdpcConfig
from models.network.configs import Criterion, Masking
from models.network.masked import MaskedConv2d

INPUTS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("base", [tiny.SEGMENTATION, tiny.POSE], ids=["segmentation", "pose"])
@pytest.mark.parametrize("heads", ["one", "plain", "redesigned"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_mode_scores_every_exit_at_a_quarter(base: AdpcConfig, heads: str, masked: bool) -> None:
    config = replace(base, heads=heads, masking=base.masking if masked else None)  # type: ignore[arg-type]
    with torch.no_grad():
        scores = tiny.network(config)(INPUTS)
    assert [tuple(s.shape) for s in scores] == [(2, config.outputs, 16, 24)] * config.exits
    assert all(s.isfinite().all() for s in scores)


@pytest.mark.parametrize("downsamplings", [(3, 2, 1), (1, 1, 1), (3, 3, 3)])
@pytest.mark.parametrize("window", [3, 5, 9])
def test_ablations_build_and_run(downsamplings: tuple[int, ...], window: int) -> None:
    masking = Masking("max_probability", 0.7, window)
    with torch.no_grad():
        scores = tiny.network(replace(tiny.SEGMENTATION, downsamplings=downsamplings, masking=masking))(INPUTS)
    assert len(scores) == 4


@torch.no_grad()
def test_inactive_positions_keep_their_scores() -> None:
    net = tiny.network()
    progress = net.start(INPUTS)
    shares = []
    for step in net.steps:
        masks, before = progress.masks, progress.scores
        progress = net.advance(progress, step)
        if step.exit is None or masks is None:
            continue
        assert before is not None
        assert progress.scores is not None
        assert progress.decided is not None
        inactive = ~masks.finest
        assert torch.equal(progress.scores[inactive.expand_as(before)], before[inactive.expand_as(before)])
        assert (progress.decided[masks.finest] == step.exit).all()
        assert (progress.decided[inactive] < step.exit).all()
        shares.append(float(masks.finest.float().mean()))
        if progress.masks is not None:
            assert not (progress.masks.finest & inactive).any()  # masks only shrink
    assert len(shares) == 3
    assert 0 < shares[2] < shares[0] < 1


@pytest.mark.parametrize(("criterion", "threshold"), [
    ("max_probability", 0.6), ("margin", 0.4), ("entropy", 0.5), ("max_score", 0.5), ("top_k", 0.3), ("random", 0.3),
])  # fmt: skip
@torch.no_grad()
def test_masks_shrink_where_the_criterion_says_so(criterion: Criterion, threshold: float) -> None:
    masking = Masking(criterion, threshold)
    net = tiny.network(replace(tiny.SEGMENTATION, masking=masking))
    masks = [found.masks.finest for found in net.exits(INPUTS) if found.masks is not None]
    assert len(masks) == 3 and 0 < masks[-1].float().mean() < 1
    grew = any((later & ~earlier).any() for earlier, later in pairwise(masks))
    assert masking.shrinks == (not grew)


@torch.no_grad()
def test_a_threshold_that_leaves_all_active_changes_nothing() -> None:
    net = tiny.network(replace(tiny.SEGMENTATION, masking=Masking("max_probability", 1.0)))
    for masked, dense in zip(net(INPUTS), net(INPUTS, adaptive=False), strict=True):
        assert torch.equal(masked, dense)


@pytest.mark.parametrize(("adaptivity", "training", "masks"), [
    ("both", True, True), ("both", False, True), ("training", True, True), ("training", False, False),
    ("inference", True, False), ("inference", False, True),
])  # fmt: skip
def test_adaptivity_says_when_there_are_masks(adaptivity: str, training: bool, masks: bool) -> None:
    masking = Masking("max_probability", 0.7, adaptivity=adaptivity)  # type: ignore[arg-type]
    net = tiny.network(replace(tiny.SEGMENTATION, masking=masking)).train(training)
    progress = net.start(INPUTS)
    for step in net.steps[:3]:
        progress = net.advance(progress, step)
    assert (progress.masks is not None) == masks


def test_masked_are_the_convolutions_after_exit_1() -> None:
    net = AdpcNet(tiny.SEGMENTATION)
    dense = {name.split(".")[0] for name, m in net.named_modules() if type(m).__name__ == "Conv2d"}
    masked = {name.split(".")[0] for name, m in net.named_modules() if isinstance(m, MaskedConv2d)}
    assert dense == {"conv1", "conv2", "layer1", "exit1"}
    assert masked == {
        "transition1",
        "transition2",
        "transition3",
        "stage2",
        "stage3",
        "stage4",
        "exit2",
        "exit3",
        "last_layer",
    }


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"60x96.*32"):
        tiny.network().start(torch.zeros(1, 3, 60, 96))


def test_the_loss_of_every_exit_trains_the_stem() -> None:
    net = tiny.network().train()
    for index in range(4):
        net.zero_grad()
        net(INPUTS)[index].square().mean().backward()
        assert net.conv1.weight.grad is not None  # type: ignore[union-attr]
        assert net.conv1.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
