"""Responses as bytes: when a head is written, and what the last response of a connection is."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from server.errors import ServerError
from server.protocols.replies import error_body, to_json

JOINED_BYTES = 16 * 1024
"""A body of more bytes is written by itself: to copy it would cost more than the call that is saved."""


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The interim response by which a client that waits for it may send its body (RFC 9110, section 10.1.1)."""


class HeldHead:
    """The transport of one response. It writes the head together with the body that follows it in the same turn of the
    event loop, in one call of the system instead of two, since a refusal consists of little else.

    A response is the last one of its connection if the client or the server wants that, or if the client sent `Expect:
    100-continue` and never got the 100: whether its body still comes is then unknown. After the last response, `end` is
    called; its argument says whether the client still waits for a 100.
    """

    def __init__(
        self, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop, end: Callable[[bool], None]
    ) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._loop = loop
        self._end = end
        self._awaits_100 = cycle.waiting_for_100_continue
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes) -> None:
        if data == CONTINUE:
            self._transport.write(data)
            self._awaits_100 = False
        elif not self._begun:
            if self._awaits_100 and self._cycle.keep_alive:
                self._cycle.keep_alive = False
                data = data.removesuffix(b"\r\n") + b"connection: close\r\n\r\n"
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
        self._end(self._awaits_100)

    def _flush(self) -> None:
        """Write the head if it has not been written."""
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def last_response(error: ServerError) -> bytes:
    """The bytes of an error response. It tells the client that the connection closes."""
    body = to_json(error_body(error, None))
    head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return STATUS_LINE[error.status] + head % len(body) + body
