"""Buffers that are used again by the next request: touching fresh pages takes as long as a convolution."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Bytes

Value = TypeVar("Value", bound=np.generic)

MAX_FREE_BUFFERS = 4
"""Free buffers that are kept, the largest first: the image and the features of a finished request."""
SHRINK_FACTOR = 4
"""All free buffers are dropped once a request's image is this many times smaller than the largest before it."""


def empty(size: int) -> Bytes:
    """Uninitialised uint8 (size,) that begins on a cache line. A vector may be read past its end."""
    memory = np.empty(size + 128, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size]


def aligned(values: NDArray[Value]) -> NDArray[Value]:
    """A flat copy of `values` that begins on a cache line."""
    copy = empty(values.nbytes).view(values.dtype)
    copy[:] = values.ravel()
    return copy


class CachingAllocator:
    """Keeps the buffers that requests of one executor release and hands them to later requests.

    The size of a request is that of its padded image, in pixels: it tells when large buffers are no longer needed.
    """

    def __init__(self) -> None:
        self._latest_pixels = 0
        self._drop()

    def _drop(self) -> None:
        self._free: list[Bytes] = []
        self._workspace = empty(0)
        self._largest_pixels = 0

    def begin_request(self, pixels: int) -> None:
        """Drops all free buffers if they come from much larger requests."""
        self._latest_pixels = pixels
        if SHRINK_FACTOR * pixels < self._largest_pixels:
            self._drop()

    def workspace(self, size: int, pixels: int) -> Bytes:
        """At least `size` bytes of working memory for one step of a request. Every step gets the same memory."""
        self._largest_pixels = max(self._largest_pixels, pixels)
        if size > self._workspace.size:
            self._workspace = empty(size)
        return self._workspace

    def take(self, size: int) -> Bytes:
        """An uninitialised buffer of at least `size` bytes: the smallest free one that is not over twice as large, or a
        fresh one."""
        fitting = (i for i, array in enumerate(self._free) if size <= array.size <= 2 * size)
        best = min(fitting, key=lambda i: self._free[i].size, default=None)
        return empty(size) if best is None else self._free.pop(best)

    def release(self, buffers: list[Bytes], pixels: int) -> None:
        """Takes back the buffers of a request, which nobody may use any more."""
        if SHRINK_FACTOR * self._latest_pixels < pixels:
            return
        self._largest_pixels = max(self._largest_pixels, pixels)
        self._free = sorted([*self._free, *buffers], key=lambda array: -array.size)[:MAX_FREE_BUFFERS]
