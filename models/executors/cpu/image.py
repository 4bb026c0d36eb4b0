"""The image as the first convolution reads it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Floats, library
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.geometry import bands
from models.imaging.preprocess import normal
from models.network.configs import ModelConfig


def normalise(pool: ThreadPool, pixels: NDArray[np.uint8], padded: Floats, config: ModelConfig) -> Iterator[None]:
    """Normalises an image as `preprocess.normalise` does, with zeros around it; yields after each band of lines.

    `pixels`: uint8 (h, w, 3). `padded`: float32 (H, 3 * W), contiguous, H > h and W > w, the colours of a pixel
    adjacent; pixel (y, x) goes to (y + 1, x + 1).
    """
    height, width = pixels.shape[:2]
    pixels = np.ascontiguousarray(pixels)
    scale, shift = (np.tile(values, width) for values in normal(config))
    for band in bands(len(padded), width):
        library().normalise(
            pool.native,
            pixels.ctypes.data,
            height,
            3 * width,
            scale.ctypes.data,
            shift.ctypes.data,
            padded.ctypes.data,
            padded.shape[1],
            band.start,
            band.stop,
        )
        yield
