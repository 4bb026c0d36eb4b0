"""The convolution kernel: gather rows, multiply them by the weights, scatter the results."""

# mypy: ignore-errors
# ruff: noqa: N803, PLR0917
# Triton's language has no types, writes constants in capitals, and takes its arguments by position.

import triton
import triton.language as tl

from models.executors.gpu.kernels.rows import coordinates, listed_rows, row_counts


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "all_rows", "x_stride", "stores_pre",
                               "residual_channels"])  # fmt: skip
def convolve(
    # Pointers. T is the dtype of features: float16, bfloat16 or float32.
    x_ptr,  # (N * height * width, in_channels), T
    weights_ptr,  # (TAPS * in_channels, columns), T, contiguous
    bias_ptr,  # (columns,), float32: added before the pre-activation is stored
    shift_ptr,  # (columns,), float32: added after it
    residual_ptr,  # (all_rows, residual_channels), T; any pointer if residual_channels is 0
    pre_activation_ptr,  # (all_rows, out_channels), T, written; any pointer if stores_pre is 0
    out_ptr,  # (all_rows, out_channels), T or float32, written
    row_list_ptr,  # (all_rows,), int32: see rows.py; any pointer unless LISTED
    counts_ptr,  # (4,), int32; any pointer unless LISTED
    # Sizes of the source and of the result, in positions.
    height,
    width,
    out_height,
    out_width,
    all_rows,  # N * out_height * out_width
    # Sizes in channels.
    columns,  # out_channels rounded up to a multiple of BLOCK
    in_channels,  # a multiple of 16
    out_channels,
    # Strides, in elements from one row to the next.
    x_stride,
    residual_stride,
    pre_activation_stride,
    out_stride,
    # The epilogue.
    stores_pre,  # 1: rows that interpolation reads store their pre-activation; 0: none does
    residual_channels,  # out_channels if a residual is added, otherwise 0
    floor,  # float32, results are at least this: 0 is a ReLU, -inf is none
    # Constants.
    TAPS: tl.constexpr,  # 1 or 9
    STRIDE: tl.constexpr,  # of the convolution, in both directions
    LISTED: tl.constexpr,  # False: there is no row list, and all rows are computed
    NEEDED: tl.constexpr,  # True: halo rows are computed as well as active ones
    ROWS: tl.constexpr,  # rows of a program
    BLOCK: tl.constexpr,  # output channels of a program
    DEPTH: tl.constexpr,  # input channels that are multiplied at once
    TAIL: tl.constexpr,  # in_channels % DEPTH: 0, 16 or 32
    CACHED: tl.constexpr,  # see `_gather`
    PRECISION: tl.constexpr,  # "tf32", or "ieee" if T is float32
):
    """out[row] = max(convolution(x)[row] + bias + shift + residual[row], floor) for the rows of a list.

    The convolution is 1x1, or 3x3 with padding 1. The grid is (ceil(all_rows / ROWS) * columns / BLOCK,): programs of
    the same rows are neighbours.
    """
    blocks = columns // BLOCK
    first = tl.program_id(0) // blocks * ROWS
    active, total = row_counts(counts_ptr, all_rows, LISTED, True, NEEDED)
    if first >= total:
        return
    index = first + tl.arange(0, ROWS)
    exists = index < total
    row, entry = listed_rows(row_list_ptr, index, active, total, all_rows, LISTED)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    image, y, x = coordinates(row, out_height, out_width)
    y *= STRIDE
    x *= STRIDE
    centre = (image * height + y) * width + x

    products = tl.zeros((ROWS, BLOCK), tl.float32)
    chunks = in_channels // DEPTH
    depth = tl.arange(0, DEPTH)
    for step in range(TAPS * chunks):
        tap = step // chunks
        channel = step % chunks * DEPTH + depth
        gathered = _gather(x_ptr, x_stride, y, x, centre, tap, channel, height, width, TAPS, CACHED)
        weights = tl.load(weights_ptr + (tap * in_channels + channel)[:, None] * columns + column[None, :])
        products = tl.dot(gathered, weights, products, input_precision=PRECISION)
    if TAIL:
        channel = chunks * DEPTH + tl.arange(0, TAIL)
        for tap in range(TAPS):
            gathered = _gather(x_ptr, x_stride, y, x, centre, tap, channel, height, width, TAPS, CACHED)
            weights = tl.load(weights_ptr + (tap * in_channels + channel)[:, None] * columns + column[None, :])
            products = tl.dot(gathered, weights, products, input_precision=PRECISION)

    products += tl.load(bias_ptr + column)[None, :]
    written = exists[:, None] & (column < out_channels)[None, :]
    pre_activation = pre_activation_ptr + row[:, None] * pre_activation_stride + column[None, :]
    stored = written & ((entry & stores_pre) != 0)[:, None]  # the lowest bit: interpolation reads the row
    tl.store(pre_activation, products.to(pre_activation_ptr.dtype.element_ty), mask=stored)
    products += tl.load(shift_ptr + column)[None, :]
    residual = residual_ptr + row[:, None] * residual_stride + column[None, :]
    # Rounding down to 16 tells the compiler that whole vectors are read.
    read = exists[:, None] & (column < residual_channels // 16 * 16)[None, :]
    products += tl.load(residual, mask=read, other=0).to(tl.float32)
    products = tl.maximum(products, floor)
    out = out_ptr + row[:, None] * out_stride + column[None, :]
    tl.store(out, products.to(out_ptr.dtype.element_ty), mask=written)


@triton.jit
def _gather(x_ptr, x_stride, y, x, centre, tap, channel, height, width, TAPS: tl.constexpr, CACHED: tl.constexpr):
    """What one tap of a convolution reads, (ROWS, channels): zeros beyond the borders.

    `y`, `x`, `centre`: (ROWS,), position and row of the middle tap. `channel`: (channels,). CACHED: copies are of 8
    bytes, which pass through the L1 cache; copies of 16 bytes never do.
    """
    # Rounding down tells the compiler which alignment it may count on, and so how wide a copy may be.
    x_stride = x_stride // 4 * 4 if CACHED else x_stride // 16 * 16
    if TAPS == 1:
        return tl.load(x_ptr + centre[:, None] * x_stride + channel[None, :])
    dy = tap // 3 - 1
    dx = tap % 3 - 1
    # As unsigned numbers, negative ones are beyond the border too.
    inside = ((y + dy).to(tl.uint32) < height.to(tl.uint32)) & ((x + dx).to(tl.uint32) < width.to(tl.uint32))
    source = x_ptr + (centre + dy * width + dx)[:, None] * x_stride + channel[None, :]
    return tl.load(source, mask=inside[:, None], other=0)
