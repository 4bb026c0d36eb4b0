"""The segmentation loss as Triton kernels: bilinear upsampling and weighted cross-entropy, with no logits of full size
in memory.

Four neighbouring positions of the scores bound a cell, and all pixels of a cell are interpolated from them. One program
reads the corners of its cells once, takes the softmax of every pixel once, and computes the loss and its gradient by
the corners in the same pass. The backward pass adds up the gradients of the four cells around a position.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CELLS, POSITIONS = 64, 64
"""A program of the forward pass computes `CELLS` cells, one of the backward pass `POSITIONS` positions."""
CORNERS = 4


@triton.jit(do_not_specialize=["cells", "height", "width", "classes"])  # type: ignore[untyped-decorator]
def _entropy_forward(  # type: ignore[no-untyped-def]  # noqa: PLR0915, PLR0917
    scores, labels, weights, partial, corners, cells, height, width, stride, classes,
    FACTOR: tl.constexpr, CELLS: tl.constexpr, CLASSES: tl.constexpr, WHOLE: tl.constexpr,  # noqa: N803
    GRADIENT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """`partial` (programs, 2): sums of the loss and of the weights. `corners` (4, cells, CLASSES): gradients of the sum
    of the loss by the upper left, upper right, lower left and lower right corner. `WHOLE`: rows of scores
    have CLASSES values.

    Corners of a border cell coincide at one position; the whole gradient is stored for the corner that is inside.
    """
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    exists = cell < cells
    number = tl.arange(0, CLASSES)[None, :]
    known = number < classes
    column = cell % (width + 1) - 1
    line = cell // (width + 1)
    row, image = line % (height + 1) - 1, line // (height + 1)
    top, bottom = tl.maximum(row, 0), tl.minimum(row + 1, height - 1)
    left, right = tl.maximum(column, 0), tl.minimum(column + 1, width - 1)
    upper, lower = (image * height + top) * width, (image * height + bottom) * width
    here = exists[:, None] if WHOLE else exists[:, None] & known
    # No infinity, which would become NaN in the interpolation.
    a = tl.load(scores + (upper + left)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    b = tl.load(scores + (upper + right)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    c = tl.load(scores + (lower + left)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    d = tl.load(scores + (lower + right)[:, None] * stride + number, mask=here, other=0).to(tl.float32)
    a, b, c, d = (
        tl.where(known, a, -1e30),
        tl.where(known, b, -1e30),
        tl.where(known, c, -1e30),
        tl.where(known, d, -1e30),
    )
    of_a = tl.zeros((CELLS, CLASSES), tl.float32)
    of_b = tl.zeros((CELLS, CLASSES), tl.float32)
    of_c = tl.zeros((CELLS, CLASSES), tl.float32)
    of_d = tl.zeros((CELLS, CLASSES), tl.float32)
    loss = tl.zeros((CELLS,), tl.float32)
    total = tl.zeros((CELLS,), tl.float32)
    for below in range(FACTOR):
        down = tl.where(row < 0, 1.0, tl.where(row == height - 1, 0.0, (below + 0.5) / FACTOR))[:, None]
        at_left, at_right = a + down * (c - a), b + down * (d - b)
        pixel_row = row * FACTOR + FACTOR // 2 + below
        line_inside = exists & (pixel_row >= 0) & (pixel_row < height * FACTOR)
        pixels = labels + (image * height * FACTOR + pixel_row) * (width * FACTOR)
        of_left = tl.zeros((CELLS, CLASSES), tl.float32)
        of_right = tl.zeros((CELLS, CLASSES), tl.float32)
        for beside in range(FACTOR):
            share = tl.where(column < 0, 1.0, tl.where(column == width - 1, 0.0, (beside + 0.5) / FACTOR))[:, None]
            pixel_column = column * FACTOR + FACTOR // 2 + beside
            inside = line_inside & (pixel_column >= 0) & (pixel_column < width * FACTOR)
            label = tl.load(pixels + pixel_column, mask=inside, other=255).to(tl.int32)
            counted = label < classes
            weight = tl.load(weights + label, mask=counted, other=0)
            value = at_left + share * (at_right - at_left)
            highest = tl.max(value, 1)
            value = value - highest[:, None]
            risen = tl.exp(value)
            summed = tl.sum(risen, 1)
            is_own = number == label[:, None]
            own = tl.sum(tl.where(is_own, value, 0.0), 1)
            loss += tl.where(counted, weight * (tl.log(summed) - own), 0.0)
            total += weight
            if GRADIENT:
                slope = risen * (weight / summed)[:, None] - tl.where(is_own, weight[:, None], 0.0)
                of_right += share * slope
                of_left += (1 - share) * slope
        of_a += (1 - down) * of_left
        of_b += (1 - down) * of_right
        of_c += down * of_left
        of_d += down * of_right
    tl.store(partial + 2 * tl.program_id(0), tl.sum(loss))
    tl.store(partial + 2 * tl.program_id(0) + 1, tl.sum(total))
    if GRADIENT:
        at = corners + cell[:, None] * CLASSES + number
        kept = exists[:, None] & (number < CLASSES)
        step = cells.to(tl.int64) * CLASSES
        tl.store(at, of_a, mask=kept)
        tl.store(at + step, of_b, mask=kept)
        tl.store(at + 2 * step, of_c, mask=kept)
        tl.store(at + 3 * step, of_d, mask=kept)


@triton.jit(do_not_specialize=["positions", "cells", "height", "width", "classes"])  # type: ignore[untyped-decorator]
def _entropy_backward(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    corners, factor, found, positions, cells, height, width, classes,
    POSITIONS: tl.constexpr, CLASSES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """found (positions, classes) = `factor` times the sum of the gradients of the cells around each position."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    exists = (position < positions)[:, None]
    number = tl.arange(0, CLASSES)[None, :]
    column = position % width
    row, image = (position // width) % height, position // width // height
    cell = (image * (height + 1) + row) * (width + 1) + column  # the one above and to the left
    at = corners + cell[:, None] * CLASSES + number
    beneath = (width + 1) * CLASSES
    step = cells.to(tl.int64) * CLASSES
    total = tl.load(at + beneath + CLASSES, mask=exists, other=0)
    total += tl.load(at + beneath + step, mask=exists, other=0)
    total += tl.load(at + CLASSES + 2 * step, mask=exists, other=0)
    total += tl.load(at + 3 * step, mask=exists, other=0)
    total = total * tl.load(factor)
    to = found + position[:, None] * classes + number
    tl.store(to, total.to(found.dtype.element_ty), mask=exists & (number < classes))


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, weights: Tensor, factor: int) -> Tensor:
        count, classes, height, width = scores.shape
        if not _is_rows(scores):
            scores = scores.contiguous(memory_format=torch.channels_last)
        cells, padded = count * (height + 1) * (width + 1), triton.next_power_of_2(classes)
        programs, wanted = triton.cdiv(cells, CELLS), ctx.needs_input_grad[0]
        partial = torch.empty(programs, 2, device=scores.device)
        corners = torch.empty(CORNERS, cells if wanted else 0, padded, device=scores.device)
        stride = scores.stride(3)
        _entropy_forward[programs,](
            scores, labels, weights, partial, corners, cells, height, width, stride, classes,
            factor, CELLS, padded, _holds(scores, stride, padded), wanted,
        )  # fmt: skip
        loss, total = partial.sum(0)
        ctx.save_for_backward(corners, total)
        ctx.shape, ctx.dtype = scores.shape, scores.dtype
        mean: Tensor = loss / total
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        corners, total = ctx.saved_tensors
        count, classes, height, width = ctx.shape
        found = torch.empty(ctx.shape, dtype=ctx.dtype, device=corners.device, memory_format=torch.channels_last)
        positions = count * height * width
        _entropy_backward[triton.cdiv(positions, POSITIONS),](
            corners, gradients[0] / total, found, positions, corners.shape[1], height, width, classes,
            POSITIONS, corners.shape[2],
        )  # fmt: skip
        return found, None, None, None


def _is_rows(scores: Tensor) -> bool:
    """Whether positions are equally far apart in memory, with their classes side by side."""
    _, _, height, width = scores.shape
    step = scores.stride(3)
    return scores.stride()[1:] == (1, width * step, step) and scores.stride(0) == height * width * step


def _holds(scores: Tensor, stride: int, values: int) -> bool:
    """Whether `values` values can be read at every position, which may include those of other channels."""
    rows = scores.numel() // scores.shape[1]
    held = scores.untyped_storage().nbytes() // scores.element_size() - scores.storage_offset()
    return stride >= values and (rows - 1) * stride + values <= held


def segmentation(scores: Sequence[Tensor], labels: Tensor, weights: Tensor, void: int) -> Tensor:
    """As `losses.segmentation`, for labels an even number of times as large as the scores. Every label must be a class
    or `void`, which must be 255."""
    assert void == 255  # the kernel leaves out every label that is no class
    factor = labels.shape[-1] // scores[0].shape[-1]
    if factor % 2:
        raise ValueError(f"labels are {factor} times as large as the scores; the kernel needs an even factor")
    small = labels.to(torch.uint8)
    return torch.stack([_Entropy.apply(found, small, weights, factor) for found in scores])  # type: ignore[no-untyped-call]
