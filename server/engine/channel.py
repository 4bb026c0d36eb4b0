"""The front end's end of the socket to one worker. Neither commands nor events block the event loop."""

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.connection import Connection

from server.engine.framing import framed, unframed
from server.engine.messages import Command, Event

logger = logging.getLogger("anytime.channel")

READ_BYTES = 1 << 16


class Channel:
    """Sends commands to a worker, and calls `hear` with each of its events and `hung_up` once there can be no more.

    The worker's end is a `multiprocessing.Connection`, whose messages are framed likewise here.
    """

    def __init__(self, connection: Connection, hear: Callable[[Event], None], hung_up: Callable[[], None]) -> None:
        self._fd = connection.fileno()
        self._connection = connection
        self._hear = hear
        self._hung_up = hung_up
        self._unsent: OrderedDict[tuple[type[Command], int], Command] = OrderedDict()
        """Commands that wait for room in the worker's socket. For each job, only the newest of each kind is kept."""
        self._outgoing = b""
        """The rest of a command that was sent in part."""
        self._incoming = bytearray()
        """The beginning of an event that has come in part."""
        os.set_blocking(self._fd, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def say(self, command: Command) -> None:
        """Send a command, or keep it until the worker reads on."""
        waiting = bool(self._outgoing or self._unsent)
        self._unsent[type(command), command.key] = command
        if not waiting:
            self._send()

    def close(self) -> None:
        """Stop sending commands and receiving events."""
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._connection.close()

    def _send(self) -> None:
        """Send what is unsent until the socket is full; the event loop calls again once there is room."""
        while self._outgoing or self._unsent:
            if not self._outgoing:
                self._outgoing = framed(self._unsent.popitem(last=False)[1])
            try:
                self._outgoing = self._outgoing[os.write(self._fd, self._outgoing) :]
            except BlockingIOError:
                self._loop.add_writer(self._fd, self._send)
                return
            except OSError as error:
                logger.warning("the worker does not listen: %s", error)  # events that it sent before are still heard
                self._outgoing = b""
                self._unsent.clear()
        self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        """Read from the socket, and hear the events that are complete."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hung_up()
            return
        self._incoming += data
        while not self._connection.closed and (event := unframed(self._incoming)) is not None:
            try:
                self._hear(event)
            except Exception:  # the boundary: the events behind it, such as the end of a job, are heard all the same
                logger.exception("an event of the worker could not be handled: %r", event)
