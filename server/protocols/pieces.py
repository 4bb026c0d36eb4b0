"""Pieces: limits on the number of frames or chunks in which one message may arrive."""

import struct
from dataclasses import dataclass

from server.errors import InvalidError

FREE_PIECES = 1000
PIECE_BYTES = 256
"""The least mean size of a message's pieces beyond the first `FREE_PIECES`, because each piece costs CPU time."""

MAX_HEADER_BYTES = 14
"""The longest header of a WebSocket frame (RFC 6455, section 5.2)."""
TEXT, CLOSE = 1, 8
"""Opcodes (RFC 6455, section 11.8); those from `CLOSE` on are of control frames."""


@dataclass(frozen=True)
class FrameHeader:
    """The first bytes of a WebSocket frame. `size_bytes`: of the whole frame, this header included."""

    opcode: int
    final: bool
    size_bytes: int

    @property
    def is_control(self) -> bool:
        return self.opcode >= CLOSE


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
    mask = 4 if second & 0x80 else 0
    return FrameHeader(first & 0x0F, bool(first & 0x80), 2 + extended + mask + length)


def check_pieces(pieces: int, size_bytes: int) -> None:
    """Raises InvalidError if a message of `size_bytes` bytes comes in too many pieces."""
    if pieces > FREE_PIECES + size_bytes // PIECE_BYTES:
        raise InvalidError(
            f"{size_bytes:,} bytes came in {pieces:,} pieces; send larger ones, of {PIECE_BYTES} bytes or more",
            "too_many_pieces",
        )
