"""Geometries on the device: the row lists of the masks of one batch at all levels."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.executors.gpu import kernels
from models.executors.gpu.kernels.geometry import STATISTICS_COLUMNS
from models.executors.gpu.streams import SideStreams

LEVELS = 4
"""Feature sizes, from a quarter of the image's height and width to a thirty-second."""
PATCH = 8
"""Side of the squares in whose order positions are listed."""


@dataclass(frozen=True, eq=False)
class LevelRows:
    """The rows of one level that are computed between two exits.

    `row_list`: int32 (N * h * w,), see kernels/rows.py. `counts`: int32 (4,), begins with the number of active rows and
    that of halo rows. `mask`: uint8 (N, h0, w0), at the finest level. `mask_step`: positions of the mask from one
    position of this level to the next, in both directions.
    """

    row_list: Tensor
    counts: Tensor
    mask: Tensor
    mask_step: int


class DeviceGeometry:
    """The tables of a batch's `mask`, uint8 (N, h, w) with 1 for active; they follow it whenever `update` runs.

    `levels`: from the finest. `statistics`: int32 (N, STATISTICS_COLUMNS), see kernels/geometry.py.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        # One buffer, so that one launch zeroes it. Each level's part begins at a multiple of 16 bytes, because Triton
        # compiles a kernel anew for other alignments.
        self._counters = mask.new_zeros((LEVELS + 2 * len(mask), 4), dtype=torch.int32)
        self.levels = tuple(
            LevelRows(mask.new_empty(mask.numel() >> 2 * level, dtype=torch.int32), counts, mask, 1 << level)
            for level, counts in enumerate(self._counters[:LEVELS])
        )
        self.statistics = self._counters[LEVELS:].view(len(mask), STATISTICS_COLUMNS.value)

    def at(self, height: int) -> LevelRows:
        """The level whose maps have so many lines."""
        return self.levels[(self.mask.shape[1] // height).bit_length() - 1]

    def update(self, inside: Tensor, reach: int, streams: SideStreams, *, full_halo: bool) -> None:
        """Lists the rows of the mask as it is now, and counts its active positions.

        `inside`: int32 (N, 2), height and width of each image in positions of the mask. `reach`: the farthest that any
        interpolation reads. `full_halo`: every inactive position is interpolated, because the next mask may be active
        where this one is not.
        """
        self._counters.zero_()

        def compact(level: int) -> None:
            rows = self.levels[level]
            batch, height, width = self.mask.shape
            height, width = height >> level, width >> level
            grid = (batch * -(-height // PATCH) * -(-width // PATCH),)
            kernels.compact_rows[grid](
                rows.mask, inside, rows.row_list, rows.counts, self.statistics, height, width,
                MASK_STEP=rows.mask_step, REACH=reach, FULL_HALO=full_halo, PATCH=PATCH, LEVEL=level,
            )  # fmt: skip

        streams.parallel([partial(compact, level) for level in range(LEVELS)])
