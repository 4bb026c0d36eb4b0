"""Buffers that later requests reuse, because the first use of fresh pages takes as long as a convolution."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Bytes

Value = TypeVar("Value", bound=np.generic)

FreeBuffer = tuple[Bytes, int]
"""A buffer, and the pixels of the request that released it. For a workspace: of the largest request that used it."""

MAX_FREE_BUFFERS = 4
"""Free buffers that are kept, the largest first: the image and the features of a finished request."""
MAX_FREE_WORKSPACES = 2
"""Free workspaces that are kept: that of large requests, and that of small ones that run while a large one pauses."""
MAX_WORKSPACE_RATIO = 16
"""A free workspace is reused only if it is at most this many times as large as needed. The steps of one request differ
by less."""
SHRINK_FACTOR = 4
"""A free buffer is no longer kept if it comes from an image this many times larger than all in work and all of the last
`KEEP_S`."""
KEEP_S = 10.0
"""For so many seconds after a large image its memory is kept, so that small images between two of a stream give
nothing back."""
PAGE, HUGE_PAGE = 2**12, 2**21
"""Bytes of a page, and of one that the system may use for large arrays instead."""
LARGE = 2 * HUGE_PAGE
"""From so many bytes on, NumPy asks for huge pages."""


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


def touch(arrays: Iterable[Bytes]) -> Iterator[None]:
    """Writes a zero to each page of every large array, and yields after each huge page. The arrays lose their content.

    The system clears a fresh page at the first write to it. For a huge page this takes 0.1 ms, and up to 7 ms in a
    virtual machine whose host must first find memory. Native code writes to several arrays before it checks whether the
    slice is over. After this function has written to the pages, native code does not wait for the system.
    """
    for array in arrays:
        if array.size >= LARGE:
            for begin in range(0, array.size, HUGE_PAGE):
                array[begin : begin + HUGE_PAGE : PAGE] = 0
                yield


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

    The garbage collector may end a request, and so call `release` and `release_workspace`, while any other method runs.
    These two therefore only note what is released, and the free buffers change under a lock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.live: list[int] = []
        self._clock = clock
        self._largest_pixels, self._until_s = 0, 0.0  # of the last `KEEP_S`
        self._free: list[FreeBuffer] = []
        self._workspaces: list[FreeBuffer] = []
        self._released: deque[tuple[Sequence[Bytes], int]] = deque()
        self._released_workspaces: deque[FreeBuffer] = deque()
        self._lock = threading.Lock()

    def begin_request(self, pixels: int) -> None:
        """Drops the largest free buffer that comes from a much larger request than all in work and all of the last
        `KEEP_S`: one buffer a request, because the system takes milliseconds to free a large one."""
        now_s = self._clock()
        with self._lock:
            self._keep_released()
            if pixels >= self._largest_pixels or now_s > self._until_s:
                self._largest_pixels, self._until_s = pixels, now_s + KEEP_S
            for kept in (self._workspaces, self._free):
                for index, (_, of) in enumerate(kept):  # the largest first
                    if self._too_large(of):
                        del kept[index]
                        return

    def take(self, size: int) -> Bytes:
        """An uninitialised buffer of at least `size` bytes: the smallest free one that is not over twice as large, or a
        fresh one."""
        with self._lock:
            self._keep_released()
            return _take(self._free, size, 2 * size, 0)[0]

    def release(self, arrays: Sequence[Bytes], pixels: int) -> None:
        """Takes back the arrays of `Buffers` that have ended."""
        self._released.append((arrays, pixels))
        self._try_to_keep_released()

    def take_workspace(self, size: int, pixels: int) -> FreeBuffer:
        """At least `size` bytes of working memory for one step: the smallest free workspace that is not over
        `MAX_WORKSPACE_RATIO` times as large, or a fresh one. If all free ones are too small, the largest is dropped.

        `pixels`: those of the request. Pass both results to `release_workspace`."""
        with self._lock:
            self._keep_released()
            if self._workspaces and self._workspaces[0][0].size < size:
                del self._workspaces[0]
            return _take(self._workspaces, size, MAX_WORKSPACE_RATIO * size, pixels)

    def release_workspace(self, workspace: Bytes, pixels: int) -> None:
        """Takes back what `take_workspace` gave."""
        self._released_workspaces.append((workspace, pixels))
        self._try_to_keep_released()

    def _try_to_keep_released(self) -> None:
        """Keeps what was released, unless a method holds the lock. The next call of a method then does it."""
        if self._lock.acquire(blocking=False):
            try:
                self._keep_released()
            finally:
                self._lock.release()

    def _keep_released(self) -> None:
        """Keeps the largest of the free buffers and of those that were released. The caller holds the lock."""
        while self._released:
            arrays, pixels = self._released.popleft()
            self.live.remove(pixels)
            if not self._too_large(pixels):
                self._free = _largest([*self._free, *((array, pixels) for array in arrays)], MAX_FREE_BUFFERS)
        while self._released_workspaces:
            workspace, pixels = self._released_workspaces.popleft()
            if not self._too_large(pixels):
                self._workspaces = _largest([*self._workspaces, (workspace, pixels)], MAX_FREE_WORKSPACES)

    def _too_large(self, pixels: int) -> bool:
        return pixels > SHRINK_FACTOR * max([self._largest_pixels, *self.live])


def _take(free: list[FreeBuffer], least: int, most: int, pixels: int) -> FreeBuffer:
    """The smallest buffer of `least` to `most` bytes, which is taken from `free`; a fresh one if there is none. It is
    for a request of so many `pixels`."""
    fitting = (index for index, (array, _) in enumerate(free) if least <= array.size <= most)
    best = min(fitting, key=lambda index: free[index][0].size, default=None)
    if best is None:
        return empty(least), pixels
    array, had = free.pop(best)
    return array, max(had, pixels)


def _largest(free: list[FreeBuffer], count: int) -> list[FreeBuffer]:
    """The `count` largest buffers, the largest first."""
    return sorted(free, key=lambda kept: -kept[0].size)[:count]
