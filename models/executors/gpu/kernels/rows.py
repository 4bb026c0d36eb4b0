"""Row lists, as all kernels read them.

A row list, int32 (N * height * width,), belongs to one level. It holds the active rows from its front and the halo rows
from its back. An entry is 2 * row + 1 if interpolation reads the row, 2 * row if not. Beside it lie `counts`, int32
(4,): active rows, halo rows, two unused here.
"""

# mypy: ignore-errors
# ruff: noqa: N803, PLR0917
# Triton's language has no types, writes constants in capitals, and takes its arguments by position.

import triton
import triton.language as tl


@triton.jit
def row_counts(counts_ptr, all_rows, LISTED: tl.constexpr, ACTIVE: tl.constexpr, HALO: tl.constexpr):
    """How many rows a launch computes: first the active ones, then, counted together with them, the halo.

    ACTIVE, HALO: whether it computes these rows. LISTED: False if there is no list and all rows are active.
    """
    active = (tl.load(counts_ptr) if LISTED else all_rows) if ACTIVE else 0
    total = active + tl.load(counts_ptr + 1) if HALO else active
    return active, total


@triton.jit
def listed_rows(row_list_ptr, index, active, total, all_rows, LISTED: tl.constexpr):
    """The rows at `index` of a launch, and their entries. Where `index` >= `total`, both are 0."""
    exists = index < total
    if LISTED:
        place = tl.where(index < active, index, all_rows - 1 - index + active)
        entry = tl.load(row_list_ptr + place, mask=exists, other=0)
        row = entry >> 1
    else:
        row = tl.where(exists, index, 0)
        entry = row * 2
    return row, entry


@triton.jit
def coordinates(row, height, width):
    """The image in the batch, y and x of rows of a map of height x width."""
    x = row % width
    line = row // width
    y = line % height
    return line // height, y, x
