"""Batch normalisation in training, with the addition and the ReLU after it, as Triton kernels.

A tensor (N, C, H, W) in channels-last order is read as a matrix (rows, C). The forward pass reads it twice: for its
statistics, and to normalise it. The backward pass reads it twice: for the gradients of weight and bias, and for the
gradient of the tensor itself.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

ROWS, CHANNELS = 128, 32
"""Rows and channels of a tile. One tile for all layers, so that each kernel is compiled once."""
PROGRAMS = 528
"""How many programs sum over rows: four for each multiprocessor of an H100."""
EIGHT = 8
"""Channels must be a multiple of it: eight half-precision numbers are the 16 bytes that a thread loads at once."""


@triton.jit(do_not_specialize=["rows", "eighths", "span", "momentum", "epsilon"])  # type: ignore[untyped-decorator]
def _statistics(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, partial, arrived, weight, bias, running_mean, running_variance, coefficients,
    rows, eighths, span, momentum, epsilon,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Sums x - k and its square over `span` rows, where k is the first row. k is close to the mean, so the variance is
    not a difference of large numbers.

    The last program of each block of channels adds up the sums of all programs. The rows of `coefficients` (4, C) are
    the mean, 1 / deviation, and the factor and the shift that normalise a value.
    """
    channels = eighths * 8
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    shift = tl.load(x + channel, mask=exists, other=0).to(tl.float32)
    first = tl.zeros((ROWS, CHANNELS), tl.float32)
    second = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(0, span, ROWS):
        row = tl.program_id(0) * span + start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & exists[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], mask=here, other=0).to(tl.float32)
        value = tl.where(here, value - shift[None, :], 0.0)
        first += value
        second += value * value
    if _is_last(partial, arrived, tl.sum(first, 0), tl.sum(second, 0), channel, channels):
        summed, squares = _add_up(partial, channel, channels, ROWS, CHANNELS)
        count = rows.to(tl.float32)
        offset = summed / count
        variance = tl.maximum(squares / count - offset * offset, 0.0)
        mean = shift + offset
        inverse = 1.0 / tl.sqrt(variance + epsilon)
        scale = tl.load(weight + channel, mask=exists, other=0) * inverse
        added = tl.load(bias + channel, mask=exists, other=0) - mean * scale
        tl.store(coefficients + channel, mean, mask=exists)
        tl.store(coefficients + channels + channel, inverse, mask=exists)
        tl.store(coefficients + 2 * channels + channel, scale, mask=exists)
        tl.store(coefficients + 3 * channels + channel, added, mask=exists)
        old = tl.load(running_mean + channel, mask=exists, other=0)
        tl.store(running_mean + channel, old + momentum * (mean - old), mask=exists)
        old = tl.load(running_variance + channel, mask=exists, other=0)
        unbiased = variance * (count / tl.maximum(count - 1, 1.0))
        tl.store(running_variance + channel, old + momentum * (unbiased - old), mask=exists)


