"""The kernel after an exit: the mask of the next stage, from the exit's scores."""

# mypy: ignore-errors
# ruff: noqa: N803, PLR0917
# Triton's language has no types, writes constants in capitals, and takes its arguments by position.

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "exit_index"])
def update_mask(
    # Pointers.
    scores_ptr,  # (rows, classes), float32
    mask_ptr,  # (rows,), uint8, updated: the mask that the scores were computed under, then the next one
    decided_ptr,  # (rows,), uint8, updated: the exit whose scores stand at each position
    # Sizes and values.
    rows,  # of the whole batch
    threshold,  # float32, see `Masking`
    exit_index,  # from 1
    # Stride, in elements.
    scores_stride,
    # Size.
    classes,
    # Constants.
    CRITERION: tl.constexpr,  # "max_probability", "max_score" or "entropy"
    FIRST: tl.constexpr,  # True: all positions were computed, whatever the mask says
    ROWS: tl.constexpr,  # rows of a program
    BLOCK: tl.constexpr,  # a power of two >= classes
):
    """Equations 2 and 7 of the paper. The grid is (ceil(rows / ROWS),)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < rows
    column = tl.arange(0, BLOCK)[None, :]
    read = exists[:, None] & (column < classes)
    values = tl.load(scores_ptr + row[:, None] * scores_stride + column, mask=read, other=float("-inf"))
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
            active = -tl.sum(tl.where(column < classes, powers / sums * logarithms, 0), 1) >= threshold
    computed = exists if FIRST else tl.load(mask_ptr + row, mask=exists, other=0) != 0
    tl.store(decided_ptr + row, tl.zeros((ROWS,), tl.uint8) + exit_index.to(tl.uint8), mask=exists & computed)
    tl.store(mask_ptr + row, active.to(tl.uint8), mask=exists)
