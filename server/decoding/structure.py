"""The structure of an image file: the parts of it that decide the pixels, and limits on their number.

Decoders handle a segment, a chunk or a scan at a time, so a file of nothing but those keeps one busy for seconds. This
module scans a file once, counts its parts, and leaves out comments, profiles, previews and anything behind the image.
The decoder reads only the rest.
"""

import re
import struct

from server.errors import InvalidError

MAX_PARTS = 32_768
"""A file may have this many segments or chunks. Photos have dozens; a PNG of 16 MiB in libpng's chunks has 2,048."""
MAX_SCANS = 64
"""A JPEG may have this many scans; encoders write about ten. Decoding one scan takes as long as the whole image, so a
small file with many scans would take any time."""
MAX_HEAD_BYTES = 256 * 2**10
"""Before its first scan, a JPEG may have this many bytes of tables, Exif and XMP, which Pillow reads in Python. Each
table comes once, in 3 KB all together; Exif and XMP have 64 KB each."""
MAX_RUNS_BYTES = 4 * 2**20
"""A BMP may have this many bytes of run lengths, which are decoded one by one."""

_SEGMENT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The beginning of a JPEG's segment: neither an escaped FF, nor a restart marker, nor fill bytes."""
_START_OF_SCAN, _START, _END = 0xDA, 0xD8, 0xD9
_TABLES = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD, 0xDE, 0xDF})
"""Segments without which a JPEG cannot be decoded: the frame, and tables."""
_APPLICATION = {0xE0: (b"JFIF\0",), 0xE1: (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"), 0xEE: (b"Adobe",)}
"""How the application segments begin that say how colours are coded, or which side is up."""
_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_UPRIGHT_TEXT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""The keywords of a PNG's texts that say which side is up."""


def pixels_only(body: bytes) -> bytes:
    """The parts of a file that its pixels depend on, in their order. A file that is no image comes back as it is.

    Raises InvalidError if there are more of them than any encoder writes.
    """
    if body.startswith(b"\xff\xd8\xff"):
        return _jpeg(body)
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(body)
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        _check_webp(body)
    elif body.startswith(b"BM"):
        _check_bmp(body)
    return body


def _check_parts(parts: int, what: str) -> None:
    if parts > MAX_PARTS:
        raise InvalidError(
            f"the image comes in over {MAX_PARTS:,} {what}, which is the limit: save it anew", "too_many_parts"
        )


def _jpeg(body: bytes) -> bytes:
    """The tables and the scans, up to the end of the image. A phone may append a clip, a camera a second image."""
    kept, at, parts, scans, first_scan, head_bytes = [body[:2]], 2, 0, 0, 0, 0
    while found := _SEGMENT.search(body, at):
        start, marker = found.start(), body[found.start() + 1]
        parts += 1
        _check_parts(parts, "segments")
        at = start + 2
        if marker == _END:
            break
        if marker == _START or marker < 0xC0:  # these have no length
            continue
        at += int.from_bytes(body[at : at + 2])
        if marker == _START_OF_SCAN:
            scans += 1
            first_scan = first_scan or start
        elif not first_scan and (marker in _TABLES or body.startswith(_APPLICATION.get(marker, ()), start + 4)):
            kept.append(body[start:at])
            head_bytes += at - start
    if head_bytes > MAX_HEAD_BYTES:
        raise InvalidError(
            f"the image has {head_bytes:,} bytes of tables, Exif and XMP; the limit is {MAX_HEAD_BYTES:,}: save it "
            "anew",
            "too_many_parts",
        )
    if scans > MAX_SCANS:
        raise InvalidError(
            f"the image comes in {scans:,} scans, each of which takes as long as the whole; the limit is {MAX_SCANS}: "
            "save it anew",
            "too_many_scans",
        )
    if not scans:
        raise InvalidError("the image is broken or cut off: it has no pixels; send the whole file", "broken_image")
    kept.append(body[first_scan : at if found else len(body)])
    return b"".join(kept)


def _png(body: bytes) -> bytes:
    """The chunks that hold the pixels, up to the end of the image."""
    kept, at, parts = [body[:8]], 8, 0
    while at + 8 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        parts += 1
        _check_parts(parts, "chunks")
        if (kind == b"IHDR") != (parts == 1):
            raise InvalidError("the image is broken: IHDR is not its first chunk alone; save it anew", "broken_image")
        if kind in _CHUNKS or (kind in (b"iTXt", b"zTXt", b"tEXt") and body.startswith(_UPRIGHT_TEXT, at + 8)):
            kept.append(body[at : at + 12 + length])
        if kind == b"IEND":
            break
        at += 12 + length
    return b"".join(kept)


def _check_webp(body: bytes) -> None:
    at, parts = 12, 0
    while at + 8 <= len(body):
        (length,) = struct.unpack_from("<I", body, at + 4)
        parts += 1
        _check_parts(parts, "chunks")
        at += 8 + length + length % 2


def _check_bmp(body: bytes) -> None:
    if len(body) < 34 or body[14:18] == b"\x0c\0\0\0":  # the older header has no compression
        return
    (compression,) = struct.unpack_from("<I", body, 30)
    if compression in (1, 2) and len(body) > MAX_RUNS_BYTES:
        raise InvalidError(
            f"the image has {len(body):,} bytes of run lengths; the limit is {MAX_RUNS_BYTES:,}: save it as PNG",
            "too_many_runs",
        )
