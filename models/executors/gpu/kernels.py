"""GPU kernels over lists of rows: list, convolve, interpolate, combine.

Feature maps stay dense and channels-last; a row is one position's channels. Only listed rows are read or written, the
lists and their lengths stay on the device, and a grid is as large as the map: programs beyond the list's end leave at
once. So a launch never waits for the host and can be part of a CUDA graph. With TRITON_INTERPRET=1 everything runs on
a CPU. Imports nothing of this project.
"""

# mypy: ignore-errors
# ruff: noqa: N803, PLR0917
# Triton's language has no types, writes constants in capitals, and takes its arguments by position.

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total", "exit_index"])
def settle(scores, mask, decided, total, threshold, exit_index, stride, outputs, CRITERION: tl.constexpr,
           FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Equations 2 and 7: what was active until now was decided at this exit; what is active from now on is the mask."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    column = tl.arange(0, BLOCK)[None, :]
    read = exists[:, None] & (column < outputs)
    values = tl.load(scores + row[:, None] * stride + column, mask=read, other=float("-inf"))
    top = tl.max(values, 1)
    if CRITERION == "max_score":
        active = top >= threshold
    else:
        values -= top[:, None]
        powers = tl.exp(values)
        if CRITERION == "max_probability":
            active = 1 / tl.sum(powers, 1) <= threshold
        else:  # entropy
            sums = tl.sum(powers, 1)[:, None]
            logarithms = values - tl.log(sums)
            active = -tl.sum(tl.where(column < outputs, powers / sums * logarithms, 0), 1) >= threshold
    before = exists if FIRST else tl.load(mask + row, mask=exists, other=0) != 0
    tl.store(decided + row, tl.zeros((ROWS,), tl.uint8) + exit_index.to(tl.uint8), mask=exists & before)
    tl.store(mask + row, active.to(tl.uint8), mask=exists)


@triton.jit(do_not_specialize=["height", "width"])
def list_rows(mask, crop, entries, counts, statistics, height, width, FACTOR: tl.constexpr, SIZE: tl.constexpr,
          REACH: tl.constexpr, EVERYWHERE: tl.constexpr, PATCH: tl.constexpr, SLOT: tl.constexpr):  # fmt: skip
    """One program lists one patch of a map of height x width (the finest size / FACTOR) of one input of the batch."""
    across = tl.cdiv(width, PATCH)
    patch = tl.program_id(0) % (across * tl.cdiv(height, PATCH))
    item = tl.program_id(0) // (across * tl.cdiv(height, PATCH))
    lane = tl.arange(0, PATCH * PATCH)
    y = patch // across * PATCH + lane // PATCH
    x = patch % across * PATCH + lane % PATCH
    exists = (y < height) & (x < width)
    mask_width = width * FACTOR
    mask += item * height * FACTOR * mask_width
    active = tl.load(mask + y * FACTOR * mask_width + x * FACTOR, mask=exists, other=0) != 0

    block = tl.arange(0, SIZE)
    needed = tl.zeros((PATCH * PATCH,), tl.int32)
    for neighbour in range(9):
        near_y = y + neighbour // 3 - 1
        near_x = x + neighbour % 3 - 1
        inside = exists & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        fine_y = near_y[:, None] * FACTOR + block[None, :] // FACTOR
        fine_x = near_x[:, None] * FACTOR + block[None, :] % FACTOR
        found = tl.load(mask + fine_y * mask_width + fine_x, mask=inside[:, None], other=0)
        needed = tl.maximum(needed, tl.max(found.to(tl.int32), 1))
    if EVERYWHERE:
        needed = tl.full((PATCH * PATCH,), 1, tl.int32)

    edge = tl.zeros((PATCH * PATCH,), tl.int32)
    for offset in range((2 * REACH + 1) * (2 * REACH + 1)):
        near_y = y + offset // (2 * REACH + 1) - REACH
        near_x = x + offset % (2 * REACH + 1) - REACH
        inside = exists & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        found = tl.load(mask + near_y * FACTOR * mask_width + near_x * FACTOR, mask=inside, other=1)
        edge = tl.maximum(edge, (found == 0).to(tl.int32))

    entry = ((item * height + y) * width + x) * 2 + edge
    convolved = active.to(tl.int32)
    total = tl.sum(convolved, 0)
    place = tl.atomic_add(counts, total) + tl.cumsum(convolved, 0) - 1
    tl.store(entries + place, entry, mask=active)
    interpolated = (exists & (needed != 0) & (convolved == 0)).to(tl.int32)
    place = tl.atomic_add(counts + 1, tl.sum(interpolated, 0)) + tl.cumsum(interpolated, 0) - 1
    capacity = tl.num_programs(0) // (across * tl.cdiv(height, PATCH)) * height * width
    tl.store(entries + capacity - 1 - place, entry, mask=interpolated != 0)
    tl.atomic_add(statistics + item * 8 + SLOT, total)
    if SLOT == 0:
        cut = (y < tl.load(crop + item * 2)) & (x < tl.load(crop + item * 2 + 1))
        tl.atomic_add(statistics + item * 8 + 7, tl.sum((active & cut).to(tl.int32), 0))


@triton.jit
def _gather(x, stride, y, left, centre, tap, channel, height, width, TAPS: tl.constexpr, CACHED: tl.constexpr):
    """Channels of the rows that one tap of a convolution reads; zeros beyond the borders.

    CACHED: in copies of 8 bytes, which pass through the L1 cache; those of 16 never do.
    """
    stride = stride // 4 * 4 if CACHED else stride // 16 * 16
    if TAPS == 1:
        return tl.load(x + centre[:, None] * stride + channel[None, :])
    dy = tap // 3 - 1
    dx = tap % 3 - 1
    # As unsigned numbers, negative ones are beyond the border too.
    inside = ((y + dy).to(tl.uint32) < height.to(tl.uint32)) & ((left + dx).to(tl.uint32) < width.to(tl.uint32))
    source = x + (centre + dy * width + dx)[:, None] * stride + channel[None, :]
    return tl.load(source, mask=inside[:, None], other=0)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "capacity", "x_stride", "keep", "added"])
