"""The memory that the front end shares with its worker: who holds which block of it, and what lies in a block.

It is one sparse file without a name that both processes map. The front end owns the file, so the maps survive a worker
that is killed, and only pages that were written take memory. A `memfd` does not count against /dev/shm, which
containers limit to 64 MiB.
"""

import mmap
import os
import tempfile
from bisect import insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """Where the image and the maps of one job lie in its block: the image, then one slot for each exit.

    The worker writes a slot once and never again, so the front end reads it without a lock. `height` and `width` are
    the image's, in pixels. `joints` is 0 for label maps. `extra`: every slot has room for a further map.
    """

    height: int
    width: int
    exits: int
    joints: int = 0
    extra: bool = False

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def image_bytes(self) -> int:
        return _aligned(self.pixels * 3)

    @property
    def map_bytes(self) -> int:
        return _aligned(self.joints * 12 if self.joints else self.pixels)

    @property
    def extra_bytes(self) -> int:
        return _aligned(self.pixels) if self.extra else 0

    @property
    def total_bytes(self) -> int:
        return self.image_bytes + self.exits * (self.map_bytes + self.extra_bytes)

    def image(self, block: memoryview) -> NDArray[np.uint8]:
        """A view of the image: uint8 (H, W, 3) RGB."""
        flat = np.frombuffer(block, np.uint8, self.pixels * 3)
        return flat.reshape(self.height, self.width, 3)

    def labels(self, block: memoryview, exit_index: int) -> NDArray[np.uint8]:
        """A view of an exit's label map: uint8 (H, W)."""
        return self._map(block, self._slot(exit_index))

    def keypoints(self, block: memoryview, exit_index: int) -> NDArray[np.float32]:
        """A view of an exit's keypoints: float32 (J, 3), each x, y in pixels of the image and the score."""
        flat = np.frombuffer(block, np.float32, self.joints * 3, self._slot(exit_index))
        return flat.reshape(self.joints, 3)

    def extra_map(self, block: memoryview, exit_index: int) -> NDArray[np.uint8]:
        """A view of an exit's further map: uint8 (H, W)."""
        return self._map(block, self._slot(exit_index) + self.map_bytes)

    def _slot(self, exit_index: int) -> int:
        return self.image_bytes + (exit_index - 1) * (self.map_bytes + self.extra_bytes)

    def _map(self, block: memoryview, start: int) -> NDArray[np.uint8]:
        return np.frombuffer(block, np.uint8, self.pixels, start).reshape(self.height, self.width)


def _aligned(size_bytes: int) -> int:
    """The next multiple of 64 bytes, a cache line."""
    return -(-size_bytes // 64) * 64


class Arena:
    """`size_bytes` of shared memory, dealt out first fit so that the lowest pages are used again and again.

    It is not thread-safe: only the event loop takes and gives blocks.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.fd = nameless_file("anytime-maps")
        os.ftruncate(self.fd, size_bytes)
        self._map = mmap.mmap(self.fd, size_bytes)
        self.view = memoryview(self._map)
        self._owners: dict[int, tuple[str, int]] = {}  # by offset: who has a block, and its size
        self._free = [(0, size_bytes)]  # offset and size of each gap; ascending, never adjacent

    def refuses(self, size_bytes: int, owner: str) -> bool:
        """Whether a further block would give `owner` more than half of the memory. One block it may always have."""
        held_bytes = sum(held_bytes for name, held_bytes in self._owners.values() if name == owner)
        return held_bytes > 0 and held_bytes + size_bytes > self.size_bytes // 2

    def take(self, size_bytes: int, owner: str = "") -> int | None:
        """The offset of a free block, or None if no gap is large enough."""
        offset = self._find(size_bytes)
        if offset is not None:
            self._owners[offset] = (owner, size_bytes)
        return offset

    def _find(self, size_bytes: int) -> int | None:
        for index, (offset, gap_bytes) in enumerate(self._free):
            if gap_bytes > size_bytes:
                self._free[index] = (offset + size_bytes, gap_bytes - size_bytes)
                return offset
            if gap_bytes == size_bytes:
                del self._free[index]
                return offset
        return None

    def give(self, offset: int, size_bytes: int) -> None:
        """Return a block, and join it to free neighbours."""
        del self._owners[offset]
        insort(self._free, (offset, size_bytes))
        joined: list[tuple[int, int]] = []
        for start, gap_bytes in self._free:
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + gap_bytes)
            else:
                joined.append((start, gap_bytes))
        self._free = joined

    @property
    def taken_bytes(self) -> int:
        return self.size_bytes - sum(gap_bytes for _, gap_bytes in self._free)

    def close(self) -> None:
        """Close the file. The memory is unmapped once no array views it any more."""
        os.close(self.fd)


def attach(fd: int, size_bytes: int) -> memoryview:
    """Map the same memory in another process, which inherited the file descriptor `fd`."""
    return memoryview(mmap.mmap(fd, size_bytes))


def nameless_file(kind: str) -> int:
    """The descriptor of an empty file in memory. `kind`: what the system lists it as."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(kind)
    with tempfile.TemporaryFile() as file:  # elsewhere than on Linux
        return os.dup(file.fileno())
