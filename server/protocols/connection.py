"""Connections: uvicorn's HTTP and WebSocket protocols, with what they lack.

HTTP gets a limit on headers and trailers, a time limit for clients that do not read, an answer to requests that ask for
another protocol, and the time at which the first byte of each request came.
"""

import asyncio
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from server.errors import ServerError
from server.protocols.http import ARRIVED_S
from server.protocols.replies import error_body, to_json


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket without a fault: at shutdown, it closes sockets again that are closed already, and fails."""

    def shutdown(self) -> None:
        with suppress(InvalidState):
            super().shutdown()
        self.transport.close()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP. Headers or trailers without an end are answered with 431 (RFC 6585, section 5)."""

    MAX_BYTES = 64 * 1024
    """The most bytes that may come without completing headers, a body or trailers. The time to parse them grows with
    their square."""

    UPGRADES = b"upgrade", b"http2-settings"
    """The header fields that ask for another protocol; `Connection` lists them."""

    UNREAD_S = 60.0
    """The connection of a client that acknowledges no byte for so long is closed, which frees what its requests hold.
    This holds for a WebSocket, too. The kernel does it (tcp(7), TCP_USER_TIMEOUT), on Linux only."""

    _incomplete_bytes = 0
    _data = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self.UNREAD_S))

    def data_received(self, data: bytes) -> None:
        self._incomplete_bytes += len(data)
        self._data = data
        super().data_received(data)
        if self._incomplete_bytes > self.MAX_BYTES and not self.transport.is_closing():
            sentence = f"headers may have {self.MAX_BYTES:,} bytes, and these have more; send shorter ones"
            self._refuse(b"431 Request Header Fields Too Large", ServerError(sentence, "headers_too_large"))

    def on_message_begin(self) -> None:
        self._incomplete_bytes = 0
        super().on_message_begin()
        arrived_s = time.monotonic()  # the first byte's: headers may come slowly
        self.scope[ARRIVED_S] = arrived_s  # type: ignore[literal-required]

    def on_headers_complete(self) -> Any:
        self._incomplete_bytes = 0
        if not self._asks_in_vain():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._incomplete_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._incomplete_bytes = 0
        if not self._asks_in_vain():
            super().on_message_complete()

    def _asks_in_vain(self) -> bool:
        """Whether the request asks for a protocol that this server does not speak, as `curl --http2` does."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Answer a request that asks for another protocol as if it had not (RFC 9110, section 7.8).

        uvicorn calls this when its parser has stopped behind the headers of such a request. A new parser gets the
        headers without the fields that ask, and then the bytes that the first one did not read.
        """
        stopped = sys.exc_info()[1]
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                others = [token for token in value.split(b",") if token.strip().lower() not in self.UPGRADES]
                lines += [b"connection: " + b",".join(others)] if others else []
            elif name not in self.UPGRADES:
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + self._data[stopped.args[0] :])

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        self._refuse(b"400 Bad Request", ServerError(f"{msg} Speak HTTP/1.1 (RFC 9112)", "bad_http"))

    def _refuse(self, status: bytes, error: ServerError) -> None:
        """Send an error, and close the connection. If an earlier request is not answered yet, the client would take the
        error for that answer, so none is sent."""
        cycle = self.cycle
        receiving = cycle is not None and cycle.more_body and not cycle.response_started
        if cycle is None or cycle.response_complete or receiving:
            body = to_json(error_body(error, None))
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(body)) + body)
        self.transport.close()
