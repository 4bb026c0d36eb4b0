"""From an exit's scores on the CPU to its label map and its mask, by the native code.

Scores are float32 (C, h, w) whose classes are adjacent in memory, as the rows of the last matrix are.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.executors.cpu.library import library
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.geometry import STRIDE, Frame, bands
from models.network.configs import Masking

CRITERIA = {"max_probability": 0, "max_score": 1}
"""The criteria that `update_mask` knows, by their number in native/exits.cpp."""


def labels(pool: ThreadPool, scores: Tensor, frame: Frame, out: NDArray[np.uint8]) -> Iterator[None]:
    """The label map of logits, as `postprocess.labels`: (C, h, w) -> `out`, uint8 (H, W), at the image's size.

    Classes that are equal but for rounding may differ from it. (h, w) must be a quarter of the padded image.
    """
    classes, height, width = scores.shape
    assert out.shape == (frame.height, frame.width) and out.flags.c_contiguous
    best = np.empty((height, width), np.uint8)
    for band in bands(height + 1, STRIDE**2 * width):
        library().label_map(
            pool.native,
            scores.data_ptr(),
            height,
            width,
            _row_pitch(scores),
            classes,
            best.ctypes.data,
            out.ctypes.data,
            *out.shape,
            band.start,
            band.stop,
        )
        yield


def update_mask(
    pool: ThreadPool, scores: Tensor, masking: Masking, active: NDArray[np.bool_] | None, mask: NDArray[np.bool_]
) -> Iterator[None]:
    """Sets `mask`, bool (h, w), to the mask for the next stage, as `confidence.make_mask`, for a criterion of
    `CRITERIA`; yields after each band of lines.

    `active`: bool (h, w), the mask under which the scores were computed; None if all of them were. Scores at inactive
    positions are those of the exit before (equation 7), so that these positions keep the value that `mask` has.
    """
    classes, height, width = scores.shape
    for band in bands(height, STRIDE**2 * width):
        part = scores[:, band]
        library().update_mask(
            pool.native,
            part.data_ptr(),
            part.shape[1],
            width,
            _row_pitch(scores),
            classes,
            CRITERIA[masking.criterion],
            masking.threshold,
            None if active is None else active[band].ctypes.data,
            mask[band].ctypes.data,
        )
        yield


def _row_pitch(scores: Tensor) -> int:
    """Floats from one position to the next."""
    class_pitch, line_pitch, row_pitch = scores.stride()
    assert class_pitch == 1
    assert line_pitch == scores.shape[2] * row_pitch
    return row_pitch
