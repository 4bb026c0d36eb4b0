"""Label maps by the native code: `postprocess.labels` for scores that lie on the CPU, positions side by side.

Imports no network.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.executors.native.library import library
from models.preprocess import STRIDE, Frame


def labels(scores: Tensor, frame: Frame) -> NDArray[np.uint8]:
    """As `postprocess.labels`: logits float32 (C, h, w) -> uint8 (H, W), but for ties by rounding. The classes of a
    position must be neighbours in memory, and (h, w) a quarter of the padded image."""
    classes, height, width = scores.shape
    between_classes, between_lines, between_positions = scores.stride()
    assert between_classes == 1 and between_lines == width * between_positions
    assert frame.height <= STRIDE * height and frame.width <= STRIDE * width
    found = np.empty((frame.height, frame.width), np.uint8)
    best = np.empty(2 * width, np.uint8)
    library().labels_of(
        scores.data_ptr(),
        height,
        width,
        between_positions,
        classes,
        best.ctypes.data,
        found.ctypes.data,
        frame.height,
        frame.width,
    )
    return found
