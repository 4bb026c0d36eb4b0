"""What an exit's scores say, by the native code: for scores on the CPU, the classes of a position side by side.

Imports no network.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.executors.cpu.library import library
from models.executors.cpu.thread_pool import Pool
from models.imaging.geometry import STRIDE, Frame
from models.network.configs import Masking

CRITERIA = {"max_probability": 0, "max_score": 1}
"""Those of a `Masking` that `active` knows, by their number in exits.cpp."""


def labels(pool: Pool, scores: Tensor, frame: Frame) -> NDArray[np.uint8]:
    """As `postprocess.labels`: logits float32 (C, h, w) -> uint8 (H, W), but for ties by rounding. The classes of a
    position must be neighbours in memory, and (h, w) a quarter of the padded image."""
    classes, height, width = scores.shape
    stride = _stride(scores)
    assert frame.height <= STRIDE * height and frame.width <= STRIDE * width
    found = np.empty((frame.height, frame.width), np.uint8)
    best = np.empty((height, width), np.uint8)
    library().labels_of(
        pool.native,
        scores.data_ptr(),
        height,
        width,
        stride,
        classes,
        best.ctypes.data,
        found.ctypes.data,
        frame.height,
        frame.width,
    )
    return found


def active(
    pool: Pool,
    scores: Tensor,
    masking: Masking,
    computed: NDArray[np.bool_] | None,
    before: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """As `confidence.active`: the positions that stay active, bool (h, w), of scores float32 (C, h, w), by one of
    `CRITERIA`. Only where `computed` (h, w; None: everywhere) are they looked at; the others stay what they were
    `before`.
    """
    classes, height, width = scores.shape
    found = np.empty((height, width), np.bool_) if before is None else before.copy()
    library().active_at(
        pool.native,
        scores.data_ptr(),
        height,
        width,
        _stride(scores),
        classes,
        CRITERIA[masking.criterion],
        masking.threshold,
        None if computed is None else computed.ctypes.data,
        found.ctypes.data,
    )
    return found


def _stride(scores: Tensor) -> int:
    """Floats from one position to the next."""
    between_classes, between_lines, between_positions = scores.stride()
    assert between_classes == 1
    assert between_lines == scores.shape[2] * between_positions
    return between_positions
