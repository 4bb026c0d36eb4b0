"""The training kernels compute what torch's own operations do. Triton interprets them."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from interpreter import interpreting
from torch import Tensor, nn

from models.network.adpc import AdpcNet
from models.training import losses
from models.training.padding import pad_channels, stripped

pytest.importorskip("triton", reason="Triton is published for Linux only")

from models.training.fused import enlarge, entropy, layers, normalise


@pytest.fixture(autouse=True, scope="module")
def _interpreter() -> Iterator[None]:
    with interpreting():
        yield


generator = torch.Generator()


@pytest.fixture(autouse=True)
def _seed() -> None:
    generator.manual_seed(0)
    torch.manual_seed(0)


def draw(*shape: int) -> Tensor:
    """Random values in channels-last order, none near 0, where the derivative of ReLU jumps."""
    found = torch.randn(*shape, generator=generator)
    return found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found


def close(found: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def check_normalise(shape: tuple[int, int, int, int], kind: torch.dtype, *, adds: bool, relu: bool) -> None:
    channels = shape[1]
    layers = [nn.BatchNorm2d(channels, momentum=0.1) for _ in range(2)]
    for name in ("weight", "bias", "running_mean"):
        values = torch.randn(channels, generator=generator)
        for layer in layers:
            getattr(layer, name).data.copy_(values)
    x = (draw(*shape) * 2 + 30 * torch.randn(1, channels, 1, 1, generator=generator)).to(kind)
    added, gradient = draw(*shape).to(kind), draw(*shape).to(kind)
    results = []
    for layer, fused in zip(layers, (True, False), strict=True):
        leaf = x.clone().requires_grad_()
        other = added.clone().requires_grad_()
        if fused:
            out = normalise.normalise(leaf, layer, other if adds else None, relu=relu)
            assert out.dtype == kind
        else:
            out = layer(leaf.float())
            out = out + other.float() if adds else out
            out = out.relu() if relu else out
        out.backward(gradient.to(out.dtype))
        results.append(
            [out, leaf.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]
            + ([other.grad] if adds else [])
        )
    for found, wanted in zip(*results, strict=True):
        close(found.float(), wanted.float(), 2e-4 if kind == torch.float32 else 0.1)


def check_enlarge(
    shape: tuple[int, int, int, int], factor: int, mode: str, *, adds: bool, relu: bool, kind: torch.dtype
) -> None:
    x = draw(*shape).to(kind)
    large = (*shape[:2], shape[2] * factor, shape[3] * factor)
    base, gradient = draw(*large).to(kind), draw(*large).to(kind)
    results = []
    for fused in (True, False):
        leaf, other = x.clone().requires_grad_(), base.clone().requires_grad_()
        if fused:
            out = enlarge.enlarge(leaf, factor, mode, other if adds else None, relu=relu)
        else:
            corners = False if mode == "bilinear" else None
            out = F.interpolate(leaf.float(), scale_factor=factor, mode=mode, align_corners=corners)
            out = out + other.float() if adds else out
            out = out.relu() if relu else out
        out.backward(gradient.to(out.dtype))
        results.append([out, leaf.grad] + ([other.grad] if adds else []))
    for found, wanted in zip(*results, strict=True):
        close(found.float(), wanted.float(), 1e-4 if kind == torch.float32 else 0.05)


def check_concatenate(kind: torch.dtype) -> None:
    xs = [draw(2, channels, 12 // factor, 8 // factor).to(kind) for channels, factor in ((8, 1), (24, 2), (40, 4))]
    gradient = draw(2, 72, 12, 8).to(kind)
    results = []
    for fused in (True, False):
        leaves = [x.clone().requires_grad_() for x in xs]
        if fused:
            out = enlarge.concatenate(tuple(leaves))
        else:
            grown = [F.interpolate(leaf.float(), (12, 8), mode="bilinear", align_corners=False) for leaf in leaves]
            out = torch.cat(grown, 1)
        out.backward(gradient.to(out.dtype))
        results.append([out, *(leaf.grad for leaf in leaves)])
    for found, wanted in zip(*results, strict=True):
        close(found.float(), wanted.float(), 1e-4 if kind == torch.float32 else 0.05)


def check_pool() -> None:
    x, gradient = draw(2, 40, 6, 4), draw(2, 40, 3, 2)
    results = []
    for function in (enlarge.pool, nn.AvgPool2d(2)):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        out.backward(gradient)
        results.append((out.detach(), leaf.grad))
    for found, wanted in zip(*results, strict=True):
        close(found, wanted, 1e-6)


def check_entropy(classes: int, factor: int, void: float, *, cut: bool) -> None:
    count, height, width = 2, 5, 7
    held = draw(count, classes + 5, height, width) if cut else draw(count, classes, height, width)
    labels = torch.randint(0, classes, (count, height * factor, width * factor), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void] = 255
    weights = torch.rand(classes, generator=generator) + 0.5
    results = []
    for function in (entropy.segmentation, losses.segmentation):
        leaf = held.clone().requires_grad_()
        scores = leaf[:, :classes]
        found = function([3 * scores, scores], labels, weights, 255)
        (found * torch.tensor([1.0, 2.0])).sum().backward()
        results.append((found.detach(), leaf.grad))
    for found, wanted in zip(*results, strict=True):
        close(found, wanted, 1e-5)


def test_half_precision() -> None:
    """Gradients of bfloat16 scores and features are as close to those of float32 as torch's own bfloat16 gradients.

    The interpreter truncates float32 to bfloat16, where a GPU rounds. The kernels therefore get bfloat16 numbers in
    float32, with which they compute the same, and their results are rounded here.
    """
    labels = torch.randint(0, 11, (2, 24, 32), generator=generator)
    weights = torch.rand(11, generator=generator) + 0.5
    scores = (3 * draw(2, 16, 6, 8)).bfloat16()
    x, gradient = (draw(2, 24, 6, 8) * 2 + 1).bfloat16(), draw(2, 24, 12, 16).bfloat16()

    def of_loss(fused: bool, kind: torch.dtype) -> Tensor:
        leaf = scores.to(kind, copy=True).requires_grad_()
        function = entropy.segmentation if fused else losses.segmentation
        function([leaf[:, :11]], labels, weights, 255).sum().backward()
        return leaf.grad.bfloat16() if fused else leaf.grad

    def of_upsampling(fused: bool, kind: torch.dtype) -> Tensor:
        leaf = x.to(kind, copy=True).requires_grad_()
        if fused:
            out = enlarge.enlarge(leaf, 2, "bilinear")
        else:
            out = F.interpolate(leaf, scale_factor=2, mode="bilinear", align_corners=False)
        out.backward(gradient.to(kind))
        return leaf.grad.bfloat16() if fused else leaf.grad

    def of_normalisation(fused: bool, kind: torch.dtype) -> Tensor:
        leaf, layer = x.to(kind, copy=True).requires_grad_(), nn.BatchNorm2d(24)
        out = normalise.normalise(leaf, layer, relu=True) if fused else layer(leaf).relu()
        out.backward(gradient[:, :, ::2, ::2].to(kind))
        return leaf.grad.bfloat16() if fused else leaf.grad

    for slope in (of_loss, of_upsampling, of_normalisation):
        exact, usual, ours = slope(False, torch.float32), slope(False, torch.bfloat16), slope(True, torch.float32)
        error, allowed = ((found.float() - exact).norm() / exact.norm() for found in (ours, usual))
        assert 0 < error < 1.05 * allowed < 0.02, slope.__name__
        close(slope(True, torch.bfloat16).float(), ours.float(), 2**-7)


def check_programs_are_counted_anew() -> None:
    """A layer that is used again, with other programs, finds the count at 0."""
    layer = nn.BatchNorm2d(40)
    for height in (31, 3, 17):
        normalise.normalise(draw(2, 40, height, 5).requires_grad_(), layer, relu=False).sum().backward()
        assert not normalise._counter(layer.weight).any()


def test_a_padded_network_with_all_kernels_has_the_gradients_of_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (  # few programs: each takes long here
        (normalise, "ROWS", 256), (normalise, "PROGRAMS", 2), (normalise, "CHANNELS", 64), (enlarge, "POSITIONS", 256),
        (enlarge, "GATHERED", 256), (enlarge, "CHANNELS", 16), (entropy, "POSITIONS", 256), (entropy, "CELLS", 256),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    config = replace(tiny.SEGMENTATION, downsamplings=(1, 1, 1))
    plain = AdpcNet(config).train()
    fused = deepcopy(plain)
    pad_channels(fused)
    layers.install(fused.to(memory_format=torch.channels_last))
    x = draw(2, 3, 32, 64)
    labels = torch.randint(0, 3, (2, 32, 64), generator=generator)
    labels[:, :9] = 255
    weights = torch.rand(3, generator=generator) + 0.5
    found = entropy.segmentation(fused(x, False), labels, weights, 255)
    wanted = losses.segmentation(plain(x, False), labels, weights, 255)
    close(found, wanted)
    found.sum().backward()
    wanted.sum().backward()
    slopes = {name: parameter.grad for name, parameter in fused.named_parameters() if parameter.grad is not None}
    ours = stripped(config, slopes)
    theirs = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, slope in theirs.items():
        assert slope is not None
        close(ours[name], slope, 1e-4)
    padding = sum(float(slope.abs().sum()) for slope in slopes.values()) - sum(
        float(slope.abs().sum()) for slope in ours.values()
    )
    assert abs(padding) < 1e-3


def test_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalise, "PROGRAMS", 4)  # several tiles a program
    for adds in (False, True):
        for relu in (False, True):
            check_normalise((2, 24, 13, 11), torch.float32, adds=adds, relu=relu)
            check_normalise((3, 40, 5, 7), torch.bfloat16, adds=adds, relu=relu)
    check_normalise((1, 8, 2, 5), torch.float32, adds=False, relu=False)
    check_normalise((7, 8, 31, 9), torch.float32, adds=True, relu=True)
    check_programs_are_counted_anew()


def test_sizes() -> None:
    for factor in (2, 4, 8):
        for mode in ("bilinear", "nearest"):
            check_enlarge((2, 8, 3, 5), factor, mode, adds=factor == 4, relu=factor > 2, kind=torch.float32)
    check_enlarge((1, 40, 1, 3), 2, "bilinear", adds=True, relu=True, kind=torch.bfloat16)
    check_enlarge((1, 8, 4, 1), 2, "bilinear", adds=False, relu=False, kind=torch.float32)
    check_concatenate(torch.float32)
    check_concatenate(torch.bfloat16)
    check_pool()


def test_losses() -> None:
    for classes, factor, void in ((11, 4, 0.3), (3, 2, 0.0), (16, 4, 0.1)):
        for cut in (False, True):
            check_entropy(classes, factor, void, cut=cut)
