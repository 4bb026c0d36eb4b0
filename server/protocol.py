"""HTTP on a connection: uvicorn's protocol with a limit on headers and trailers, which it takes at any length, and the
time at which each request began to come."""

import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import ServerError
from server.wire import error_body, to_json


class Protocol(HttpToolsProtocol):
    """Answers 431 (RFC 6585, section 5) and closes the connection where headers or trailers do not end."""

    MAX_BYTES = 64 * 1024
    """That may come without completing anything, after the read that began it. Parsing takes the square of them."""

    _incomplete_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._incomplete_bytes += len(data)
        super().data_received(data)
        if self._incomplete_bytes > self.MAX_BYTES and not self.transport.is_closing():
            self._refuse()

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

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # else the client would take it for an earlier answer
            sentence = f"headers may have {self.MAX_BYTES:,} bytes, and these have more; send shorter ones"
            body = to_json(error_body(ServerError(sentence, "headers_too_large"), None))
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
            )
        self.transport.close()
