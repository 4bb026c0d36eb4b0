"""The worker process, as the front end starts and ends it."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from server.engine.messages import IN_RESERVE, Imported, LoadPlan

logger = logging.getLogger("anytime.worker_process")

# Threads that spin between two convolutions would keep the cores from the front end. Those of OpenBLAS always spin, and
# a worker needs them for nothing but the small matrices of loading.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": "1"}


class WorkerProcess(Protocol):
    """A worker that runs. `connection` is the front end's end of the socket to it."""

    connection: Connection

    @property
    def pid(self) -> int:
        """The number of its process."""

    def kill(self) -> None:
        """End it at once; does not wait until it is gone."""

    def gone(self, wait_s: float = 0.0) -> bool:
        """Whether it has ended, and so no longer touches the shared memory. Waits for that at most `wait_s`."""


class IdleProcess:
    """A child process that waits for its load plan. One that is `in_reserve` imports meanwhile what a worker needs, but
    only while a core is idle. It inherits the arena as descriptor `arena_fd`.

    It has a command line of its own, since torch's thread pool reads the environment when torch is imported. A child of
    `multiprocessing` would have to set the variables itself, and would come with a helper process. Raises OSError if it
    cannot be started.
    """

    def __init__(self, arena_fd: int, *, in_reserve: bool) -> None:
        self.arena_fd = arena_fd
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.worker", str(theirs.fileno()), *([IN_RESERVE] if in_reserve else [])],
                cwd=Path(__file__).parents[2],
                env={**os.environ, **PASSIVE},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), arena_fd),
            )
            self.connection = Connection(ours.detach())

    def has_imported(self) -> bool:
        """Whether the process has told that its imports are done: it can take a load plan. False if it has ended.
        This reads the process's message from the socket, so do not ask again after True."""
        try:
            return self.connection.poll() and isinstance(self.connection.recv(), Imported)
        except (EOFError, OSError):
            return False


class ChildProcess:
    """Runs a worker in a child process: in `idle`, or in a new one. Raises OSError if that cannot be started."""

    def __init__(self, plan: LoadPlan, idle: IdleProcess | None = None) -> None:
        idle = idle or IdleProcess(plan.arena_fd, in_reserve=False)
        self._process, self.connection = idle.process, idle.connection
        self.connection.send(replace(plan, arena_fd=idle.arena_fd))

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def gone(self, wait_s: float = 0.0) -> bool:
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        logger.info("worker process %d ended with status %d", self._process.pid, self._process.returncode)
        return True


class Reserve:
    """Starts workers. A worker runs in a process of the reserve if one has finished its imports, which take half of a
    worker's start-up time, and in a new process otherwise. `size`: how many processes the reserve keeps."""

    AFTER_S = 10.0
    """The reserve is filled up this long after a worker was started, which by then has loaded its models."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._idle: list[IdleProcess] = []
        self._due: dict[asyncio.TimerHandle, int] = {}
        """The timers that fill the reserve up, each with its own descriptor of the arena."""

    def __call__(self, plan: LoadPlan) -> ChildProcess:
        # A descriptor of its own: the front end may close its arena meanwhile. The number could then be that of the
        # front end's end of a socket; a process that inherits this end never learns that the front end is gone.
        self._fill_later(os.dup(plan.arena_fd))
        self._forget_ended()
        ready = next((idle for idle in self._idle if idle.has_imported()), None)
        if ready is not None:
            self._idle.remove(ready)
        return ChildProcess(plan, ready)

    def close(self) -> None:
        """End the idle processes, and start no others."""
        self._size = 0
        for timer, arena_fd in self._due.items():
            timer.cancel()
            os.close(arena_fd)
        self._due.clear()
        for idle in self._idle:
            idle.process.kill()
            idle.process.wait()
            idle.connection.close()
        self._idle.clear()

    def _fill_later(self, arena_fd: int) -> None:
        def fill() -> None:
            del self._due[timer]
            self._fill(arena_fd)

        timer = asyncio.get_running_loop().call_later(self.AFTER_S, fill)
        self._due[timer] = arena_fd

    def _fill(self, arena_fd: int) -> None:
        self._forget_ended()
        try:
            while len(self._idle) < self._size:
                self._idle.append(IdleProcess(arena_fd, in_reserve=True))
        except OSError as error:
            logger.warning("a process for the reserve could not be started: %s", error)
        finally:
            os.close(arena_fd)

    def _forget_ended(self) -> None:
        """Drop processes that have ended."""
        self._idle = [idle for idle in self._idle if idle.process.poll() is None]
