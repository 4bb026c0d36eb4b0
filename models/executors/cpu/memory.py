"""Memory that is kept from one request to the next: fresh pages cost as much time as a convolution."""

import numpy as np

from models.executors.cpu.library import Floats

KEPT = 4  # arrays, the largest that requests have left: the image, and features
SHRINK = 4  # all is given back if the next image is so many times smaller


def empty(floats: int) -> Floats:
    """Uninitialised memory that begins on a cache line; a vector may be read past its end."""
    memory = np.empty(floats + 32, np.float32)
    begin = -memory.ctypes.data % 64 // 4
    return memory[begin : begin + floats]


def aligned(values: Floats) -> Floats:
    """A copy that begins on a cache line."""
    copy = empty(values.size)
    copy[:] = values
    return copy


class Memory:
    """Of one executor. Requests are as large as their images, in pixels."""

    def __init__(self) -> None:
        self._latest = 0
        self._forget()

    def _forget(self) -> None:
        self._left: list[Floats] = []
        self._working = empty(0)
        self._largest = 0

    @property
    def kept_floats(self) -> int:
        return self._working.size + sum(array.size for array in self._left)

    def expect(self, pixels: int) -> None:
        """A request begins."""
        self._latest = pixels
        if SHRINK * pixels < self._largest:
            self._forget()

    def working(self, floats: int, pixels: int) -> Floats:
        """For one step of a request; the same memory every time, if it is enough."""
        self._largest = max(self._largest, pixels)
        if floats > self._working.size:
            self._working = empty(floats)
        return self._working

    def take(self, floats: int) -> Floats:
        """At least `floats`, the caller's own: some that were left, if they are not twice as many, or fresh ones."""
        fitting = (i for i, array in enumerate(self._left) if floats <= array.size <= 2 * floats)
        best = min(fitting, key=lambda i: self._left[i].size, default=None)
        return empty(floats) if best is None else self._left.pop(best)

    def leave(self, arrays: list[Floats], pixels: int) -> None:
        """What was taken for a request and nobody uses any more."""
        if SHRINK * self._latest < pixels:
            return
        self._largest = max(self._largest, pixels)
        self._left = sorted([*self._left, *arrays], key=lambda array: -array.size)[:KEPT]
