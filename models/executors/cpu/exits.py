"""From an exit's scores on the CPU to its label map and its mask, by the native code.

Scores are float32 (C, h, w) whose classes are adjacent in memory, as the rows of the last matrix are.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.executors.cpu.library import library
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.geometry import STRIDE, Frame
from models.network.configs import Masking

CRITERIA = {"max_probability": 0, "max_score": 1}
"""The criteria that `update_mask` knows, by their number in native/exits.cpp."""


def labels(pool: ThreadPool, scores: Tensor, frame: Frame) -> NDArray[np.uint8]:
    """The label map of logits, as `postprocess.labels`: (C, h, w) -> uint8 (H, W), at the image's size.

    Classes that are equal but for rounding may differ from it. (h, w) must be a quarter of the padded image.
    """
    classes, height, width = scores.shape
    row_pitch = _row_pitch(scores)
    assert frame.height <= STRIDE * height and frame.width <= STRIDE * width
    found = np.empty((frame.height, frame.width), np.uint8)
    best = np.empty((height, width), np.uint8)
    library().label_map(
        pool.native,
        scores.data_ptr(),
        height,
        width,
        row_pitch,
        classes,
        best.ctypes.data,
        found.ctypes.data,
        frame.height,
        frame.width,
    )
    return found


def update_mask(
    pool: ThreadPool,
    scores: Tensor,
    masking: Masking,
    active: NDArray[np.bool_] | None,
    before: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """The mask for the next stage, bool (h, w), as `confidence.make_mask`, for a criterion of `CRITERIA`.

    `active`: bool (h, w), the mask under which the scores were computed; None if all of them were. `before`: bool
    (h, w), the mask that the exit before left; None if there is none. Scores at inactive positions are the ones of
    `before`'s exit (equation 7), so that these positions keep the value that they have there.
    """
    classes, height, width = scores.shape
    mask = np.empty((height, width), np.bool_) if before is None else before.copy()
    library().update_mask(
        pool.native,
        scores.data_ptr(),
        height,
        width,
        _row_pitch(scores),
        classes,
        CRITERIA[masking.criterion],
        masking.threshold,
        None if active is None else active.ctypes.data,
        mask.ctypes.data,
    )
    return mask


def _row_pitch(scores: Tensor) -> int:
    """Floats from one position to the next."""
    class_pitch, line_pitch, row_pitch = scores.stride()
    assert class_pitch == 1
    assert line_pitch == scores.shape[2] * row_pitch
    return row_pitch
