"""The kernel of masked interpolation in Triton, for GPUs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _CHANNELS = 64, 32  # positions and channels of a program; one tile for all layers, so one compilation


@triton.jit(do_not_specialize=["positions", "height", "width", "channels"])  # type: ignore[untyped-decorator]
def _stencil(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, y, codes, scale, out, partial, positions, height, width, channels,
    WINDOW: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, BACKWARD: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Forward (`x` = y): keeps active rows and interpolates the others from their active neighbours.

    Backward (`x` = gradient): the kernel is symmetric, so active rows gather from their inactive neighbours; `partial`
    gets the gradient of the kernel's scale. Rows are channels-last, `codes` as in `fused.codes`.
    """
    radius: tl.constexpr = WINDOW // 2
    wanted: tl.constexpr = 3 if BACKWARD else 2  # the border's active positions, or its inactive ones
    seen: tl.constexpr = 0 if BACKWARD else 1
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = position < positions
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    exists = valid[:, None] & (channel < channels)
    own = position[:, None] * channels + channel
    code = tl.load(codes + position, mask=valid, other=0)
    gathers = valid & (code == wanted)
    active = (code & 1) == 1
    mean = tl.zeros((BLOCK, CHANNELS), tl.float32)
    slope = tl.zeros((BLOCK, CHANNELS), tl.float32)
    # The active positions of a mask lie together, so most programs have no position to interpolate.
    taps = tl.where(tl.max(gathers.to(tl.int32)) > 0, WINDOW * WINDOW, 0)
    lam = tl.load(scale).to(tl.float32)
    beside, beside_slope = 0.0, 0.0
    for i in range(1, radius + 1):
        tap = tl.exp(-lam * lam * i * i)
        beside += 2 * tap
        beside_slope -= 4 * lam * i * i * tap
    norm = beside * (2 + beside) + 1e-5
    norm_slope = beside_slope * (2 + 2 * beside)
    row, column = (position // width) % height, position % width
    for index in range(taps):
        down, right = index // WINDOW - radius, index % WINDOW - radius
        inside = gathers & (row + down >= 0) & (row + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        other = position + down * width + right
        counts = inside & ((tl.load(codes + other, mask=inside, other=0) & 1) == seen)
        value = tl.load(x + other[:, None] * channels + channel, mask=exists & counts[:, None], other=0).to(tl.float32)
        distance = down * down + right * right
        weight = tl.exp(-lam * lam * distance)
        mean += weight / norm * value
        if BACKWARD:
            slope += (-2 * lam * distance * weight / norm - weight * norm_slope / (norm * norm)) * value
    here = tl.load(x + own, mask=exists, other=0).to(tl.float32)
    if BACKWARD:
        result = tl.where(active[:, None], here + mean, 0.0)
        kept = tl.load(y + own, mask=exists & gathers[:, None], other=0).to(tl.float32)
        tl.store(partial + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(kept * slope))
    else:
        result = tl.where(active[:, None], here, mean)
    tl.store(out + own, result.to(out.dtype.element_ty), mask=exists)


def launch(x: Tensor, y: Tensor, codes: Tensor, scale: Tensor, window: int, *, backward: bool) -> tuple[Tensor, Tensor]:
    """See `fused.Launch`."""
    count, channels, height, width = x.shape
    positions = count * height * width
    programs = (triton.cdiv(positions, _BLOCK), triton.cdiv(channels, _CHANNELS))
    out = torch.empty_like(x, memory_format=torch.channels_last)
    partial = torch.empty(programs if backward else 0, device=x.device)
    _stencil[programs](
        x, y, codes, scale, out, partial, positions, height, width, channels, window, _BLOCK, _CHANNELS, backward
    )  # fmt: skip
    return out, partial.sum()
