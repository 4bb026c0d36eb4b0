"""The worker process, as the front end sees it: started, spoken to, and started again when it dies."""

import asyncio
import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from server.engine.messages import Command, Event, LoadPlan, Ready

logger = logging.getLogger("anytime.worker_process")

# Threads that spin between two convolutions would keep the cores from the front end.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

READ_BYTES = 1 << 16


class WorkerProcess(Protocol):
    """A worker that runs. `connection` is the front end's end of the socket to it."""

    connection: Connection

    def kill(self) -> None:
        """End it at once; returns when it no longer touches the shared memory."""


class ChildProcess:
    """Runs a worker in a child process. Raises OSError if the process cannot be started.

    The child has a command line of its own, since torch's thread pool reads the environment when torch is imported. A
    child of `multiprocessing` would have to set the variables itself, and would come with a helper process.
    """

    def __init__(self, plan: LoadPlan) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.worker.process", str(theirs.fileno())],
                cwd=Path(__file__).parents[2],
                env={**os.environ, **PASSIVE},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), plan.arena_fd),
            )
            self.connection = Connection(ours.detach())
        self.connection.send(plan)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()


class Supervisor:
    """Keeps one worker running.

    `launch` starts a worker. `hear` is called with each of its events, and `lost` once it is gone. `busy` says whether
    the worker has work, and so must be heard from.
    """

    SILENCE_S = 60.0
    """A busy worker that says nothing for this long is stuck; a healthy one speaks every second."""
    QUICK_S = 30.0
    """A worker that dies within this time of its start may do so again and again."""
    BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
    """The n-th value is the wait after n workers in a row could not be started or died within `QUICK_S` of their start;
    the last value is also the wait after more."""

    def __init__(
        self,
        launch: Callable[[], WorkerProcess],
        hear: Callable[[Event], None],
        lost: Callable[[], None],
        busy: Callable[[], bool],
    ) -> None:
        self.worker: WorkerProcess | None = None
        self.starts = 0
        self._launch = launch
        self._hear = hear
        self._lost = lost
        self._busy = busy
        self._unsent: OrderedDict[tuple[type[Command], int], Command] = OrderedDict()
        """Commands that wait for room in the worker's socket. For each job, only the newest of each kind is kept."""
        self._outgoing = b""
        """The rest of a command that was sent in part."""
        self._incoming = bytearray()
        """The beginning of an event that has come in part."""
        self._quick_deaths = 0
        self._started_s = 0.0
        self._heard_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        """Start a worker at once."""
        self.starts += 1
        self._started_s = self._heard_s = time.monotonic()
        try:
            self.worker = self._launch()
        except OSError:
            logger.exception("the worker could not be started")
            self._quick_deaths += 1
            self._start_later()
            return
        os.set_blocking(self.worker.connection.fileno(), False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.worker.connection.fileno(), self._readable)
        self._timer = loop.call_later(self.SILENCE_S / 10, self._watch)

    def stop(self) -> None:
        """End the worker for good."""
        self._stopped = True
        self._drop()

    def say(self, command: Command) -> None:
        """Send a command, or keep it until the worker reads on. A command to a worker that is gone is dropped: `lost`
        ends the job that it belongs to."""
        if self.worker is None:
            return
        if not self._busy():
            self._heard_s = time.monotonic()
        waiting = bool(self._outgoing or self._unsent)
        self._unsent[type(command), command.key] = command
        if not waiting:
            self._send()

    def _send(self) -> None:
        """Send what is unsent until the socket is full; the event loop calls again once there is room."""
        assert self.worker is not None
        loop, number = asyncio.get_running_loop(), self.worker.connection.fileno()
        while self._outgoing or self._unsent:
            if not self._outgoing:
                self._outgoing = _frame(self._unsent.popitem(last=False)[1])
            try:
                self._outgoing = self._outgoing[os.write(number, self._outgoing) :]
            except BlockingIOError:
                loop.add_writer(number, self._send)
                return
            except OSError as error:
                logger.warning("the worker does not listen: %s", error)  # events that it sent before are still heard
                self._outgoing = b""
                self._unsent.clear()
        loop.remove_writer(number)

    def _readable(self) -> None:
        """Read from the socket, and hear the events that are complete."""
        worker = self.worker
        if worker is None:
            return
        self._heard_s = time.monotonic()
        try:
            data = os.read(worker.connection.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        self._incoming += data
        while self.worker is worker and (event := _unframed(self._incoming)) is not None:
            if isinstance(event, Ready):
                logger.info("the worker was ready after %.1f s", self._heard_s - self._started_s)
            self._hear(event)

    def _watch(self) -> None:
        """Kill the worker if it is stuck."""
        if self._busy() and time.monotonic() - self._heard_s > self.SILENCE_S:
            logger.error("the worker has said nothing for %.0f s; ending it", self.SILENCE_S)
            self._gone()
        else:
            self._timer = asyncio.get_running_loop().call_later(self.SILENCE_S / 10, self._watch)

    def _gone(self) -> None:
        quick = time.monotonic() - self._started_s < self.QUICK_S
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        self._drop()
        if not self._stopped:
            self._start_later()

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.worker is None:
            return
        loop, number = asyncio.get_running_loop(), self.worker.connection.fileno()
        loop.remove_reader(number)
        loop.remove_writer(number)
        self._outgoing = b""
        self._unsent.clear()
        self._incoming.clear()
        self.worker.kill()
        self.worker = None
        self._lost()

    def _start_later(self) -> None:
        wait_s = self.BACKOFF_S[min(max(0, self._quick_deaths - 1), len(self.BACKOFF_S) - 1)]
        logger.error("the worker is gone; starting another in %.1f s", wait_s)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self.start)


def _frame(command: Command) -> bytes:
    """A command as `multiprocessing.Connection.send` writes it: the length in 4 bytes, then the pickled object."""
    data = pickle.dumps(command)
    return struct.pack("!i", len(data)) + data


def _unframed(received: bytearray) -> Event | None:
    """Take the first event off the bytes that a Connection has sent; None while it is incomplete."""
    if len(received) < 4:
        return None
    end = 4 + struct.unpack_from("!i", received)[0]
    if len(received) < end:
        return None
    event: Event = pickle.loads(received[4:end])
    del received[:end]
    return event
