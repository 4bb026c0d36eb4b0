"""The worker process, as the front end starts and ends it."""

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from server.engine.messages import LoadPlan

# Threads that spin between two convolutions would keep the cores from the front end.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class WorkerProcess(Protocol):
    """A worker that runs. `connection` is the front end's end of the socket to it."""

    connection: Connection

    def kill(self) -> None:
        """End it at once; does not wait until it is gone."""

    def gone(self, wait_s: float = 0.0) -> bool:
        """Whether it has ended, and so no longer touches the shared memory. Waits for that at most `wait_s`."""


class ChildProcess:
    """Runs a worker in a child process. Raises OSError if the process cannot be started.

    The child has a command line of its own, since torch's thread pool reads the environment when torch is imported. A
    child of `multiprocessing` would have to set the variables itself, and would come with a helper process.
    """

    def __init__(self, plan: LoadPlan) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.worker", str(theirs.fileno())],
                cwd=Path(__file__).parents[2],
                env={**os.environ, **PASSIVE},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), plan.arena_fd),
            )
            self.connection = Connection(ours.detach())
        self.connection.send(plan)

    def kill(self) -> None:
        self._process.kill()

    def gone(self, wait_s: float = 0.0) -> bool:
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        return True
