"""HTTP on a connection: uvicorn's protocol with a limit on headers and trailers, which it takes at any length, an end
to clients that take nothing of their answer, and the time at which each request began to come."""

import asyncio
import socket
import time
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from server.errors import ServerError
from server.wire import error_body, to_json


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which on the server's end says goodbye also where goodbyes have been said, and fails."""

    def shutdown(self) -> None:
        with suppress(InvalidState):
            super().shutdown()
        self.transport.close()


class Protocol(HttpToolsProtocol):
    """Answers 431 (RFC 6585, section 5) and closes the connection where headers or trailers do not end."""

    MAX_BYTES = 64 * 1024
    """That may come without completing anything, after the read that began it. Parsing takes the square of them."""

    UNREAD_S = 60.0
    """A client that takes not a byte of what waits for it is given up after so long, and frees what it holds: also on
    the WebSocket that this connection may become. The kernel's word (tcp(7), TCP_USER_TIMEOUT), so Linux's alone."""

    _incomplete_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self.UNREAD_S))

    def data_received(self, data: bytes) -> None:
        self._incomplete_bytes += len(data)
        super().data_received(data)
        if self._incomplete_bytes > self.MAX_BYTES and not self.transport.is_closing():
            sentence = f"headers may have {self.MAX_BYTES:,} bytes, and these have more; send shorter ones"
            self._refuse(b"431 Request Header Fields Too Large", ServerError(sentence, "headers_too_large"))

    def on_message_begin(self) -> None:
        self._incomplete_bytes = 0
        super().on_message_begin()
        self.scope["state"]["arrived_s"] = time.monotonic()  # of the first byte: headers may come slowly

    def on_headers_complete(self) -> Any:
        self._incomplete_bytes = 0
        return super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._incomplete_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._incomplete_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(b"400 Bad Request", ServerError(f"{msg} Speak HTTP/1.1 (RFC 9112)", "bad_http"))

    def _refuse(self, status: bytes, error: ServerError) -> None:
        cycle = self.cycle
        own = (
            cycle is not None and cycle.more_body and not cycle.response_started
        )  # it is of the request being received
        if cycle is None or cycle.response_complete or own:  # else the client would take it for an earlier answer
            body = to_json(error_body(error, None))
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(body)) + body)
        self.transport.close()
