"""HTTP on a connection: uvicorn's protocol with a limit on a request's headers, which it takes at any length."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import ServerError
from server.wire import error_body, to_json


class Protocol(HttpToolsProtocol):
    """Answers 431 (RFC 6585, section 5) and closes the connection of a client whose headers do not end."""

    MAX_HEADER_BYTES = 64 * 1024
    """Beyond what came in the same read as the header's first byte. Parsing takes the square of their length."""

    _in_headers = False
    _header_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > self.MAX_HEADER_BYTES:
                self._refuse()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> Any:
        self._in_headers = False
        return super().on_headers_complete()

    def _refuse(self) -> None:
        sentence = f"the request's headers are longer than {self.MAX_HEADER_BYTES:,} bytes; send shorter ones"
        body = to_json(error_body(ServerError(sentence, "headers_too_large"), None))
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()
