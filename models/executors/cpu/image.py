"""The image as the first convolution reads it: its pixels as they are, in uint8, or normalised, in float32."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.executors.cpu.library import Bytes, Floats, library
from models.executors.cpu.memory import CachingAllocator
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.preprocess import mean_pixel, normal, pixels_of
from models.network.configs import ModelConfig

Lines = NDArray[np.generic]
"""uint8 or float32 (H, 3 * W), the colours of a pixel adjacent; the lines may be apart in memory."""


class ImageFormat:
    """How a network's first convolution reads images. `as_pixels`: uint8 as they are; if not, float32, normalised."""

    def __init__(self, config: ModelConfig, *, as_pixels: bool) -> None:
        self._config = config
        self._type = np.uint8 if as_pixels else np.float32
        self._mean = mean_pixel(config).round().astype(np.uint8) if as_pixels else np.zeros(3, np.float32)
        """What is normalised to 0 (or nearly so): the padding."""

    def allocate(self, allocator: CachingAllocator, height: int, width: int) -> tuple[Bytes, Lines]:
        """The memory of an image's matrix, and where its lines are to be written."""
        row = 3 * self._type().itemsize
        # A margin of one pixel is the convolution's padding. Before it lies the row of zeros that every matrix has.
        size = row * (1 + (height + 2) * (width + 2))
        memory = allocator.take(size)
        padded = memory[row:size].view(self._type).reshape(height + 2, width + 2, 3)
        padded[0] = padded[-1] = padded[:, 0] = padded[:, -1] = self._mean
        return memory, padded.reshape(height + 2, -1)[1:-1, 3:-3]

    def write(self, pool: ThreadPool, pixels: NDArray[np.uint8], lines: Lines) -> None:
        """Writes an image, uint8 (h, w, 3), with the mean pixel below and to the right of it."""
        height, width = pixels.shape[:2]
        if lines.dtype == np.float32:
            normalise(pool, pixels, self._config, lines.view(np.float32))
            return
        lines[:height, : 3 * width] = pixels.reshape(height, -1)
        lines[:height, 3 * width :] = np.tile(self._mean, lines.shape[1] // 3 - width)
        lines[height:] = np.tile(self._mean, lines.shape[1] // 3)

    def write_normalised(self, inputs: Tensor, lines: Lines) -> None:
        """Writes an image that is normalised already, float32 (1, 3, H, W), as the nearest pixels if need be."""
        values = pixels_of(inputs, self._config) if lines.dtype == np.uint8 else inputs
        torch.from_numpy(lines).view(*inputs.shape[2:], 3).copy_(values[0].permute(1, 2, 0))


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
