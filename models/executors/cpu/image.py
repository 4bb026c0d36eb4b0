"""The image as the first convolution reads it."""

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Floats, library
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.preprocess import normal
from models.network.configs import ModelConfig


def normalise(pool: ThreadPool, pixels: NDArray[np.uint8], config: ModelConfig, out: Floats) -> None:
    """Normalises an image and pads it with zeros below and to the right, as `preprocess.normalise` and `pad` do.

    `pixels`: uint8 (h, w, 3). `out`: float32 (H, 3 * W), H >= h and W >= w, the colours of a pixel adjacent; the lines
    may be apart in memory.
    """
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
        out.ctypes.data,
        *out.shape,
        out.strides[0] // out.itemsize,
    )
