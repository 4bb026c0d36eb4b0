"""The native threads of one executor."""

import os
import weakref

from models.executors.cpu.library import library


class ThreadPool:
    """`threads` native threads, the caller's thread included. They end when the pool is garbage.

    Raises ValueError if the system cannot start so many.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start()

    @property
    def native(self) -> int:
        """The address of the native pool. A forked child has none of its parent's threads, so it starts its own."""
        if self._process != os.getpid():
            self._start()
        return self._native

    def _start(self) -> None:
        native = library().thread_pool_create(self._threads)
        if not native:
            raise ValueError(f"the system gives this process no {self._threads} threads; ask for fewer")
        self._native: int = native
        self._process = os.getpid()
        weakref.finalize(self, _end, self._native, self._process)


def _end(native: int, process: int) -> None:
    if process == os.getpid():  # joining threads that a fork left behind would wait for ever
        library().thread_pool_free(native)
