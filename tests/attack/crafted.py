"""Image files that no encoder writes: each asks a decoder for as much work as its size allows."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from acceptance import photo
from PIL import Image

SIZE_BYTES = 16 * 2**20 - 4096
"""Just below the server's limit."""
SIDE = 4000
"""Of large images: 4000 x 4000 pixels are within the server's limit."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def filled(part: bytes, taken_bytes: int = 0) -> bytes:
    """As many copies of a part as fit into the largest file."""
    return part * ((SIZE_BYTES - taken_bytes) // len(part))


def within_jpeg(part: bytes) -> bytes:
    """A photo with copies of `part` before its first segment."""
    whole = photo(480, 360)
    return whole[:2] + filled(part, len(whole)) + whole[2:]


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def within_png(part: bytes, *, repeats: int | None = None) -> bytes:
    """A picture with copies of the chunk `part` behind its header."""
    whole = encoded(Image.open(io.BytesIO(photo(480, 360))), "PNG")
    return whole[:33] + (filled(part, len(whole)) if repeats is None else part * repeats) + whole[33:]


def declared_png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IEND")


def bomb(keyword: bytes, unpacked_bytes: int) -> bytes:
    return keyword + b"\0\0" + zlib.compress(bytes(unpacked_bytes), 9)


def scans(times: int, side: int) -> bytes:
    """A progressive JPEG of one colour whose last scan comes `times` times."""
    whole = encoded(Image.new("RGB", (side, side), (90, 120, 60)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * times + whole[-2:]


def between_scans(part: bytes) -> bytes:
    whole = encoded(Image.open(io.BytesIO(photo(480, 360))), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + filled(part, len(whole)) + whole[last:]


def scan_data(data: bytes) -> bytes:
    """A photo whose compressed data are copies of `data`."""
    whole = photo(480, 360)
    start = whole.rindex(b"\xff\xda")
    return whole[: start + 14] + filled(data, len(whole)) + b"\xff\xd9"


def bmp(runs: bytes, compression: int, side: int = SIDE) -> bytes:
    """A BMP of run lengths with a palette of 256 colours."""
    palette = bytes(np.random.default_rng(0).integers(0, 256, 1024, dtype=np.uint8))
    bits = 8 if compression == 1 else 4
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, compression, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(runs), 0, 0, 54 + 1024) + head + palette + runs


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(data)) + data


def canvas(width: int, height: int) -> bytes:
    return webp_chunk(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


def exif(entries: int) -> bytes:
    """A directory of tags that each point at the directory itself."""
    tags = b"".join(struct.pack("<HHII", 0x8769, 13, 1, 8) for _ in range(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, entries) + tags + struct.pack("<I", 8)


def animation() -> bytes:
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in range(200)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


def large(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """A noisy picture, as large as the server takes files of."""
    rng = np.random.default_rng(0)
    shape = (SIDE // 40, SIDE // 40, 3) if kind != "JPEG" else (SIDE // 4, SIDE // 4, 3)
    coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return encoded(coarse.resize((SIDE, SIDE), Image.Resampling.NEAREST).convert(mode), kind, **options)


def deep() -> bytes:
    ramp = np.linspace(0, 65535, SIDE, dtype=np.uint16)
    return encoded(Image.fromarray(np.repeat(ramp[None], SIDE, 0)), "PNG")


def twelve_bits() -> bytes:
    whole = bytearray(photo(480, 360))
    whole[whole.index(b"\xff\xc0") + 4] = 12
    return bytes(whole)


def declared_jpeg() -> bytes:
    whole = bytearray(photo(480, 360))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(whole)


def large_exif(entries: int = 65_000, size_bytes: int = 700_000) -> bytes:
    """Exif whose entries each have most of it as their value."""
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    tags = (struct.pack("<HHII", 0x9000 + number % 0x5000, 7, size_bytes, 8) for number in range(entries))
    return head + b"".join(tags) + bytes(4)


def hidden_size() -> bytes:
    """A JPEG of 60 scans whose size hides behind two bytes that a careless reader takes for a segment."""
    whole = scans(48, 3900)
    small = segment(0xC0, struct.pack(">BHHBBBB", 8, 8, 8, 1, 1, 17, 0)) + segment(0xDA, b"\1\1\0\0\0\0")
    return whole[:2] + b"\xff\x01\0\6" + segment(0xFE, small) + whole[2:]


def many_tables() -> bytes:
    whole = photo(480, 360)
    return whole[:2] + segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 60 + whole[2:]


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG of fill bytes": lambda: within_jpeg(b"\xff"),
    "JPEG of escaped fill bytes": lambda: within_jpeg(b"\xff\x00"),
    "JPEG of junk": lambda: within_jpeg(b"j"),
    "JPEG of empty APP9": lambda: within_jpeg(segment(0xE9)),
    "JPEG of empty comments": lambda: within_jpeg(segment(0xFE)),
    "JPEG of empty DQT": lambda: within_jpeg(segment(0xDB)),
    "JPEG of DHT": lambda: within_jpeg(segment(0xC4, bytes(17))),
    "JPEG of frames": lambda: within_jpeg(segment(0xC0, struct.pack(">BHHBBBB", 8, 360, 480, 1, 1, 17, 0))),
    "JPEG of Exif segments": lambda: within_jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000))),
    "JPEG of small Exif segments": lambda: within_jpeg(segment(0xE1, b"Exif\0\0")),
    "JPEG with an Exif loop": lambda: within_jpeg(segment(0xE1, exif(5000))),
    "JPEG of starts": lambda: within_jpeg(b"\xff\xd8"),
    "JPEG of comments between scans": lambda: between_scans(segment(0xFE)),
    "JPEG of restart markers": lambda: scan_data(b"\xff\xd0"),
    "JPEG of escaped data": lambda: scan_data(b"\xff\x00"),
    "JPEG of 60 scans": lambda: scans(50, SIDE),
    "JPEG of 60 small scans": lambda: scans(50, 1000),
    "JPEG of 200 scans": lambda: scans(190, 500),
    "JPEG, CMYK": lambda: large("JPEG", "CMYK", quality=60),
    "JPEG, progressive": lambda: large("JPEG", progressive=True, quality=80),
    "JPEG of 12 bits": twelve_bits,
    "JPEG that declares 65500x65500": declared_jpeg,
    "PNG of private chunks": lambda: within_png(chunk(b"prVt")),
    "PNG of empty IDAT": lambda: within_png(chunk(b"IDAT")),
    "PNG of palettes": lambda: within_png(chunk(b"PLTE", bytes(3))),
    "PNG of zTXt bombs": lambda: within_png(chunk(b"zTXt", bomb(b"a", 2**20))),
    "PNG of iCCP bombs": lambda: within_png(chunk(b"iCCP", bomb(b"a", 2**24))),
    "PNG of XMP bombs": lambda: within_png(chunk(b"zTXt", bomb(b"XML:com.adobe.xmp", 15 * 2**20))),
    "PNG, interlaced": lambda: large("PNG", interlace=1),
    "PNG of 16 bits": deep,
    "PNG that declares 100000x100000": lambda: declared_png(100_000, 100_000),
    "BMP of single pixels": lambda: bmp(filled(b"\x01\x07", 2000), 1),
    "BMP of single pixels, 4 MiB": lambda: bmp(b"\x01\x07" * (2**21 - 2000), 1),
    "BMP of line ends": lambda: bmp(b"\x01\x07\x00\x00" * SIDE, 1),
    "BMP of four bits": lambda: bmp(b"\xff\x12" * (SIDE * SIDE // 255 + SIDE), 2),
    "WebP of chunks": lambda: webp(canvas(16, 16), filled(webp_chunk(b"JUNK"), 100)),
    "WebP that declares 16383x16383": lambda: webp(canvas(16_383, 16_383), webp_chunk(b"VP8 ", bytes(10))),
    "WebP, lossless": lambda: large("WEBP", lossless=True, method=0),
    "WebP of frames": animation,
    "JPEG of full DQT, 4 MiB": many_tables,
    "JPEG with a hidden size": hidden_size,
    "PNG with large Exif": lambda: within_png(chunk(b"eXIf", large_exif()), repeats=1),
    "BMP of nothing but line ends": lambda: bmp(bytes(2) * (2**21 - 2000), 1, 8),
    "GIF": lambda: encoded(Image.new("L", (480, 360)), "GIF") + bytes(2**20),
    "TIFF": lambda: encoded(Image.new("L", (480, 360)), "TIFF") + bytes(2**20),
}