@triton.jit
def _is_last(partial, arrived, first, second, channel, channels):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Stores a program's two sums in `partial` (programs, 2, C). Returns whether all other programs of the block of
    channels have stored theirs. `arrived` counts the programs; the last one sets it back to 0."""
    to = partial + tl.program_id(0) * 2 * channels + channel
    tl.store(to, first, mask=channel < channels)
    tl.store(to + channels, second, mask=channel < channels)
    tl.debug_barrier()  # all threads have stored before one of them says so
    before = tl.atomic_add(arrived + tl.program_id(1), 1, sem="acq_rel")
    last = before == tl.num_programs(0) - 1
    if last:
        tl.store(arrived + tl.program_id(1), 0)
    return last


@triton.jit  # type: ignore[untyped-decorator]
def _add_up(partial, channel, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Adds up the sums of all programs, always in the same order."""
    first = tl.zeros((ROWS, CHANNELS), tl.float32)
    second = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(0, tl.num_programs(0), ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < tl.num_programs(0))[:, None] & (channel < channels)[None, :]
        at = partial + row[:, None] * 2 * channels + channel[None, :]
        first += tl.load(at, mask=here, other=0)
        second += tl.load(at + channels, mask=here, other=0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit(do_not_specialize=["rows", "eighths"])  # type: ignore[untyped-decorator]
def _apply(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, added, coefficients, out, rows, eighths,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr,  # noqa: N803
):  # fmt: skip
    channels = eighths * 8
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = (row < rows)[:, None] & exists[None, :]
    at = row[:, None] * channels + channel[None, :]
    scale = tl.load(coefficients + 2 * channels + channel, mask=exists, other=0)
    shift = tl.load(coefficients + 3 * channels + channel, mask=exists, other=0)
    value = tl.load(x + at, mask=here, other=0).to(tl.float32) * scale[None, :] + shift[None, :]
    if ADDS:
        value += tl.load(added + at, mask=here, other=0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["rows", "eighths", "span"])  # type: ignore[untyped-decorator]
def _reduce(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    gradient, x, out, coefficients, partial, arrived, slopes, factors, rows, eighths, span,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Sums, over `span` rows, the gradient of the ReLU's input, and its product with the normalised value.

    The last program of each block of channels adds up the sums of all programs. `slopes` (2, C): gradients of weight
    and bias. `factors` (3, C): a, b, c of a * gradient + b * x + c, which is the gradient of x.
    """
    channels = eighths * 8
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    mean = tl.load(coefficients + channel, mask=exists, other=0)
    inverse = tl.load(coefficients + channels + channel, mask=exists, other=0)
    scale = tl.load(coefficients + 2 * channels + channel, mask=exists, other=0)
    shift = tl.load(coefficients + 3 * channels + channel, mask=exists, other=0)
    first = tl.zeros((ROWS, CHANNELS), tl.float32)
    second = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(0, span, ROWS):
        row = tl.program_id(0) * span + start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & exists[None, :]
        at = row[:, None] * channels + channel[None, :]
        slope = tl.load(gradient + at, mask=here, other=0).to(tl.float32)
        value = tl.load(x + at, mask=here, other=0).to(tl.float32)
        if RELU:
            if ADDS:
                passes = tl.load(out + at, mask=here, other=0).to(tl.float32) > 0
            else:
                passes = value * scale[None, :] + shift[None, :] > 0
            slope = tl.where(passes, slope, 0.0)
        first += slope
        second += slope * (value - mean[None, :])
    if _is_last(partial, arrived, tl.sum(first, 0), tl.sum(second, 0) * inverse, channel, channels):
        bias_slope, weight_slope = _add_up(partial, channel, channels, ROWS, CHANNELS)
        count = rows.to(tl.float32)
        of_value = -scale * inverse * weight_slope / count
        tl.store(slopes + channel, weight_slope, mask=exists)
        tl.store(slopes + channels + channel, bias_slope, mask=exists)
        tl.store(factors + channel, scale, mask=exists)
        tl.store(factors + channels + channel, of_value, mask=exists)
        tl.store(factors + 2 * channels + channel, -of_value * mean - scale * bias_slope / count, mask=exists)


@triton.jit(do_not_specialize=["rows", "eighths"])  # type: ignore[untyped-decorator]
def _differentiate(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    gradient, x, out, coefficients, factors, found, passed, rows, eighths,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """found = the gradient of x. passed = the gradient of the ReLU's input and of `added`, if there is a ReLU."""
    channels = eighths * 8
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = (row < rows)[:, None] & exists[None, :]
    at = row[:, None] * channels + channel[None, :]
    slope = tl.load(gradient + at, mask=here, other=0).to(tl.float32)
    value = tl.load(x + at, mask=here, other=0).to(tl.float32)
    if RELU:
        if ADDS:
            passes = tl.load(out + at, mask=here, other=0).to(tl.float32) > 0
        else:
            scale = tl.load(coefficients + 2 * channels + channel, mask=exists, other=0)
            shift = tl.load(coefficients + 3 * channels + channel, mask=exists, other=0)
            passes = value * scale[None, :] + shift[None, :] > 0
        slope = tl.where(passes, slope, 0.0)
        if ADDS:
            tl.store(passed + at, slope.to(passed.dtype.element_ty), mask=here)
    of_slope = tl.load(factors + channel, mask=exists, other=0)
    of_value = tl.load(factors + channels + channel, mask=exists, other=0)
    rest = tl.load(factors + 2 * channels + channel, mask=exists, other=0)
    result = of_slope[None, :] * slope + of_value[None, :] * value + rest[None, :]
    tl.store(found + at, result.to(found.dtype.element_ty), mask=here)


def _spans(rows: int, channels: int) -> tuple[int, tuple[int, int]]:
    """How many rows a summing program reads, and the grid of such programs."""
    blocks = triton.cdiv(channels, CHANNELS)
    tiles = triton.cdiv(rows, ROWS)
    span = triton.cdiv(tiles, max(PROGRAMS // blocks, 1)) * ROWS
    return span, (triton.cdiv(rows, span), blocks)


_counters: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By a layer's weight, see `_counter`."""


def _counter(weight: Tensor) -> Tensor:
    """int32 (blocks of channels,), all 0: how many programs have arrived. It is kept as long as the layer, because the
    last program sets it back to 0, and no kernel has to clear it."""
    if weight not in _counters:
        blocks = triton.cdiv(weight.shape[0], CHANNELS)
        _counters[weight] = torch.zeros(blocks, dtype=torch.int32, device=weight.device)
    found: Tensor = _counters[weight]
    return found


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        epsilon: float,
        relu: bool,
        arrived: Tensor,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        rows, eighths = count * height * width, channels // EIGHT
        span, grid = _spans(rows, channels)
        partial = torch.empty(grid[0], 2, channels, device=x.device)
        coefficients = torch.empty(4, channels, device=x.device)
        _statistics[grid](
            x, partial, arrived, weight, bias, running_mean, running_variance, coefficients,
            rows, eighths, span, momentum, epsilon, ROWS, CHANNELS,
        )  # fmt: skip
        adds = added is not None
        if added is not None:
            added = added.to(x.dtype).contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        tiles = triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS)
        _apply[tiles](x, added if adds else x, coefficients, out, rows, eighths, ROWS, CHANNELS, adds, relu)
        ctx.save_for_backward(x, out if adds and relu else x, coefficients, arrived)
        ctx.adds, ctx.relu = adds, relu
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, out, coefficients, arrived = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        rows, eighths = count * height * width, channels // EIGHT
        span, grid = _spans(rows, channels)
        partial = torch.empty(grid[0], 2, channels, device=x.device)
        slopes = torch.empty(2, channels, device=x.device)
        factors = torch.empty(3, channels, device=x.device)
        how = ROWS, CHANNELS, ctx.adds, ctx.relu
        _reduce[grid](
            gradient, x, out, coefficients, partial, arrived, slopes, factors, rows, eighths, span, *how
        )  # fmt: skip
        found = torch.empty_like(x, memory_format=torch.channels_last)
        writes = ctx.adds and ctx.relu
        passed = torch.empty_like(x, memory_format=torch.channels_last) if writes else found
        tiles = triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS)
        _differentiate[tiles](gradient, x, out, coefficients, factors, found, passed, rows, eighths, *how)
        of_added = (passed if ctx.relu else gradient) if ctx.adds else None
        return found, slopes[0], slopes[1], of_added, None, None, None, None, None, None


def normalise(x: Tensor, layer: nn.BatchNorm2d, added: Tensor | None = None, *, relu: bool) -> Tensor:
    """`layer(x) + added`, then a ReLU if `relu`; x is (N, C, H, W). Updates the layer's running statistics, but not its
    counter of batches, which nothing reads."""
    statistics = layer.running_mean, layer.running_var, layer.momentum, layer.eps
    found: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
        x, layer.weight, layer.bias, added, *statistics, relu, _counter(layer.weight)
    )
    return found
