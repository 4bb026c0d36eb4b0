"""Upsampling by whole factors as Triton kernels. The backward pass gathers, so that no two programs write one place."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS, GATHERED, CHANNELS = 64, 16, 32
"""Positions of a program forward and backward, and its channels."""


@triton.jit(do_not_specialize=["positions", "height", "width", "eighths"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, base, out, positions, height, width, eighths,
    FACTOR: tl.constexpr, BILINEAR: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr,  # noqa: N803
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """`positions`: of the result; `height` and `width`: of x."""
    channels = eighths * 8
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    here = (position < positions)[:, None] & (channel < channels)
    column = position % (width * FACTOR)
    line = position // (width * FACTOR)
    row, image = line % (height * FACTOR), line // (height * FACTOR)
    if BILINEAR:
        down = tl.maximum((row.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0)
        right = tl.maximum((column.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0)
        top, left = down.to(tl.int32), right.to(tl.int32)
        down, right = (down - top)[:, None], (right - left)[:, None]
        bottom, beside = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
        upper, lower = (image * height + top) * width, (image * height + bottom) * width
        a = tl.load(x + (upper + left)[:, None] * channels + channel, mask=here, other=0).to(tl.float32)
        b = tl.load(x + (upper + beside)[:, None] * channels + channel, mask=here, other=0).to(tl.float32)
        c = tl.load(x + (lower + left)[:, None] * channels + channel, mask=here, other=0).to(tl.float32)
        d = tl.load(x + (lower + beside)[:, None] * channels + channel, mask=here, other=0).to(tl.float32)
        value = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
    else:
        source = (image * height + row // FACTOR) * width + column // FACTOR
        value = tl.load(x + source[:, None] * channels + channel, mask=here, other=0).to(tl.float32)
    at = position[:, None] * channels + channel
    if ADDS:
        value += tl.load(base + at, mask=here, other=0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["positions", "height", "width", "eighths"])  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    gradient, found, positions, height, width, eighths,
    FACTOR: tl.constexpr, BILINEAR: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """`positions`, `height` and `width`: of x, whose gradient is `found`."""
    channels = eighths * 8
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    here = (position < positions)[:, None] & (channel < channels)
    column = position % width
    row, image = (position // width) % height, position // width // height
    reach: tl.constexpr = 2 * FACTOR if BILINEAR else FACTOR
    before: tl.constexpr = FACTOR // 2 if BILINEAR else 0
    total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for index in range(reach * reach):
        below, beside = row * FACTOR - before + index // reach, column * FACTOR - before + index % reach
        inside = (below >= 0) & (below < height * FACTOR) & (beside >= 0) & (beside < width * FACTOR)
        at = ((image * height * FACTOR + below) * (width * FACTOR) + beside)[:, None] * channels + channel
        value = tl.load(gradient + at, mask=here & inside[:, None], other=0).to(tl.float32)
        if BILINEAR:
            down = tl.minimum(tl.maximum((below.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0), height - 1.0)
            right = tl.minimum(tl.maximum((beside.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0), width - 1.0)
            weight = tl.maximum(1 - tl.abs(down - row), 0.0) * tl.maximum(1 - tl.abs(right - column), 0.0)
            value = value * weight[:, None]
        total += value
    tl.store(found + position[:, None] * channels + channel, total.to(found.dtype.element_ty), mask=here)


class _Enlarge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor | None, factor: int, bilinear: bool, relu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        out = torch.empty(
            count, channels, height * factor, width * factor, dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        adds = base is not None
        if base is not None:
            base = base.to(x.dtype).contiguous(memory_format=torch.channels_last)
        positions = count * height * width * factor * factor
        _forward[triton.cdiv(positions, POSITIONS), triton.cdiv(channels, CHANNELS)](
            x, base if adds else x, out, positions, height, width, channels // 8,
            factor, bilinear, adds, relu, POSITIONS, CHANNELS,
        )  # fmt: skip
        if relu:
            ctx.save_for_backward(out)
        ctx.shape, ctx.how, ctx.adds = x.shape, (factor, bilinear), adds
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        for out in ctx.saved_tensors:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        count, channels, height, width = ctx.shape
        found = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
        positions = count * height * width
        _backward[triton.cdiv(positions, GATHERED), triton.cdiv(channels, CHANNELS)](
            gradient, found, positions, height, width, channels // 8, *ctx.how, GATHERED, CHANNELS
        )
        return found, gradient if ctx.adds else None, None, None, None


def enlarge(x: Tensor, factor: int, mode: str, base: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """x (N, C, h, w), C a multiple of 8, at `factor` times its height and width, plus `base`, then a ReLU where `relu`.
    `mode`: "bilinear" (align_corners=False) or "nearest"."""
    found: Tensor = _Enlarge.apply(x, base, factor, mode == "bilinear", relu)  # type: ignore[no-untyped-call]
    return found
