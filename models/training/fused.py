"""Masked interpolation as one GPU kernel forward and one backward, for training: equations 3-6 of `masked.fill`.

Imports only the layer whose place it takes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from models.masked import MaskedConv2d

_BLOCK, _CHANNELS = 64, 32  # positions and channels of a program; one tile for all layers, so one compilation


@triton.jit(do_not_specialize=["positions", "height", "width", "channels"])  # type: ignore[untyped-decorator]
def _stencil(
    x, y, mask, scale, out, partial, positions, height, width, channels,
    WINDOW: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Forward (`x` = y): keeps active rows and makes the others of their active neighbours.

    Backward (`x` = gradient): the kernel is symmetric, so active rows gather from their inactive neighbours; `partial`
    gets the gradient of the kernel's scale.
    """
    radius: tl.constexpr = WINDOW // 2
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = position < positions
    row, column = (position // width) % height, position % width
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    exists = valid[:, None] & (channel < channels)
    active = tl.load(mask + position, mask=valid, other=0).to(tl.float32) > 0.5
    own = position[:, None] * channels + channel
    lam = tl.load(scale).to(tl.float32)
    beside, beside_slope = 0.0, 0.0
    for i in range(1, radius + 1):
        tap = tl.exp(-lam * lam * i * i)
        beside += 2 * tap
        beside_slope -= 4 * lam * i * i * tap
    norm = beside * (2 + beside) + 1e-5
    norm_slope = beside_slope * (2 + 2 * beside)
    wanted = active == 0  # whether a position is interpolated; the backward pass asks for the opposite
    if BACKWARD:
        wanted = active
    # The centre never counts: what is wanted at a position is the opposite of what it gathers.
    near = tl.zeros((BLOCK,), tl.int32)
    for dy in tl.static_range(-radius, radius + 1):
        for dx in tl.static_range(-radius, radius + 1):
            inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
            seen = tl.load(mask + position + dy * width + dx, mask=valid & inside, other=1 if BACKWARD else 0).to(tl.float32) > 0.5
            near += ((seen == 0) if BACKWARD else seen).to(tl.int32)
    gathers = valid & wanted & (near > 0)
    rows = tl.where(tl.max(gathers.to(tl.int32)) > 0, WINDOW, 0)  # masks are blobs: most programs have nothing to do
    mean = tl.zeros((BLOCK, CHANNELS), tl.float32)
    slope = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for tap in range(rows):
        down = tap - radius
        for right in tl.static_range(-radius, radius + 1):
            inside = gathers & (row + down >= 0) & (row + down < height)
            inside = inside & (column + right >= 0) & (column + right < width)
            other = position + down * width + right
            seen = tl.load(mask + other, mask=inside, other=0).to(tl.float32) > 0.5
            seen = inside & ((seen == 0) if BACKWARD else seen)
            value = tl.load(x + other[:, None] * channels + channel, mask=exists & seen[:, None], other=0)
            distance = down * down + right * right
            weight = tl.exp(-lam * lam * distance)
            mean += weight / norm * value.to(tl.float32)
            if BACKWARD:
                weight_slope = -2 * lam * distance * weight / norm - weight * norm_slope / (norm * norm)
                slope += weight_slope * value.to(tl.float32)
    here = tl.load(x + own, mask=exists, other=0).to(tl.float32)
    if BACKWARD:
        result = tl.where(active[:, None], here + mean, 0.0)
        kept = tl.load(y + own, mask=exists & active[:, None], other=0).to(tl.float32)
        tl.store(partial + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(kept * slope))
    else:
        result = tl.where(active[:, None], here, mean)
    tl.store(out + own, result.to(out.dtype.element_ty), mask=exists)


def _launch(x: Tensor, y: Tensor, mask: Tensor, scale: Tensor, window: int, backward: bool) -> tuple[Tensor, Tensor]:
    count, channels, height, width = x.shape
    positions = count * height * width
    programs = (triton.cdiv(positions, _BLOCK), triton.cdiv(channels, _CHANNELS))
    out = torch.empty_like(x, memory_format=torch.channels_last)
    partial = torch.empty(programs if backward else 0, device=x.device)
    _stencil[programs](
        x, y, mask, scale, out, partial, positions, height, width, channels, window, _BLOCK, _CHANNELS, backward
    )  # fmt: skip
    return out, partial


class _Fill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, mask: Tensor, scale: Tensor, window: int) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(y, mask, scale)
        ctx.window = window
        return _launch(y, y, mask, scale, window, backward=False)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        y, mask, scale = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        found, partial = _launch(gradient, y, mask, scale, ctx.window, backward=True)
        return found, None, partial.sum().to(scale.dtype), None


def fill(y: Tensor, mask: Tensor, scale: Tensor, window: int) -> Tensor:
    """As `masked.fill`: y (N, C, H, W) with inactive positions interpolated; mask (N, 1, H, W), 1 where active."""
    return _Fill.apply(y, mask.contiguous(), scale, window)  # type: ignore[no-any-return]


def fuse(network: nn.Module) -> None:
    """Give every masked convolution of `network` this kernel."""
    for layer in network.modules():
        if isinstance(layer, MaskedConv2d):
            layer.fill = fill