def convolve(x, weight, bias, shift, residual, kept, out, entries, counts, height, width, out_height, out_width,
             capacity, columns, channels, out_channels, x_stride, residual_stride, kept_stride, out_stride, keep, added,
             floor, TAPS: tl.constexpr, STRIDE: tl.constexpr, LISTED: tl.constexpr,
             NEEDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, TAIL: tl.constexpr,
             CACHED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gather, multiply, scatter: ROWS listed output rows by BLOCK output channels."""
    tiles = columns // BLOCK
    first = tl.program_id(0) // tiles * ROWS
    active = tl.load(counts) if LISTED else capacity
    total = active + tl.load(counts + 1) if NEEDED else active
    if first >= total:
        return
    row = first + tl.arange(0, ROWS)
    exists = row < total
    place = tl.where(row < active, row, capacity - 1 - row + active)
    entry = tl.load(entries + place, mask=exists, other=0) if LISTED else tl.where(exists, row * 2, 0)
    position = entry >> 1
    column = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    out_x = position % out_width
    line = position // out_width
    y = line % out_height * STRIDE
    left = out_x * STRIDE
    centre = (line // out_height * height + y) * width + left

    products = tl.zeros((ROWS, BLOCK), tl.float32)
    chunks = channels // DEPTH
    depth = tl.arange(0, DEPTH)
    for step in range(TAPS * chunks):
        tap = step // chunks
        channel = step % chunks * DEPTH + depth
        gathered = _gather(x, x_stride, y, left, centre, tap, channel, height, width, TAPS, CACHED)
        matrix = tl.load(weight + (tap * channels + channel)[:, None] * columns + column[None, :])
        products = tl.dot(gathered, matrix, products, input_precision=PRECISION)
    if TAIL:
        channel = chunks * DEPTH + tl.arange(0, TAIL)
        for tap in range(TAPS):
            gathered = _gather(x, x_stride, y, left, centre, tap, channel, height, width, TAPS, CACHED)
            matrix = tl.load(weight + (tap * channels + channel)[:, None] * columns + column[None, :])
            products = tl.dot(gathered, matrix, products, input_precision=PRECISION)

    products += tl.load(bias + column)[None, :]
    written = exists[:, None] & (column < out_channels)[None, :]
    edge = written & ((entry & keep) != 0)[:, None]  # interpolated rows nearby will read these
    tl.store(kept + position[:, None] * kept_stride + column[None, :], products.to(kept.dtype.element_ty), mask=edge)
    products += tl.load(shift + column)[None, :]
    source = residual + position[:, None] * residual_stride + column[None, :]
    products += tl.load(source, mask=exists[:, None] & (column < added // 16 * 16)[None, :], other=0).to(tl.float32)
    products = tl.maximum(products, floor)
    target = out + position[:, None] * out_stride + column[None, :]
    tl.store(target, products.to(out.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["height", "width", "capacity", "factor", "reach", "added"])
def interpolate(kept, stencil, shift, residual, out, entries, counts, mask, height, width, capacity, out_channels,
                factor, reach, kept_stride, residual_stride, out_stride, added, floor, ACTIVE_TOO: tl.constexpr,
                ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Equation 5 where it is needed, then shift, residual and ReLU. ACTIVE_TOO: those three for active rows as well."""
    active = tl.load(counts) if ACTIVE_TOO else 0
    total = active + tl.load(counts + 1)
    if tl.program_id(0) * ROWS >= total:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    place = tl.where(row < active, row, capacity - 1 - row + active)
    position = tl.load(entries + place, mask=exists, other=0) >> 1
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = position % width
    line = position // width
    y = line % height
    item = line // height
    values = tl.zeros((ROWS, BLOCK), tl.float32)
    for offset in range((2 * reach + 1) * (2 * reach + 1)):
        near_y = y + offset // (2 * reach + 1) - reach
        near_x = x + offset % (2 * reach + 1) - reach
        inside = exists & (row >= active) & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        fine = (item * height * factor + near_y * factor) * width * factor + near_x * factor
        inside = inside & (tl.load(mask + fine, mask=inside, other=0) != 0)
        source = kept + ((item * height + near_y) * width + near_x)[:, None] * kept_stride + column[None, :]
        near = tl.load(source, mask=inside[:, None] & (column < out_channels)[None, :], other=0)
        values += near.to(tl.float32) * tl.load(stencil + offset)
    written = exists[:, None] & (column < out_channels)[None, :]
    if ACTIVE_TOO:
        own = written & (row < active)[:, None]
        values += tl.load(kept + position[:, None] * kept_stride + column[None, :], mask=own, other=0).to(tl.float32)
    values += tl.load(shift + column, mask=column < out_channels, other=0)[None, :]
    source = residual + position[:, None] * residual_stride + column[None, :]
    values += tl.load(source, mask=exists[:, None] & (column < added // 16 * 16)[None, :], other=0).to(tl.float32)
    values = tl.maximum(values, floor)
    target = out + position[:, None] * out_stride + column[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=written)


@triton.jit
def _sample(source, stride, item, y, x, height, width, column, read, SHRINK: tl.constexpr, BILINEAR: tl.constexpr):
    """Positions (y, x) of a height x width map, read from one that is SHRINK times smaller."""
    coarse_height = height // SHRINK
    coarse_width = width // SHRINK
    if SHRINK == 1 or not BILINEAR:
        place = (item * coarse_height + y // SHRINK) * coarse_width + x // SHRINK
        return tl.load(source + place[:, None] * stride + column[None, :], mask=read, other=0).to(tl.float32)
    source_y = tl.maximum((y.to(tl.float32) + 0.5) / SHRINK - 0.5, 0)
    source_x = tl.maximum((x.to(tl.float32) + 0.5) / SHRINK - 0.5, 0)
    top = source_y.to(tl.int32)
    left = source_x.to(tl.int32)
    down = (source_y - top)[:, None]
    right = (source_x - left)[:, None]
    bottom_line = (item * coarse_height + tl.minimum(top + 1, coarse_height - 1)) * coarse_width
    top_line = (item * coarse_height + top) * coarse_width
    beside = tl.minimum(left + 1, coarse_width - 1)
    source += column[None, :]
    a = tl.load(source + (top_line + left)[:, None] * stride, mask=read, other=0).to(tl.float32)
    b = tl.load(source + (top_line + beside)[:, None] * stride, mask=read, other=0).to(tl.float32)
    c = tl.load(source + (bottom_line + left)[:, None] * stride, mask=read, other=0).to(tl.float32)
    d = tl.load(source + (bottom_line + beside)[:, None] * stride, mask=read, other=0).to(tl.float32)
    upper = a + (b - a) * right
    return upper + (c + (d - c) * right - upper) * down


@triton.jit(do_not_specialize=["height", "width", "capacity"])
def combine(a, b, c, d, out, entries, counts, height, width, capacity, a_stride, b_stride, c_stride, d_stride,
             out_stride, channels, SHRINK_A: tl.constexpr, SHRINK_B: tl.constexpr,
             SHRINK_C: tl.constexpr, SHRINK_D: tl.constexpr, POOL: tl.constexpr, BILINEAR: tl.constexpr,
             RELU: tl.constexpr, LISTED: tl.constexpr, NEEDED: tl.constexpr, ROWS: tl.constexpr,
             BLOCK: tl.constexpr):  # fmt: skip
    """The sum of up to four maps (SHRINK 0: absent), each resized to POOL times height x width, then averaged."""
    active = tl.load(counts) if LISTED else capacity
    total = active + tl.load(counts + 1) if NEEDED else active
    if tl.program_id(0) * ROWS >= total:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    if LISTED:
        place = tl.where(row < active, row, capacity - 1 - row + active)
        position = tl.load(entries + place, mask=exists, other=0) >> 1
    else:
        position = row
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = position % width * POOL
    line = position // width
    y = line % height * POOL
    item = line // height
    read = exists[:, None] & (column < channels)[None, :]
    height *= POOL
    width *= POOL
    values = tl.zeros((ROWS, BLOCK), tl.float32)
    for dy in tl.static_range(POOL):
        for dx in tl.static_range(POOL):
            values += _sample(a, a_stride, item, y + dy, x + dx, height, width, column, read, SHRINK_A, BILINEAR)
            if SHRINK_B:
                values += _sample(b, b_stride, item, y + dy, x + dx, height, width, column, read, SHRINK_B, BILINEAR)
            if SHRINK_C:
                values += _sample(c, c_stride, item, y + dy, x + dx, height, width, column, read, SHRINK_C, BILINEAR)
            if SHRINK_D:
                values += _sample(d, d_stride, item, y + dy, x + dx, height, width, column, read, SHRINK_D, BILINEAR)
    values = values / (POOL * POOL)
    if RELU:
        values = tl.maximum(values, 0)
    target = out + position[:, None] * out_stride + column[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=read)
