"""Sizes and places in images: strides, limits, a person's box, and where a network's input lies in its image.

Needs no torch, so that the server's front end knows the same numbers as the worker.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""Height and width."""
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the image; x to the right, y down, from the corner of the first pixel."""

STRIDE = 4
"""Scores are computed at a quarter of the input's height and width."""
MULTIPLE = 32
"""Heights and widths of inputs are multiples of this: three strided stages follow the quarter."""
MAX_SIDE = 1 << 17
"""The longest side of an image in pixels: the CPU kernels number rows and columns at half the size in 16 bits."""
MAX_BOX_RATIO = 3.0
"""The longest side of a person's box, as a multiple of the image's longer side."""
BOX_MARGIN = 1.25
"""A person's box is made square by its longer side and widened by this, as HRNet widens its detections."""
BAND_PX = 1 << 18
"""Pixels of a band, see `bands`. Images of usual sizes are one band; any work on one takes a few milliseconds."""


@dataclass(frozen=True)
class Frame:
    """Where a network's input lies in an image of `height` x `width` pixels.

    Corner (0, 0) of the input is at (`left`, `top`) in the image, and one of its pixels is `scale` image pixels.
    """

    height: int
    width: int
    left: float = 0.0
    top: float = 0.0
    scale: float = 1.0

    def to_image(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Converts x, y (.., 2) in the input to x, y in the image; pixel centres are at integers in both."""
        return np.asarray((points + 0.5) * self.scale - 0.5 + (self.left, self.top), np.float32)

    def to_input(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inverse of `to_image`."""
        return np.asarray((points - (self.left, self.top) + 0.5) / self.scale - 0.5, np.float32)


def padded_size(height: int, width: int) -> Size:
    """Height and width padded up to multiples of `MULTIPLE`."""
    return height + -height % MULTIPLE, width + -width % MULTIPLE


def padded_px(height: int, width: int) -> int:
    """Pixels after padding both sides up to multiples of `MULTIPLE`."""
    return math.prod(padded_size(height, width))


def bands(lines: int, line_px: int) -> Iterator[slice]:
    """Splits `lines` into bands of adjacent lines, so that work on large images can pause between them. `line_px`: the
    pixels that a line stands for."""
    most = max(1, BAND_PX // line_px)
    for first in range(0, lines, most):
        yield slice(first, min(first + most, lines))


def check_box(box: Box, height: int, width: int) -> None:
    """Raises ValueError unless `box` is at least one pixel large, touches the `height` x `width` image, and has sides
    of at most `MAX_BOX_RATIO` times the image's longer side."""
    x, y, box_width, box_height = box
    if not (box_width >= 1 and box_height >= 1):
        raise ValueError(
            f"box is {x:g},{y:g},{box_width:g},{box_height:g}; width and height must be at least 1: give "
            "x,y,width,height in pixels of the image"
        )
    if not (x < width and y < height and x + box_width > 0 and y + box_height > 0):
        raise ValueError(
            f"box is {x:g},{y:g},{box_width:g},{box_height:g}, outside of the {width}x{height} image; give "
            "x,y,width,height in its pixels"
        )
    largest = MAX_BOX_RATIO * max(height, width)
    if max(box_width, box_height) > largest:
        raise ValueError(
            f"box is {box_width:g} wide and {box_height:g} high, the image {width}x{height}; the limit is {largest:g}: "
            "give the person's x,y,width,height in its pixels"
        )


def person_square(height: int, width: int, box: Box | None) -> tuple[int, int, int]:
    """left, top and side in pixels of the square that a person's crop takes from an image; without a box, the square
    around the whole image. Raises ValueError on a box that `check_box` refuses."""
    if box is None:
        side = max(height, width)
        return round((width - side) / 2), round((height - side) / 2), side
    check_box(box, height, width)
    x, y, box_width, box_height = box
    side = max(round(max(box_width, box_height) * BOX_MARGIN), 2)
    return round(x + (box_width - side) / 2), round(y + (box_height - side) / 2), side
