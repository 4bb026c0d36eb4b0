"""The threads of an executor's native code."""

import os
import weakref

from models.executors.cpu.library import library


class Pool:
    """`threads` of them, the caller's one of them. Raises ValueError if the system gives no so many."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start()

    @property
    def native(self) -> int:
        """Of this process: one that was forked off has none of its parent's threads, and starts its own."""
        if self._process != os.getpid():
            self._start()
        return self._native

    def _start(self) -> None:
        native = library().pool_create(self._threads)
        if not native:
            raise ValueError(f"the system gives this process no {self._threads} threads; ask for fewer")
        self._native: int = native
        self._process = os.getpid()
        weakref.finalize(self, _end, self._native, self._process)


def _end(native: int, process: int) -> None:
    if process == os.getpid():  # in another, forked off, there is nobody to wait for
        library().pool_free(native)
