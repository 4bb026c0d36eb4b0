"""The header of an image file: the size that it declares, and an estimate of the work of decoding it.

It is read on the event loop, so it costs microseconds whatever the file holds, and never raises. It decides which
process decodes the file, and in which order. Only the decoder decides whether the file is valid.
"""

import struct
from dataclasses import dataclass

MAX_SEGMENTS = 256
"""The number of JPEG segments before the pixels that are looked at. Most photos have a few dozen."""
COUNTED_BYTES = 4 * 2**20
"""A file above this size is not examined: it counts as `MUCH` work."""
MUCH = 1 << 40
SCANS_AS_ONE = 4
"""This many scans of a JPEG take as long to decode as a JPEG in one scan."""
PACKED_AS_ONE = 16
"""A pixel of a BMP in run lengths takes as long to decode as this many, because Pillow reads them in Python."""
_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""The markers of JPEG segments that hold the size."""
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_START_OF_SCAN = 0xDA
_SEGMENTS = frozenset({*range(0xC0, 0xFF)} - {*range(0xD0, 0xDA)})
"""The markers of JPEG segments that have a length. At any other marker the search for the size stops: it would take
what follows for a segment, and a file could hide its true size there."""


@dataclass(frozen=True)
class Header:
    """`width` and `height` as the file declares them, in pixels, not yet turned upright.

    `work_px`: how many pixels of an ordinary photo take as long to decode.
    """

    width: int
    height: int
    work_px: int


def read_header(body: bytes) -> Header | None:
    """The header of a file; None if it has none, or is not read so far."""
    try:
        if body.startswith(b"\xff\xd8\xff"):
            return _jpeg(body)
        if body.startswith(b"\x89PNG\r\n\x1a\n") and body[12:16] == b"IHDR":
            return _header(body, *struct.unpack_from(">II", body, 16))
        if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
            return _webp(body)
        if body.startswith(b"BM"):
            return _bmp(body)
    except struct.error:  # the file is cut off
        pass
    return None


def work_px(body: bytes | memoryview) -> int:
    """The work of decoding a file, in the pixels of `Header.work_px`."""
    header = None if len(body) > COUNTED_BYTES else read_header(bytes(body))
    return MUCH if header is None else header.work_px


def _header(body: bytes, width: int, height: int, times: float = 1.0) -> Header:
    return Header(width, height, MUCH if len(body) > COUNTED_BYTES else int(width * height * times))


def _jpeg(body: bytes) -> Header | None:
    at, frame = 2, None
    for _ in range(MAX_SEGMENTS):
        mark, marker, length = struct.unpack_from(">BBH", body, at)
        if mark != 0xFF or marker not in _SEGMENTS or length < 2:
            return None
        if marker in _SIZES:
            frame = (*struct.unpack_from(">HHB", body, at + 5), marker in _PROGRESSIVE)
        elif marker == _START_OF_SCAN:
            if frame is None:
                return None
            height, width, components, progressive = frame
            (scanned,) = struct.unpack_from("B", body, at + 4)
            several = progressive or scanned < components  # else a decoder stops after the first scan
            times = 1.0
            if several and len(body) <= COUNTED_BYTES:
                # Data that looks like the beginning of a scan is counted, too; that only makes the file look dearer.
                times = max(1.0, body.count(b"\xff\xda") / SCANS_AS_ONE)
            return _header(body, width, height, times)
        at += 2 + length
    return None


def _webp(body: bytes) -> Header | None:
    kind = body[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (24, 27))
        return _header(body, width, height, 2.0)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        return _header(body, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 2.0)
    width, height = struct.unpack_from("<HH", body, 26)
    return _header(body, width & 0x3FFF, height & 0x3FFF)


def _bmp(body: bytes) -> Header | None:
    (size,) = struct.unpack_from("<I", body, 14)
    if size == 12:
        return _header(body, *struct.unpack_from("<HH", body, 18))
    width, height, compression = struct.unpack_from("<Ii4xI", body, 18)
    if compression not in (1, 2):
        return _header(body, width, abs(height))
    work = PACKED_AS_ONE * max(width * abs(height), len(body))  # runs may be empty, so that they fill no pixel
    return Header(width, abs(height), work)
