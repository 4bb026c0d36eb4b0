"""The kernels that sum rows with weights: interpolation of the halo, and resampling between levels."""

# mypy: ignore-errors
# ruff: noqa: N803, PLR0917
# Triton's language has no types, writes constants in capitals, and takes its arguments by position.

import triton
import triton.language as tl

from models.executors.gpu.kernels.rows import coordinates, listed_rows, row_counts


@triton.jit(do_not_specialize=["height", "width", "all_rows", "mask_step", "reach", "residual_channels"])
def interpolate(
    # Pointers. T is the dtype of features: float16, bfloat16 or float32.
    pre_activation_ptr,  # (all_rows, channels), T: only rows that interpolation reads, or that are active, are there
    halo_weights_ptr,  # ((2 * reach + 1) ** 2,), float32: of the positions around, line by line
    shift_ptr,  # (channels,), float32: added after the interpolation
    residual_ptr,  # (all_rows, residual_channels), T; any pointer if residual_channels is 0
    out_ptr,  # (all_rows, channels), T, written
    row_list_ptr,  # (all_rows,), int32: see rows.py
    counts_ptr,  # (4,), int32
    mask_ptr,  # (N, mask_step * height, mask_step * width), uint8
    # Sizes.
    height,  # of the level, in positions
    width,
    all_rows,  # N * height * width
    channels,
    mask_step,  # positions of the mask from one position of the level to the next
    reach,  # the farthest that the interpolation reads, in positions
    # Strides, in elements from one row to the next.
    pre_activation_stride,
    residual_stride,
    out_stride,
    # The epilogue.
    residual_channels,  # channels if a residual is added, otherwise 0
    floor,  # float32, results are at least this: 0 is a ReLU, -inf is none
    # Constants.
    ACTIVE_TOO: tl.constexpr,  # True: active rows get the epilogue, too, from their own pre-activation
    ROWS: tl.constexpr,  # rows of a program
    BLOCK: tl.constexpr,  # channels of a program
):
    """Halo rows: out[row] = max(weighted sum of active pre-activations around + shift + residual[row], floor).

    This is equation 5 of the paper, after which come batch norm's shift, residual and ReLU. The grid is
    (ceil(all_rows / ROWS), ceil(channels / BLOCK)).
    """
    active, total = row_counts(counts_ptr, all_rows, True, ACTIVE_TOO, True)
    if tl.program_id(0) * ROWS >= total:
        return
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = index < total
    row, _ = listed_rows(row_list_ptr, index, active, total, all_rows, True)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image, y, x = coordinates(row, height, width)
    values = tl.zeros((ROWS, BLOCK), tl.float32)
    for offset in range((2 * reach + 1) * (2 * reach + 1)):
        near_y = y + offset // (2 * reach + 1) - reach
        near_x = x + offset % (2 * reach + 1) - reach
        inside = exists & (index >= active) & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        fine = (image * height * mask_step + near_y * mask_step) * width * mask_step + near_x * mask_step
        inside = inside & (tl.load(mask_ptr + fine, mask=inside, other=0) != 0)
        near_row = (image * height + near_y) * width + near_x
        source = pre_activation_ptr + near_row[:, None] * pre_activation_stride + column[None, :]
        near = tl.load(source, mask=inside[:, None] & (column < channels)[None, :], other=0)
        values += near.to(tl.float32) * tl.load(halo_weights_ptr + offset)
    written = exists[:, None] & (column < channels)[None, :]
    if ACTIVE_TOO:
        source = pre_activation_ptr + row[:, None] * pre_activation_stride + column[None, :]
        values += tl.load(source, mask=written & (index < active)[:, None], other=0).to(tl.float32)
    values += tl.load(shift_ptr + column, mask=column < channels, other=0)[None, :]
    residual = residual_ptr + row[:, None] * residual_stride + column[None, :]
    # Rounding down to 16 tells the compiler that whole vectors are read.
    read = exists[:, None] & (column < residual_channels // 16 * 16)[None, :]
    values += tl.load(residual, mask=read, other=0).to(tl.float32)
    values = tl.maximum(values, floor)
    out = out_ptr + row[:, None] * out_stride + column[None, :]
    tl.store(out, values.to(out_ptr.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["height", "width", "all_rows"])
def add_resampled(
    # Pointers. T is the dtype of features: float16, bfloat16 or float32.
    a_ptr,  # (N * POOL * height / SHRINK_A * POOL * width / SHRINK_A, channels), T
    b_ptr,  # likewise with SHRINK_B; any pointer if SHRINK_B is 0
    c_ptr,
    d_ptr,
    out_ptr,  # (all_rows, channels), T, written
    row_list_ptr,  # (all_rows,), int32: see rows.py; any pointer unless LISTED
    counts_ptr,  # (4,), int32; any pointer unless LISTED
    # Sizes of the result.
    height,  # in positions
    width,
    all_rows,  # N * height * width
    # Strides, in elements from one row to the next.
    a_stride,
    b_stride,
    c_stride,
    d_stride,
    out_stride,
    # Size.
    channels,
    # Constants.
    SHRINK_A: tl.constexpr,  # how many times smaller than POOL * height x POOL * width the map is: 1, 2, 4, ...
    SHRINK_B: tl.constexpr,  # 0: there is no such map
    SHRINK_C: tl.constexpr,
    SHRINK_D: tl.constexpr,
    POOL: tl.constexpr,  # 2: the mean of 2x2 is taken; 1: it is not
    BILINEAR: tl.constexpr,  # False: upsampling takes the nearest position
    RELU: tl.constexpr,
    LISTED: tl.constexpr,  # False: there is no row list, and all rows are computed
    NEEDED: tl.constexpr,  # True: halo rows are computed as well as active ones
    ROWS: tl.constexpr,  # rows of a program
    BLOCK: tl.constexpr,  # channels of a program
):
    """out = relu(mean over POOL x POOL of the sum of up to four maps, each upsampled to POOL * height x POOL * width).

    The grid is (ceil(all_rows / ROWS), ceil(channels / BLOCK)).
    """
    active, total = row_counts(counts_ptr, all_rows, LISTED, True, NEEDED)
    if tl.program_id(0) * ROWS >= total:
        return
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = index < total
    row, _ = listed_rows(row_list_ptr, index, active, total, all_rows, LISTED)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image, y, x = coordinates(row, height, width)
    x *= POOL
    y *= POOL
    read = exists[:, None] & (column < channels)[None, :]
    height *= POOL
    width *= POOL
    values = tl.zeros((ROWS, BLOCK), tl.float32)
    for dy in tl.static_range(POOL):
        for dx in tl.static_range(POOL):
            values += _sample(a_ptr, a_stride, image, y + dy, x + dx, height, width, column, read, SHRINK_A, BILINEAR)
            if SHRINK_B:
                values += _sample(
                    b_ptr, b_stride, image, y + dy, x + dx, height, width, column, read, SHRINK_B, BILINEAR
                )
            if SHRINK_C:
                values += _sample(
                    c_ptr, c_stride, image, y + dy, x + dx, height, width, column, read, SHRINK_C, BILINEAR
                )
            if SHRINK_D:
                values += _sample(
                    d_ptr, d_stride, image, y + dy, x + dx, height, width, column, read, SHRINK_D, BILINEAR
                )
    values = values / (POOL * POOL)
    if RELU:
        values = tl.maximum(values, 0)
    out = out_ptr + row[:, None] * out_stride + column[None, :]
    tl.store(out, values.to(out_ptr.dtype.element_ty), mask=read)


@triton.jit
def _sample(source, stride, image, y, x, height, width, column, read, SHRINK: tl.constexpr, BILINEAR: tl.constexpr):
    """Positions (y, x) of a map that is upsampled SHRINK times to height x width: float32 (ROWS, BLOCK)."""
    coarse_height = height // SHRINK
    coarse_width = width // SHRINK
    if SHRINK == 1 or not BILINEAR:
        row = (image * coarse_height + y // SHRINK) * coarse_width + x // SHRINK
        return tl.load(source + row[:, None] * stride + column[None, :], mask=read, other=0).to(tl.float32)
    source_y = tl.maximum((y.to(tl.float32) + 0.5) / SHRINK - 0.5, 0)
    source_x = tl.maximum((x.to(tl.float32) + 0.5) / SHRINK - 0.5, 0)
    top = source_y.to(tl.int32)
    left = source_x.to(tl.int32)
    weight_below = (source_y - top)[:, None]
    weight_right = (source_x - left)[:, None]
    top_line = (image * coarse_height + top) * coarse_width
    bottom_line = (image * coarse_height + tl.minimum(top + 1, coarse_height - 1)) * coarse_width
    right = tl.minimum(left + 1, coarse_width - 1)
    source += column[None, :]
    top_left = tl.load(source + (top_line + left)[:, None] * stride, mask=read, other=0).to(tl.float32)
    top_right = tl.load(source + (top_line + right)[:, None] * stride, mask=read, other=0).to(tl.float32)
    bottom_left = tl.load(source + (bottom_line + left)[:, None] * stride, mask=read, other=0).to(tl.float32)
    bottom_right = tl.load(source + (bottom_line + right)[:, None] * stride, mask=read, other=0).to(tl.float32)
    upper = top_left + (top_right - top_left) * weight_right
    return upper + (bottom_left + (bottom_right - bottom_left) * weight_right - upper) * weight_below
