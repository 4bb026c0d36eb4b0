"""The kernel that turns a mask into the row list of one level, and counts its active positions."""

# mypy: ignore-errors
# ruff: noqa: N803, PLR0917
# Triton's language has no types, writes constants in capitals, and takes its arguments by position.

import triton
import triton.language as tl

# The columns of statistics, int32 (N, STATISTICS_COLUMNS), which kernel and host share.
STATISTICS_COLUMNS = tl.constexpr(8)
ACTIVE_AT_LEVEL = tl.constexpr(0)  # this one and the next three: active positions of each level, the finest first
ACTIVE_INSIDE = tl.constexpr(7)  # active positions of the finest level inside the image


@triton.jit(do_not_specialize=["height", "width"])
def compact_rows(
    # Pointers.
    mask_ptr,  # (N, MASK_STEP * height, MASK_STEP * width), uint8: 1 where the next stage computes
    inside_ptr,  # (N, 2), int32: height and width of the image in positions of the mask
    row_list_ptr,  # (N * height * width,), int32, written: see rows.py
    counts_ptr,  # (4,), int32, zero before the launch, written: see rows.py
    statistics_ptr,  # (N, STATISTICS_COLUMNS), int32, added to
    # Sizes of the level, in positions.
    height,
    width,
    # Constants.
    MASK_STEP: tl.constexpr,  # positions of the mask from one position of the level to the next, in both directions
    REACH: tl.constexpr,  # the farthest that any interpolation reads, in positions
    FULL_HALO: tl.constexpr,  # True: every inactive position is halo
    PATCH: tl.constexpr,  # side of the square of positions that one program lists
    LEVEL: tl.constexpr,  # 0 is the finest
):
    """Lists the rows of one level, patch by patch, so that neighbours in the list share cache lines.

    A position is active if the mask is 1 at its nearest position. An inactive position is halo if the mask has a 1 in
    the block of MASK_STEP x MASK_STEP that it stands for, or in one of the 8 blocks around: only then can an active
    position of a later layer read it. The grid is (N * ceil(height / PATCH) * ceil(width / PATCH),).
    """
    patches_across = tl.cdiv(width, PATCH)
    patches = patches_across * tl.cdiv(height, PATCH)
    patch = tl.program_id(0) % patches
    image = tl.program_id(0) // patches
    lane = tl.arange(0, PATCH * PATCH)
    y = patch // patches_across * PATCH + lane // PATCH
    x = patch % patches_across * PATCH + lane % PATCH
    exists = (y < height) & (x < width)
    mask_width = width * MASK_STEP
    mask_ptr += image * height * MASK_STEP * mask_width
    active = tl.load(mask_ptr + y * MASK_STEP * mask_width + x * MASK_STEP, mask=exists, other=0) != 0

    block = tl.arange(0, MASK_STEP * MASK_STEP)
    needed = tl.zeros((PATCH * PATCH,), tl.int32)
    for neighbour in range(9):
        near_y = y + neighbour // 3 - 1
        near_x = x + neighbour % 3 - 1
        inside = exists & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        fine_y = near_y[:, None] * MASK_STEP + block[None, :] // MASK_STEP
        fine_x = near_x[:, None] * MASK_STEP + block[None, :] % MASK_STEP
        found = tl.load(mask_ptr + fine_y * mask_width + fine_x, mask=inside[:, None], other=0)
        needed = tl.maximum(needed, tl.max(found.to(tl.int32), 1))
    if FULL_HALO:
        needed = tl.full((PATCH * PATCH,), 1, tl.int32)

    read_by_halo = tl.zeros((PATCH * PATCH,), tl.int32)
    for offset in range((2 * REACH + 1) * (2 * REACH + 1)):
        near_y = y + offset // (2 * REACH + 1) - REACH
        near_x = x + offset % (2 * REACH + 1) - REACH
        inside = exists & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        found = tl.load(mask_ptr + near_y * MASK_STEP * mask_width + near_x * MASK_STEP, mask=inside, other=1)
        read_by_halo = tl.maximum(read_by_halo, (found == 0).to(tl.int32))

    entry = ((image * height + y) * width + x) * 2 + read_by_halo
    in_front = active.to(tl.int32)
    active_count = tl.sum(in_front, 0)
    place = tl.atomic_add(counts_ptr, active_count) + tl.cumsum(in_front, 0) - 1
    tl.store(row_list_ptr + place, entry, mask=active)
    at_back = (exists & (needed != 0) & (in_front == 0)).to(tl.int32)
    place = tl.atomic_add(counts_ptr + 1, tl.sum(at_back, 0)) + tl.cumsum(at_back, 0) - 1
    all_rows = tl.num_programs(0) // patches * height * width
    tl.store(row_list_ptr + all_rows - 1 - place, entry, mask=at_back != 0)
    tl.atomic_add(statistics_ptr + image * STATISTICS_COLUMNS + ACTIVE_AT_LEVEL + LEVEL, active_count)
    if LEVEL == 0:
        inside = (y < tl.load(inside_ptr + image * 2)) & (x < tl.load(inside_ptr + image * 2 + 1))
        count = tl.sum((active & inside).to(tl.int32), 0)
        tl.atomic_add(statistics_ptr + image * STATISTICS_COLUMNS + ACTIVE_INSIDE, count)
