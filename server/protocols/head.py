"""The head of a response, and how it is written."""

import asyncio
from collections.abc import Callable
from typing import Any

JOINED_BYTES = 16 * 1024
"""A body of more bytes is written by itself: to copy it would cost more than the call that is saved."""


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The interim response by which a client that waits for it may send its body (RFC 9110, section 10.1.1)."""


class HeldHead:
    """The transport of one response. It writes the head together with the body that follows it in the same turn of the
    event loop, in one call of the system instead of two, since a refusal consists of little else.

    `continued` is called when the client has been told to send its body, and `end` when the response is the last one of
    the connection.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        continued: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._continued = continued
        self._end = end
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes) -> None:
        if data == CONTINUE:
            self._transport.write(data)
            self._continued()
        elif not self._begun:
            self._begun, self._head = True, data
            self._loop.call_soon(self._flush)
        elif self._head is not None and len(data) <= JOINED_BYTES:
            joined, self._head = self._head + data, None
            self._transport.write(joined)
        else:
            self._flush()
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._end()

    def _flush(self) -> None:
        """Write the head if it has not been written."""
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
