"""A decoding process, as the front end starts it, hands it files, hears its answers, and ends it."""

import asyncio
import logging
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.decoding.messages import DecoderAnswer, DecoderPlan
from server.engine.shared_memory import nameless_file

logger = logging.getLogger("anytime.lane")

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""The variables of the environment that a decoding process gets: what it takes to find Python's modules, no keys."""
ADDED_VARIABLES = {
    "OPENBLAS_NUM_THREADS": "1",  # its other threads would take memory, and start slowly
    "MALLOC_ARENA_MAX": "1",
    # The allocator keeps the memory of an image for the next one, see `keep_freed_memory` of the front end.
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}
KEPT_BYTES = 4 * 2**20
"""Memory of a file or an image beyond this size is returned to the system after each image."""
COPIED_BYTES = 2**20
"""Bytes of a file that are copied at once."""
MAX_LINE_BYTES = 4096


class DecoderProcess(Protocol):
    """A decoding process that runs. `connection`: the front end's end of the socket to it; `memory`: what both see."""

    connection: socket.socket
    memory: mmap.mmap

    def kill(self) -> None:
        """End it at once; does not wait until it is gone."""

    def wait(self) -> int:
        """Wait until it is gone. Returns its status: if negative, the number of the signal that ended it."""


class ChildDecoder:
    """Runs `python -m server.decoding` in a child process. Raises OSError if it cannot be started."""

    def __init__(self, plan: DecoderPlan) -> None:
        memory_fd = nameless_file("anytime-image")
        self.connection, theirs = socket.socketpair()
        arguments = (str(theirs.fileno()), str(memory_fd), plan.to_text())
        try:
            os.ftruncate(memory_fd, plan.memory_bytes)
            self.memory = mmap.mmap(memory_fd, plan.memory_bytes)
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "server.decoding", *arguments],
                cwd=Path(__file__).parents[2],
                env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | ADDED_VARIABLES,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory_fd),
            )
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()
            os.close(memory_fd)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        return self._process.wait()


class Decoder:
    """Hands files to a decoding process, and hears its answers. It never blocks the event loop.

    It calls `answered` with each answer; the first answer is a hello. It calls `ended` once, in the turn of the event
    loop in which the process turns out to have ended or `end` is called. `greeted`: whether the hello has come.
    `over`: whether `ended` was called.
    """

    def __init__(
        self,
        process: DecoderProcess,
        plan: DecoderPlan,
        answered: Callable[["Decoder", DecoderAnswer], None],
        ended: Callable[["Decoder"], None],
    ) -> None:
        self.process = process
        self.greeted = self.over = False
        self._plan = plan
        self._answered, self._ended = answered, ended
        self._copying = False
        self._incoming = b""
        process.connection.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(process.connection.fileno(), self._readable)

    def hand_over(self, body: bytes | memoryview, start: int = 0) -> None:
        """Copies a file into the memory that the process sees, and tells the process to decode it.

        One megabyte is copied in each turn of the event loop, from byte `start` on. The file may have at most the
        plan's `max_body_bytes`.
        """
        if self.over:
            return
        piece = body[start : start + COPIED_BYTES]
        self.process.memory[start : start + len(piece)] = piece
        self._copying = start + len(piece) < len(body)
        if self._copying:
            self._loop.call_soon(self.hand_over, body, start + len(piece))
            return
        try:
            self.process.connection.send(b"%d\n" % len(body))
        except OSError:
            self.end()

    def pixels(self, answer: DecoderAnswer) -> NDArray[np.uint8]:
        """A view of the image that was decoded last: uint8 (H, W, 3) RGB. Valid until the next file, or `clear`."""
        shape = (answer.height, answer.width, 3)
        return np.ndarray(shape, np.uint8, self.process.memory, self._plan.pixels_at)

    def clear(self, body_bytes: int, answer: DecoderAnswer) -> None:
        """Give the memory of a large file, and of a large image, back to the system. A file that failed may have filled
        any part of it."""
        pixels_bytes = 3 * answer.height * answer.width
        if answer.error is not None:
            pixels_bytes = self._plan.memory_bytes - self._plan.pixels_at
        for start, size_bytes in ((0, body_bytes), (self._plan.pixels_at, pixels_bytes)):
            if size_bytes > KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):  # Linux
                self.process.memory.madvise(mmap.MADV_REMOVE, start, size_bytes)

    def close(self) -> None:
        """End the process."""
        self.end()
        self.process.kill()
        self.process.connection.close()

    def _readable(self) -> None:
        try:
            data = self.process.connection.recv(MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        line, newline, self._incoming = (self._incoming + data).partition(b"\n")
        if newline:
            self._hear(line)
        elif data and len(line) < MAX_LINE_BYTES:
            self._incoming = line
        else:
            self.end()

    def _hear(self, line: bytes) -> None:
        if self._copying:  # it does not have the file yet, so it is no longer trusted
            self.end()
            return
        try:
            answer = DecoderAnswer.from_line(line, self._plan.max_pixels)
        except Exception:  # whatever it said: such a process is no longer trusted
            self.end()
            return
        self.greeted = True
        try:
            self._answered(self, answer)
        except Exception:  # the boundary: whatever goes wrong with one process, the lane goes on with another
            self.give_up()

    def give_up(self) -> None:
        """Logs the exception that is being handled, and calls `end`."""
        logger.exception("a decoding process is given up")
        self.end()

    def end(self) -> None:
        """Stops listening to the process and stops copying to it. `close` then kills the process."""
        if not self.over:
            self.over = True
            self._loop.remove_reader(self.process.connection.fileno())
            self._ended(self)
            del self._ended  # it refers to the file, which refers to this decoder, see server/garbage.py
