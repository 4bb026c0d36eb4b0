"""The image as the first convolution reads it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Floats, library
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.geometry import Frame, bands
from models.imaging.preprocess import normal, resize_person
from models.network.configs import ModelConfig


def read_image(
    pool: ThreadPool, image: NDArray[np.uint8], frame: Frame, config: ModelConfig, padded: Floats
) -> Iterator[None]:
    """Cuts out what the network sees of an image, see `preprocess.cut`, and normalises it; yields after each band of
    lines.

    `image`: uint8 (H, W, 3). `padded`: float32 (lines, 3 * columns), contiguous, the colours of a pixel adjacent. Pixel
    (y, x) goes to (y + 1, x + 1), and there are zeros around them.
    """
    pixels = image
    if config.task == "pose":
        pixels = np.empty((*config.size, 3), np.uint8)
        yield from resize_person(image, frame, pixels)
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
