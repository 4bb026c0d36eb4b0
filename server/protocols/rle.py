"""Run lengths of a label map, as the COCO data set writes masks (`pycocotools.mask`).

Pixels are read column by column. The mask of a class is the lengths of its runs in turn, of 0 first and then of 1. From
the fourth on, a length is stored as its difference to the length two before. Each number becomes characters of 5 bits,
the lowest first: bit 5 says that more follow, the highest bit of the last is the sign, and 48 is added to be printable.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from server.protocols.encoder import Map

BITS, MORE, ZERO = 5, 32, 48
SLICE = 2**16
"""Numbers that are written at once, which bounds the memory that it takes."""
MOST_CHARACTERS = 8
"""Characters of the longest number: 40 bits."""


def class_runs(labels: Map) -> Iterator[tuple[int, str]]:
    """Every class that occurs in a label map, uint8 (H, W), in order, with its compressed run lengths."""
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    for value in np.unique(values):
        chosen = values == value
        yield int(value), compress_runs(_run_lengths(starts[chosen], ends[chosen], flat.size))


def _run_lengths(starts: NDArray[np.intp], ends: NDArray[np.intp], size: int) -> NDArray[np.int64]:
    """The lengths of the runs of 0 and 1 in turn, where the ones go from `starts` to `ends`, which are ascending."""
    bounds = np.empty(2 * len(starts) + 1, np.int64)
    bounds[0] = 0
    bounds[1::2], bounds[2::2] = starts, ends
    lengths = np.diff(bounds)
    return lengths if bounds[-1] == size else np.append(lengths, size - bounds[-1])


def compress_runs(lengths: NDArray[np.int64]) -> str:
    """The run lengths of a mask, int64 (N,), as characters."""
    numbers = lengths.copy()
    numbers[3:] -= lengths[1:-2]
    return "".join(_characters(numbers[low : low + SLICE]) for low in range(0, len(numbers), SLICE))


def _characters(numbers: NDArray[np.int64]) -> str:
    shifts = BITS * np.arange(MOST_CHARACTERS)
    digits = (numbers[:, None] >> shifts) & (MORE - 1)
    rest = numbers[:, None] >> (shifts + BITS)
    # A number ends where what is left is nothing but its sign, which the highest bit of the last digit tells.
    whole = rest == -((digits >> (BITS - 1)) & 1)
    last = whole.argmax(axis=1)[:, None]
    place = np.arange(MOST_CHARACTERS)
    characters = digits + ZERO + MORE * (place < last)
    text: NDArray[np.uint8] = characters[place <= last].astype(np.uint8)
    return text.tobytes().decode("ascii")
