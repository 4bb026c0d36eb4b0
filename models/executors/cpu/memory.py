"""Buffers that later requests reuse, because the first use of fresh pages takes as long as a convolution."""

import weakref
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Bytes

Value = TypeVar("Value", bound=np.generic)

FreeBuffer = tuple[Bytes, int]
"""A buffer, and the pixels of the request that had it."""

MAX_FREE_BUFFERS = 4
"""Free buffers that are kept, the largest first: the image and the features of a finished request."""
MAX_FREE_WORKSPACES = 2
"""Free workspaces that are kept: that of large requests, and that of small ones that run while a large one pauses."""
MAX_WORKSPACE_RATIO = 16
"""The workspaces that the steps of one request need differ by less. Small requests leave those of large ones alone."""
SHRINK_FACTOR = 4
"""A free buffer is no longer kept if it comes from an image this many times larger than all in work."""


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


class Buffers:
    """Arrays of one request, `arrays`, which go back to their allocator together when nobody refers to this any more.

    `pixels`: those of the request's padded image.
    """

    def __init__(self, allocator: "CachingAllocator", arrays: Sequence[Bytes], pixels: int) -> None:
        self.arrays = tuple(arrays)
        allocator.live.append(pixels)
        weakref.finalize(self, allocator.release, self.arrays, pixels).atexit = False


class CachingAllocator:
    """Keeps the buffers that requests of one executor release and hands them to later requests.

    A free buffer is kept with the pixels of the request that had it, which tell when it is no longer needed. `live`:
    the pixels of all `Buffers` in use.
    """

    def __init__(self) -> None:
        self.live: list[int] = []
        self._latest_pixels = 0
        self._free: list[FreeBuffer] = []
        self._workspaces: list[FreeBuffer] = []

    def begin_request(self, pixels: int) -> None:
        """Drops the largest free buffer that comes from a much larger request than all in work: one buffer a request,
        because the system takes milliseconds to free a large one."""
        self._latest_pixels = pixels
        for kept in (self._workspaces, self._free):
            for index, (_, of) in enumerate(kept):  # the largest first
                if self._too_large(of):
                    del kept[index]
                    return

    def take(self, size: int) -> Bytes:
        """An uninitialised buffer of at least `size` bytes: the smallest free one that is not over twice as large, or a
        fresh one."""
        return _take(self._free, size, 2 * size)

    def release(self, arrays: Sequence[Bytes], pixels: int) -> None:
        """Takes back the arrays of `Buffers` that have ended."""
        self.live.remove(pixels)
        if not self._too_large(pixels):
            self._free = _largest([*self._free, *((array, pixels) for array in arrays)], MAX_FREE_BUFFERS)

    def take_workspace(self, size: int) -> Bytes:
        """At least `size` bytes of working memory for one step: the smallest free workspace that is not over
        `MAX_WORKSPACE_RATIO` times as large, or a fresh one. If all free ones are too small, the largest is dropped."""
        if self._workspaces and self._workspaces[0][0].size < size:
            del self._workspaces[0]
        return _take(self._workspaces, size, MAX_WORKSPACE_RATIO * size)

    def release_workspace(self, workspace: Bytes, pixels: int) -> None:
        if not self._too_large(pixels):
            self._workspaces = _largest([*self._workspaces, (workspace, pixels)], MAX_FREE_WORKSPACES)

    def _too_large(self, pixels: int) -> bool:
        return pixels > SHRINK_FACTOR * max([self._latest_pixels, *self.live])


def _take(free: list[FreeBuffer], least: int, most: int) -> Bytes:
    """The smallest buffer of `least` to `most` bytes, which is taken from `free`; a fresh one if there is none."""
    fitting = (index for index, (array, _) in enumerate(free) if least <= array.size <= most)
    best = min(fitting, key=lambda index: free[index][0].size, default=None)
    return empty(least) if best is None else free.pop(best)[0]


def _largest(free: list[FreeBuffer], count: int) -> list[FreeBuffer]:
    """The `count` largest buffers, the largest first."""
    return sorted(free, key=lambda kept: -kept[0].size)[:count]
