"""Compares the training kernels with torch's own operations. Runs where Triton interprets kernels: test_fused.py."""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training import losses
from models.training.fused import enlarge, entropy, normalise

generator = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    """Channels last; no value near 0, where ReLU's derivative jumps."""
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


if __name__ == "__main__":
    torch.set_num_threads(2)
    normalise.PROGRAMS = 4  # several tiles a program
    for adds in (False, True):
        for relu in (False, True):
            check_normalise((2, 24, 13, 11), torch.float32, adds=adds, relu=relu)
            check_normalise((3, 40, 5, 7), torch.bfloat16, adds=adds, relu=relu)
    check_normalise((1, 8, 2, 5), torch.float32, adds=False, relu=False)
    check_normalise((7, 8, 31, 9), torch.float32, adds=True, relu=True)
    for factor in (2, 4, 8):
        for mode in ("bilinear", "nearest"):
            check_enlarge((2, 8, 3, 5), factor, mode, adds=factor == 4, relu=factor > 2, kind=torch.float32)
    check_enlarge((1, 40, 1, 3), 2, "bilinear", adds=True, relu=True, kind=torch.bfloat16)
    check_enlarge((1, 8, 4, 1), 2, "bilinear", adds=False, relu=False, kind=torch.float32)
    check_concatenate(torch.float32)
    check_concatenate(torch.bfloat16)
    check_pool()
    for classes, factor, void in ((11, 4, 0.3), (3, 2, 0.0), (16, 4, 0.1)):
        for cut in (False, True):
            check_entropy(classes, factor, void, cut=cut)
    sys.exit(0)
