"""Encodings of a map, from array to bytes. They may run on any thread.

- `png`: an indexed PNG with the model's palette, or a grey one for further maps.
- `raw`: H * W bytes, uint8, row-major.
- `delta`: the difference to the map of the exit that was *sent* last, which the client holds; zeros before the first
  exit. It is a zlib stream (RFC 1950) of H * W bytes, row-major, each the new value XOR the value held. In Python:
  `held ^= np.frombuffer(zlib.decompress(data), np.uint8).reshape(held.shape)`; in a browser:
  `DecompressionStream("deflate")`. The outcome is the `raw` map bit for bit.
- `json`: the PNG in base64, inside the JSON message: see `replies.py`.
- `rle`: run lengths of every class, inside the JSON message: see `rle.py`.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

Map = NDArray[np.uint8]
"""uint8 (H, W): labels, or a further map."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, INDEXED = 0, 3
UP = 2
"""Numbers of the PNG specification: types of colour, and the filter that subtracts the row above."""


def png(values: Map, palette: bytes | None = None, *, holes: bool = False) -> bytes:
    """An indexed PNG with `palette` (3 bytes a class), or a grey one without. `holes`: value 255 is transparent.

    Every row is stored as its difference to the row above (filter 2 of the PNG specification): zeros but for borders. A
    label map takes a quarter of the time and half of the bytes of Pillow's compression level 1.
    """
    height, width = values.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = UP
    rows[0, 1:] = values[0]
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, GREY if palette is None else INDEXED, 0, 0, 0)
    colours = b"" if palette is None else _chunk(b"PLTE", palette.ljust(768, b"\0") if holes else palette)
    if holes:
        colours += _chunk(b"tRNS", b"\xff" * 255 + b"\0")
    return b"".join(
        (SIGNATURE, _chunk(b"IHDR", header), colours, _chunk(b"IDAT", _deflate(rows)), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG: length, kind, data and checksum."""
    return b"%b%b%b%b" % (
        struct.pack(">I", len(data)),
        kind,
        data,
        struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))),
    )


def delta(values: Map, held: Map | None) -> bytes:
    """The difference from `held`, of the same shape, to `values`; None: the client holds nothing yet."""
    return _deflate(values if held is None else np.bitwise_xor(values, held))


def _deflate(values: Map) -> bytes:
    """A zlib stream. For maps run lengths are enough: without them it is larger and takes longer. zlib-ng takes a
    quarter of zlib's time."""
    compress = zlib_ng.compressobj(1, strategy=zlib_ng.Z_RLE)
    return compress.compress(np.ascontiguousarray(values).data) + compress.flush()


def keypoints(array: NDArray[np.float32]) -> list[list[float]]:
    """float32 (J, 3) -> [[x, y, score], ..]. The numbers are exact: each reads back as the same float32."""
    rows: list[list[float]] = array.astype(float).tolist()
    return rows


def frame(
    encoding: str, values: Map, held: Map | None = None, palette: bytes | None = None, *, holes: bool = False
) -> bytes:
    """A map in one of the encodings that are binary frames. `held`, `palette` and `holes` as for `delta` and `png`."""
    if encoding == "raw":
        return values.tobytes()
    if encoding == "delta":
        return delta(values, held)
    return png(values, palette, holes=holes)
