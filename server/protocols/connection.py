"""HTTP on a connection: uvicorn's protocol with a limit on headers and trailers, which it takes at any length, an end
to clients that take nothing of their answer, requests that ask for another protocol in vain, and the time at which each
request began to come."""

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
from server.protocols.replies import error_body, to_json


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

    UPGRADES = b"upgrade", b"http2-settings"
    """Fields that ask for another protocol, and what `Connection` says of them."""

    UNREAD_S = 60.0
    """A client that takes not a byte of what waits for it is given up after so long, and frees what it holds: also on
    the WebSocket that this connection may become. The kernel's word (tcp(7), TCP_USER_TIMEOUT), so Linux's alone."""

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
        self.scope["state"]["arrived_s"] = time.monotonic()  # of the first byte: headers may come slowly

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
        """For a protocol that is not spoken here, as Java's client and `curl --http2` do for HTTP/2."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the parser has stopped behind the headers of such a request. It is answered as if it had not
        asked (RFC 9110, section 7.8): parsed anew, without the fields that ask, with the body that the parser left."""
        stopped = sys.exc_info()[1]
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [token for token in value.split(b",") if token.strip().lower() not in self.UPGRADES]
                lines += [b"connection: " + b",".join(kept)] if kept else []
            elif name not in self.UPGRADES:
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + self._data[stopped.args[0] :])

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
