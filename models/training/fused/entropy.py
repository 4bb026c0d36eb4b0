"""The segmentation loss as Triton kernels: bilinear upsampling and weighted cross-entropy, with no logits of full size
in memory. The backward pass computes the probabilities again."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, POSITIONS = 128, 32
"""Pixels of a program forward; positions of a program backward, each of which gathers from (2 * factor)^2 pixels."""


@triton.jit  # type: ignore[untyped-decorator]
def _logits(scores, image, row, column, height, width, stride, number, classes, here, FACTOR: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803, PLR0917
    """Scores of pixels, from the four positions around each; -inf where there is no class."""
    down = tl.maximum((row.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0)
    right = tl.maximum((column.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0)
    top, left = down.to(tl.int32), right.to(tl.int32)
    down, right = (down - top)[:, None], (right - left)[:, None]
    bottom, beside = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    upper, lower = (image * height + top) * width, (image * height + bottom) * width
    a = tl.load(scores + (upper + left)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    b = tl.load(scores + (upper + beside)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    c = tl.load(scores + (lower + left)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    d = tl.load(scores + (lower + beside)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    value = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
    return tl.where(number < classes, value, float("-inf"))


@triton.jit(do_not_specialize=["pixels", "height", "width", "stride", "classes"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    scores, labels, weights, partial, pixels, height, width, stride, classes,
    FACTOR: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    number = tl.arange(0, CLASSES)[None, :]
    label = tl.load(labels + pixel, mask=pixel < pixels, other=255).to(tl.int32)
    counted = label < classes
    column = pixel % (width * FACTOR)
    line = pixel // (width * FACTOR)
    row, image = line % (height * FACTOR), line // (height * FACTOR)
    here = counted[:, None] & (number < classes)
    value = _logits(scores, image, row, column, height, width, stride, number, classes, here, FACTOR)
    highest = tl.max(value, 1)
    summed = tl.sum(tl.exp(value - highest[:, None]), 1)
    own = tl.sum(tl.where(number == label[:, None], value, 0.0), 1)
    weight = tl.load(weights + label, mask=counted, other=0)
    loss = tl.where(counted, weight * (tl.log(summed) + highest - own), 0.0)
    tl.store(partial + 2 * tl.program_id(0), tl.sum(loss))
    tl.store(partial + 2 * tl.program_id(0) + 1, tl.sum(weight))


@triton.jit(do_not_specialize=["positions", "height", "width", "stride", "classes"])  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    scores, labels, weights, factor, found, positions, height, width, stride, classes,
    FACTOR: tl.constexpr, POSITIONS: tl.constexpr, CLASSES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    exists = position < positions
    number = tl.arange(0, CLASSES)[None, :]
    column = position % width
    row, image = (position // width) % height, position // width // height
    total = tl.zeros((POSITIONS, CLASSES), tl.float32)
    for index in range(4 * FACTOR * FACTOR):
        below = row * FACTOR - FACTOR // 2 + index // (2 * FACTOR)
        beside = column * FACTOR - FACTOR // 2 + index % (2 * FACTOR)
        inside = exists & (below >= 0) & (below < height * FACTOR) & (beside >= 0) & (beside < width * FACTOR)
        pixel = (image * height * FACTOR + below) * (width * FACTOR) + beside
        label = tl.load(labels + pixel, mask=inside, other=255).to(tl.int32)
        counted = label < classes
        here = counted[:, None] & (number < classes)
        value = _logits(scores, image, below, beside, height, width, stride, number, classes, here, FACTOR)
        value = tl.exp(value - tl.max(value, 1)[:, None])
        value = value / tl.sum(value, 1)[:, None] - tl.where(number == label[:, None], 1.0, 0.0)
        down = tl.minimum(tl.maximum((below.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0), height - 1.0)
        right = tl.minimum(tl.maximum((beside.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0), width - 1.0)
        share = tl.maximum(1 - tl.abs(down - row), 0.0) * tl.maximum(1 - tl.abs(right - column), 0.0)
        weight = share * tl.load(weights + label, mask=counted, other=0)
        total += tl.where(counted[:, None], weight[:, None] * value, 0.0)
    total = total * tl.load(factor)
    at = found + position[:, None] * classes + number
    tl.store(at, total.to(found.dtype.element_ty), mask=exists[:, None] & (number < classes))


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, weights: Tensor, factor: int) -> Tensor:
        count, classes, height, width = scores.shape
        if not _is_rows(scores):
            scores = scores.contiguous(memory_format=torch.channels_last)
        pixels = labels.numel()
        programs = triton.cdiv(pixels, PIXELS)
        partial = torch.empty(programs, 2, device=scores.device)
        padded = triton.next_power_of_2(classes)
        _forward[programs,](
            scores, labels, weights, partial, pixels, height, width, scores.stride(3), classes, factor, PIXELS, padded
        )
        loss, total = partial.sum(0)
        ctx.save_for_backward(scores, labels, weights, total)
        ctx.factor = factor
        return loss / total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scores, labels, weights, total = ctx.saved_tensors
        count, classes, height, width = scores.shape
        found = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device, memory_format=torch.channels_last)
        positions = count * height * width
        _backward[triton.cdiv(positions, POSITIONS),](
            scores, labels, weights, (gradients[0] / total).float(), found, positions, height, width,
            scores.stride(3), classes, ctx.factor, POSITIONS, triton.next_power_of_2(classes),
        )  # fmt: skip
        return found, None, None, None


def _is_rows(scores: Tensor) -> bool:
    """Whether positions follow each other at one distance, classes side by side."""
    count, _, height, width = scores.shape
    step = scores.stride(3)
    return scores.stride() == (height * width * step, 1, width * step, step)


def segmentation(scores: Sequence[Tensor], labels: Tensor, weights: Tensor, void: int) -> Tensor:
    """As `losses.segmentation`; labels of `void`, 255, must be the only ones that are no class."""
    small = labels.to(torch.uint8)
    factor = labels.shape[-1] // scores[0].shape[-1]
    return torch.stack([_Entropy.apply(found, small, weights, factor) for found in scores])  # type: ignore[no-untyped-call]
