"""The image as the native code's first convolution reads it. Imports no network."""

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Floats, library
from models.executors.cpu.thread_pool import Pool
from models.imaging.preprocess import normal
from models.network.configs import ModelConfig


def normalise(pool: Pool, pixels: NDArray[np.uint8], config: ModelConfig, lines: Floats) -> None:
    """As `preprocess.normalise` and `pad`: uint8 (h, w, 3) -> `lines`, (H, 3 * W), the colours of a pixel side by side;
    zeros below and to the right. The lines may be apart in memory."""
    height, width = pixels.shape[:2]
    pixels = np.ascontiguousarray(pixels)
    scale, shift = (np.tile(values, width) for values in normal(config))
    library().normalise(
        pool.native,
        pixels.ctypes.data,
        height,
        3 * width,
        scale.ctypes.data,
        shift.ctypes.data,
        lines.ctypes.data,
        *lines.shape,
        lines.strides[0] // lines.itemsize,
    )
