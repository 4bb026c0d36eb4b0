"""Upsampling by whole factors, concatenation of branches and 2x2 average pooling as Triton kernels.

The backward pass of an upsampling gathers, so that no two programs write the same address. Pooling is the backward pass
of upsampling by repetition, and the other way round. Concatenation enlarges each branch into its own channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS, GATHERED, CHANNELS = 64, 16, 32
"""A program enlarges `POSITIONS` or gathers `GATHERED` positions, for `CHANNELS` channels."""
EIGHT = 8


@triton.jit(do_not_specialize=["positions", "height", "width", "eighths", "row_eighths"])  # type: ignore[untyped-decorator]
def _enlarge_forward(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, base, out, positions, height, width, eighths, row_eighths, scale,
    FACTOR: tl.constexpr, BILINEAR: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr,  # noqa: N803
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """out = ReLU(x enlarged + base). `positions`: how many the result has. `height`, `width`: of x. `row_eighths`: an
    eighth of the distance between two positions of `out`, which may have more channels than x."""
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
    value = value * scale
    if ADDS:
        value += tl.load(base + position[:, None] * channels + channel, mask=here, other=0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(out + position[:, None] * (row_eighths * 8) + channel, value.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["positions", "height", "width", "eighths", "row_eighths"])  # type: ignore[untyped-decorator]
def _enlarge_backward(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    gradient, found, positions, height, width, eighths, row_eighths, scale,
    FACTOR: tl.constexpr, BILINEAR: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """found = the gradient of x. `positions`: how many x has. `height`, `width`: of x. `row_eighths`: an eighth of the
    distance between two positions of `gradient`."""
    channels, distance = eighths * 8, row_eighths * 8
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
        at = ((image * height * FACTOR + below) * (width * FACTOR) + beside)[:, None] * distance + channel
        value = tl.load(gradient + at, mask=here & inside[:, None], other=0).to(tl.float32)
        if BILINEAR:
            down = tl.minimum(tl.maximum((below.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0), height - 1.0)
            right = tl.minimum(tl.maximum((beside.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0), width - 1.0)
            weight = tl.maximum(1 - tl.abs(down - row), 0.0) * tl.maximum(1 - tl.abs(right - column), 0.0)
            value = value * weight[:, None]
        total += value
    total = total * scale
    tl.store(found + position[:, None] * channels + channel, total.to(found.dtype.element_ty), mask=here)


def _spread(  # noqa: PLR0917
    x: Tensor,
    out: Tensor,
    factor: int,
    bilinear: bool,
    base: Tensor | None = None,
    relu: bool = False,
    scale: float = 1.0,
) -> None:
    """Enlarges x (N, C, h, w), channels last, by `factor` into `out`, which is C channels of a channels-last tensor."""
    count, channels, height, width = x.shape
    positions = count * height * width * factor * factor
    _enlarge_forward[triton.cdiv(positions, POSITIONS), triton.cdiv(channels, CHANNELS)](
        x, x if base is None else base, out, positions, height, width, channels // EIGHT, out.stride(3) // EIGHT, scale,
        factor, bilinear, base is not None, relu, POSITIONS, CHANNELS,
    )  # fmt: skip


def _gather(gradient: Tensor, factor: int, bilinear: bool, scale: float = 1.0) -> Tensor:
    """For each position, the sum of `gradient` over the positions that it was enlarged to. `gradient`: C channels of a
    channels-last tensor."""
    count, channels, high, wide = gradient.shape
    height, width = high // factor, wide // factor
    found = _empty(gradient, (count, channels, height, width))
    positions = count * height * width
    _enlarge_backward[triton.cdiv(positions, GATHERED), triton.cdiv(channels, CHANNELS)](
        gradient, found, positions, height, width, channels // EIGHT, gradient.stride(3) // EIGHT, scale,
        factor, bilinear, GATHERED, CHANNELS,
    )  # fmt: skip
    return found


def _empty(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _ordered(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _Enlarge(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: Tensor, base: Tensor | None, factor: int, bilinear: bool, relu: bool
    ) -> Tensor:
        count, channels, height, width = x.shape
        out = _empty(x, (count, channels, height * factor, width * factor))
        added = None if base is None else _ordered(base.to(x.dtype))
        _spread(_ordered(x), out, factor, bilinear, added, relu)
        if relu:
            ctx.save_for_backward(out)
        ctx.how, ctx.adds = (factor, bilinear), base is not None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _ordered(gradients[0])
        for out in ctx.saved_tensors:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        return _gather(gradient, *ctx.how), gradient if ctx.adds else None, None, None, None


def enlarge(x: Tensor, factor: int, mode: str, base: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """x (N, C, h, w), C a multiple of 8, at `factor` times its height and width, plus `base`, then a ReLU if `relu`.
    `mode`: "bilinear" (align_corners=False) or "nearest"."""
    found: Tensor = _Enlarge.apply(x, base, factor, mode == "bilinear", relu)  # type: ignore[no-untyped-call]
    return found


class _Concatenate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *xs: Tensor) -> Tensor:
        count, _, height, width = xs[0].shape
        ctx.parts = [(x.shape[1], width // x.shape[3]) for x in xs]
        out = _empty(xs[0], (count, sum(channels for channels, _ in ctx.parts), height, width))
        start = 0
        for x, (channels, factor) in zip(xs, ctx.parts, strict=True):
            _spread(_ordered(x.to(out.dtype)), out[:, start : start + channels], factor, factor > 1)
            start += channels
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        gradient, found, start = _ordered(gradients[0]), [], 0
        for channels, factor in ctx.parts:
            found.append(_gather(gradient[:, start : start + channels], factor, factor > 1))
            start += channels
        return tuple(found)


def concatenate(xs: tuple[Tensor, ...]) -> Tensor:
    """Branches (N, C_b, h_b, w_b), each C_b a multiple of 8, enlarged bilinearly by whole factors to the size of the
    first, and concatenated: (N, sum of C_b, h, w)."""
    found: Tensor = _Concatenate.apply(*xs)  # type: ignore[no-untyped-call]
    return found


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(_ordered(x), 2, False, 0.25)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        count, channels, height, width = gradients[0].shape
        found = _empty(gradients[0], (count, channels, 2 * height, 2 * width))
        _spread(_ordered(gradients[0]), found, 2, False, scale=0.25)
        return found


def pool(x: Tensor) -> Tensor:
    """Means of 2x2 positions: x (N, C, h, w), C a multiple of 8, h and w even -> (N, C, h / 2, w / 2)."""
    found: Tensor = _Pool.apply(x)  # type: ignore[no-untyped-call]
    return found
