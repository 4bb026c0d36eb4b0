"""The progress of parsing one HTTP request, and which of the received bytes belong to it. Pure."""

Headers = list[tuple[bytes, bytes]]
END_OF_HEAD = b"\r\n\r\n"
UPGRADES = b"upgrade", b"http2-settings"
"""The header fields that ask for another protocol; `Connection` lists them."""


class OverrunError(Exception):
    """The parser has reached the next request before the present one was answered."""


class Message:
    """One request.

    `begun`: its first byte is being parsed or was. `complete`: its last byte was parsed. `arrived_s`: when its first
    byte arrived. `idle_bytes`: the bytes parsed since its headers were complete or the latest byte of its body was
    found. `body_bytes`, `chunks`: the size of its body so far, and the chunks in which it came.
    """

    CHUNKED_BYTES = 16 * 1024
    """A chunked body is parsed in parts of this many bytes, because only the parser finds its end."""

    def __init__(self) -> None:
        self.begun = self.in_body = self.complete = False
        self.arrived_s = 0.0
        self.idle_bytes = self.body_bytes = self.chunks = 0
        self._left: int | None = 0
        self._tail = b""  # the last bytes of the head that were parsed

    @property
    def awaits_body(self) -> bool:
        """Whether more of its body is to come."""
        return self.in_body and not self.complete and self._left != 0

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
        """Note that the headers are complete. `size_bytes`: the announced length of the body; None: it is chunked."""
        self.in_body, self._left, self.idle_bytes = True, size_bytes, 0

    def take_body(self, size_bytes: int) -> None:
        """Count bytes of the body that the parser found."""
        self.body_bytes += size_bytes
        self.idle_bytes = 0


def to_head(method: bytes, url: bytes, headers: Headers) -> bytes:
    """The bytes of a request's head: the request line, the headers and the blank line."""
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


def announced_bytes(headers: Headers) -> int | None:
    """The announced length of a body in bytes, by the headers before it; None if it is chunked. The parser refuses a
    request that says both."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return None
    return 0
