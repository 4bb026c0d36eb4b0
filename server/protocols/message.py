"""How far the bytes of one HTTP request have been parsed, and which of those that came belong to it. Pure."""

Headers = list[tuple[bytes, bytes]]
END_OF_HEAD = b"\r\n\r\n"
UPGRADES = b"upgrade", b"http2-settings"
"""The header fields that ask for another protocol; `Connection` lists them."""


class Message:
    """One request.

    `begun`: some of it has been parsed. `complete`: all of it has. `arrived_s`: when its first byte came.
    `idle_bytes`: parsed since its headers, or a byte of its body, were complete. `body_bytes`, `chunks`: of its body.
    """

    CHUNKED_BYTES = 16 * 1024
    """A chunked body is parsed in parts of so many bytes: where it ends, only the parser knows."""

    def __init__(self) -> None:
        self.begun = self.in_body = self.complete = False
        self.arrived_s = 0.0
        self.idle_bytes = self.body_bytes = self.chunks = 0
        self._left: int | None = 0
        self._tail = b""  # the last bytes of the head as far as it is parsed

    def end(self, rest: bytes) -> int:
        """How many bytes of `rest` to parse next: the head with its blank line, the body, or a part of these."""
        if self.in_body:
            return self.CHUNKED_BYTES if self._left is None else self._left
        found = (self._tail + rest).find(END_OF_HEAD)
        return len(rest) if found < 0 else found + len(END_OF_HEAD) - len(self._tail)

    def take(self, piece: bytes) -> None:
        """Count these bytes as handed to the parser."""
        self.idle_bytes += len(piece)
        if not self.in_body:
            self._tail = (self._tail + piece[-3:])[-3:]
        elif self._left is not None:
            self._left -= len(piece)

    def begin_body(self, size_bytes: int | None) -> None:
        """The headers are complete, and announce so many bytes. None: the body is chunked."""
        self.in_body, self._left, self.idle_bytes = True, size_bytes, 0

    def take_body(self, size_bytes: int) -> None:
        """The parser found bytes of the body."""
        self.body_bytes += size_bytes
        self.idle_bytes = 0


def to_head(method: bytes, url: bytes, headers: Headers) -> bytes:
    """The head of a request, as it is sent."""
    lines = [b"%b %b HTTP/1.1" % (method, url), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + END_OF_HEAD


def without_upgrades(headers: Headers) -> Headers:
    """The headers, lower-case as they are, without the fields that ask for another protocol."""
    found = []
    for name, value in headers:
        if name == b"connection":
            others = [token for token in value.split(b",") if token.strip().lower() not in UPGRADES]
            found += [(name, b",".join(others))] if others else []
        elif name not in UPGRADES:
            found.append((name, value))
    return found
