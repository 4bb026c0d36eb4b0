"""Memory that the front end and its worker share, and who has which part of it; and how a process holds its own.

Imports nothing of this project.

One sparse file without a name, mapped by both. The front end owns it, so it outlives a worker that is killed; only
pages that were used take memory. A `memfd` is no file of /dev/shm, which containers keep at 64 MiB.
"""

import ctypes
import gc
import mmap
import os
import tempfile
from bisect import insort


class Arena:
    """`size` bytes of shared memory, dealt out first fit so that the lowest pages are used again and again.

    Not thread-safe: the event loop alone takes and gives.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.fd = _nameless_file()
        os.ftruncate(self.fd, size_bytes)
        self._map = mmap.mmap(self.fd, size_bytes)
        self.view = memoryview(self._map)
        self._free = [(0, size_bytes)]  # offset, size; ascending, never adjacent

    def take(self, size_bytes: int) -> int | None:
        """The offset of a free block, or None if no gap is large enough."""
        for index, (offset, gap) in enumerate(self._free):
            if gap > size_bytes:
                self._free[index] = (offset + size_bytes, gap - size_bytes)
                return offset
            if gap == size_bytes:
                del self._free[index]
                return offset
        return None

    def give(self, offset: int, size_bytes: int) -> None:
        """Return a block, and join it to free neighbours."""
        insort(self._free, (offset, size_bytes))
        joined: list[tuple[int, int]] = []
        for start, size in self._free:
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((start, size))
        self._free = joined

    @property
    def taken_bytes(self) -> int:
        return self.size_bytes - sum(size for _, size in self._free)

    def close(self) -> None:
        """Unmapping is left to the last array that still looks into it."""
        os.close(self.fd)


def attach(fd: int, size_bytes: int) -> memoryview:
    """The same memory in another process, which inherited the file descriptor `fd`."""
    return memoryview(mmap.mmap(fd, size_bytes))


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("anytime-maps")
    with tempfile.TemporaryFile() as file:  # not on Linux
        return os.dup(file.fileno())


def settle_garbage() -> None:
    """Have the collector pass over all that there is by now, which stays. Looking through it takes 11 ms in the front
    end and 75 ms in a worker, and would hold up whatever answer is due, once in some thousands of requests."""
    gc.collect()
    gc.freeze()


def keep_freed_memory() -> None:
    """Have the allocator keep what an image leaves for the next one, up to 32 MiB a thread. Returning the pages to the
    system and taking them anew is half of the time of decoding a small image. glibc's alone needs to be told."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: set, they no longer follow what was freed last
            libc.mallopt(option, 32 * 2**20)
