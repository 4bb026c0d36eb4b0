"""The part of an image that is computed and answered for a request with `roi`. Pure."""

import math
from dataclasses import dataclass

from models.imaging.geometry import Box, Size
from server.errors import InvalidError

CONTEXT_PX = 32
"""Pixels around the region that are computed, too, because the network needs context to tell classes apart."""


@dataclass(frozen=True)
class Region:
    """`height`, `width`: the image's. `answered`: rows and columns that the client is sent. `computed`: those that the
    network sees, which are more by `CONTEXT_PX` where there are more."""

    height: int
    width: int
    answered: tuple[slice, slice]
    computed: tuple[slice, slice]

    @property
    def size(self) -> Size:
        """Height and width of what is computed."""
        rows, columns = self.computed
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def within(self) -> tuple[slice, slice]:
        """What is answered, as rows and columns of what is computed."""
        rows, columns = (
            slice(answered.start - computed.start, answered.stop - computed.start)
            for answered, computed in zip(self.answered, self.computed, strict=True)
        )
        return rows, columns


def find_region(roi: Box, height: int, width: int) -> Region:
    """The region of the pixels that `roi` touches in an image of this size. Raises InvalidError if it touches none."""
    x, y, roi_width, roi_height = roi
    top, bottom = max(0, math.floor(y)), min(height, math.ceil(y + roi_height))
    left, right = max(0, math.floor(x)), min(width, math.ceil(x + roi_width))
    if top >= bottom or left >= right:
        raise InvalidError(
            f"roi {x:g},{y:g},{roi_width:g},{roi_height:g} lies outside the image, which is {width}x{height}; give "
            "x,y,width,height in its pixels",
            "bad_roi",
        )
    rows = slice(max(0, top - CONTEXT_PX), min(height, bottom + CONTEXT_PX))
    columns = slice(max(0, left - CONTEXT_PX), min(width, right + CONTEXT_PX))
    return Region(height, width, (slice(top, bottom), slice(left, right)), (rows, columns))


def expected_size(roi: Box | None, height: int, width: int) -> Size:
    """Height and width of what is computed of an image that is expected to have this size."""
    return (height, width) if roi is None else (min(height, math.ceil(roi[3])), min(width, math.ceil(roi[2])))
