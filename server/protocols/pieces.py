"""Pieces: the frames or chunks in which one message may arrive. Many small ones are refused, and large ones are cut."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import InvalidError

FREE_PIECES = 1000
PIECE_BYTES = 256
"""The least mean size of a message's pieces beyond the first `FREE_PIECES`, because each piece costs CPU time."""

FINAL, MASKED = 0x80, 0x80
"""Bits of the first and of the second byte of a frame."""
MAX_HEADER_BYTES = 14
"""The longest header of a WebSocket frame (RFC 6455, section 5.2)."""
FRAGMENT_BYTES = 128 * 1024
"""The bytes of a frame that are unmasked at once; a multiple of the mask's four."""
CONTINUATION, TEXT, CLOSE = 0, 1, 8
"""Opcodes (RFC 6455, section 11.8); those from `CLOSE` on are of control frames."""


@dataclass(frozen=True)
class FrameHeader:
    """The first bytes of a WebSocket frame. `size_bytes`: of the whole frame, this header included.

    `header`: this header, as it came.
    """

    opcode: int
    final: bool
    size_bytes: int
    header: bytes

    @property
    def is_control(self) -> bool:
        return self.opcode >= CLOSE

    def is_large(self, limit_bytes: int) -> bool:
        """Whether `fragments` must cut the frame. Above `limit_bytes` it is refused, by its header alone."""
        return not self.is_control and FRAGMENT_BYTES < self.size_bytes <= limit_bytes

    def fragments(self, at: int, data: bytes) -> Iterator[bytes]:
        """The same message in fragments of `FRAGMENT_BYTES`: what becomes of `data`, which begins at byte `at` of the
        frame. The mask stays the same, because every fragment begins at a multiple of its length."""
        payload, at = data[max(0, len(self.header) - at) :], max(0, at - len(self.header))
        while payload:
            if at % FRAGMENT_BYTES == 0:
                yield self._fragment_header(at)
            piece = payload[: FRAGMENT_BYTES - at % FRAGMENT_BYTES]
            yield piece
            at, payload = at + len(piece), payload[len(piece) :]

    def _fragment_header(self, at: int) -> bytes:
        left_bytes = self.size_bytes - len(self.header) - at
        first = self.header[0] & 0x7F if at == 0 else CONTINUATION
        if self.final and left_bytes <= FRAGMENT_BYTES:
            first |= FINAL
        masked = self.header[1] & MASKED
        mask = self.header[-4:] if masked else b""
        return struct.pack(">BBQ", first, masked | 127, min(left_bytes, FRAGMENT_BYTES)) + mask


def parse_frame_header(data: bytes) -> FrameHeader | None:
    """The header at the start of `data` (RFC 6455, section 5.2); None if more bytes are needed."""
    if len(data) < 2:
        return None
    first, second = data[0], data[1]
    length, extended = second & 0x7F, 0
    if length >= 126:
        form, extended = (">H", 2) if length == 126 else (">Q", 8)
        if len(data) < 2 + extended:
            return None
        (length,) = struct.unpack_from(form, data, 2)
    size = 2 + extended + (4 if second & MASKED else 0)
    if len(data) < size:
        return None
    return FrameHeader(first & 0x0F, bool(first & FINAL), size + length, data[:size])


def check_pieces(pieces: int, size_bytes: int) -> None:
    """Raises InvalidError if a message of `size_bytes` bytes comes in too many pieces."""
    if pieces > FREE_PIECES + size_bytes // PIECE_BYTES:
        raise InvalidError(
            f"{size_bytes:,} bytes came in {pieces:,} pieces; send larger ones, of {PIECE_BYTES} bytes or more",
            "too_many_pieces",
        )
