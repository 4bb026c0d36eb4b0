"""The image as the first convolution reads it: its pixels as they are, in uint8, or normalised, in float32."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.executors.cpu.library import Bytes, library
from models.executors.cpu.memory import CachingAllocator
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.geometry import Frame, bands
from models.imaging.preprocess import mean_pixel, normal, pixels_of, resize_person
from models.network.configs import ModelConfig

PaddedImage = NDArray[Any]
"""uint8 or float32 (H + 2, W + 2, 3), contiguous. Pixel (y, x) of the image lies at (y + 1, x + 1); around the image
lies the first convolution's padding."""


class ImageFormat:
    """How a network's first convolution reads images. `as_pixels`: uint8 as they are; if not, float32, normalised."""

    def __init__(self, config: ModelConfig, *, as_pixels: bool) -> None:
        self._config = config
        self._type = np.uint8 if as_pixels else np.float32
        self._padding = mean_pixel(config).round().astype(np.uint8) if as_pixels else np.zeros(3, np.float32)
        """What is normalised to 0 (or nearly so)."""

    def allocate(self, allocator: CachingAllocator, height: int, width: int) -> tuple[Bytes, PaddedImage]:
        """The memory of an image's matrix, and where the image is to be written."""
        row_bytes = 3 * self._type().itemsize
        # Before the image lies the row of zeros that every matrix has.
        size = row_bytes * (1 + (height + 2) * (width + 2))
        memory = allocator.take(size)
        return memory, memory[row_bytes:size].view(self._type).reshape(height + 2, width + 2, 3)

    def read(self, pool: ThreadPool, image: NDArray[np.uint8], frame: Frame, padded: PaddedImage) -> Iterator[None]:
        """Writes what the network sees of an image, see `preprocess.cut`; yields after each band of lines.

        `image`: uint8 (H, W, 3).
        """
        pixels = image
        if self._config.task == "pose":
            pixels = np.empty((*self._config.size, 3), np.uint8)
            yield from resize_person(image, frame, pixels)
        pixels = np.ascontiguousarray(pixels)
        if padded.dtype == np.float32:
            yield from self._normalise(pool, pixels, padded)
        else:
            yield from self._copy(pixels, padded)

    def write_normalised(self, inputs: Tensor, padded: PaddedImage) -> None:
        """Writes an image that is normalised already, float32 (1, 3, H, W), as the nearest pixels if need be."""
        values = pixels_of(inputs, self._config) if padded.dtype == np.uint8 else inputs
        padded[:] = self._padding
        torch.from_numpy(padded)[1:-1, 1:-1].copy_(values[0].permute(1, 2, 0))

    def _normalise(self, pool: ThreadPool, pixels: NDArray[np.uint8], padded: PaddedImage) -> Iterator[None]:
        height, width = pixels.shape[:2]
        scale, shift = (np.tile(values, width) for values in normal(self._config))
        for band in bands(len(padded), width):
            library().normalise(
                pool.native,
                pixels.ctypes.data,
                height,
                3 * width,
                scale.ctypes.data,
                shift.ctypes.data,
                padded.ctypes.data,
                3 * padded.shape[1],
                band.start,
                band.stop,
            )
            yield

    def _copy(self, pixels: NDArray[np.uint8], padded: PaddedImage) -> Iterator[None]:
        width = pixels.shape[1]
        for band in bands(len(padded), width):
            lines, above = padded[band], int(band.start == 0)
            seen = pixels[band.start - 1 + above : max(band.stop - 1, 0)]
            inside = lines[above : above + len(seen)]
            lines[:above] = lines[above + len(seen) :] = self._padding
            inside[:, 0] = inside[:, 1 + width :] = self._padding
            inside[:, 1 : 1 + width] = seen
            yield
