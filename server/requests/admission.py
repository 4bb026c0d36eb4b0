"""What must hold before a job is submitted: sizes, rates, and an image that can be decoded. Imports no torch."""

import io
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.imaging.geometry import MAX_SIDE, padded_px
from models.imaging.images import upright_rgb
from server.errors import InvalidError, NotAnImageError, TooLargeError, TooManyRequestsError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_SCANS = 64
"""Of a JPEG; encoders make about ten. Nothing else bounds the time that a small file can take."""

# Pillow's own limit only warns, and is for all of a process; `decode` has one that refuses.
Image.MAX_IMAGE_PIXELS = None


class ClientLimit:
    """A bucket of tokens for each client address: `rate` requests a second, `burst` at once. Rate 0: no limit."""

    CLIENTS = 10_000

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def check(self, client: str, now_s: float | None = None) -> None:
        """Take a token. Raises TooManyRequestsError when there is none."""
        if not self._rate:
            return
        now_s = time.monotonic() if now_s is None else now_s
        tokens = self._tokens(client, now_s)
        self._buckets.pop(client, None)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now_s)
        while len(self._buckets) > self.CLIENTS:
            self._buckets.popitem(last=False)
        self._refuse_without(tokens, client)

    def check_token(self, client: str, now_s: float | None = None) -> None:
        """Raises TooManyRequestsError if `check` would now."""
        if self._rate:
            self._refuse_without(self._tokens(client, time.monotonic() if now_s is None else now_s), client)

    def _refuse_without(self, tokens: float, client: str) -> None:
        if tokens < 1:
            raise TooManyRequestsError(
                f"{client} may send {self._rate:g} requests a second and {self._burst} at once; wait before the next",
                "client_limit",
                (1 - tokens) / self._rate,
            )

    def _tokens(self, client: str, now_s: float) -> float:
        tokens, then_s = self._buckets.get(client, (float(self._burst), now_s))
        return min(self._burst, tokens + (now_s - then_s) * self._rate)


async def read_body(chunks: AsyncIterable[bytes], announced_bytes: int | None, limit_bytes: int) -> bytes:
    """The whole body. Raises TooLargeError as soon as it is, or says that it will be, too large."""
    if announced_bytes is not None and announced_bytes > limit_bytes:
        raise _too_large(announced_bytes, limit_bytes)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit_bytes:
            raise _too_large(len(body), limit_bytes)
    return bytes(body)


def check_body(body: bytes, limit_bytes: int) -> None:
    """Raises InvalidError on an empty one, TooLargeError on one above the limit."""
    if not body:
        raise InvalidError("the body is empty; send the bytes of a JPEG, PNG, WebP or BMP image", "empty_body")
    if len(body) > limit_bytes:
        raise _too_large(len(body), limit_bytes)


def _too_large(size_bytes: int, limit_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the body has {size_bytes:,} bytes or more; the limit is {limit_bytes:,} (--max-body-bytes): send fewer",
        "body_too_large",
    )


def decode(body: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """An image file -> uint8 (H, W, 3) RGB, upright; see `upright_rgb`. Of an animation, the first frame.

    Raises NotAnImageError on other formats,
    TooLargeError before decoding what has too many pixels, InvalidError on a file that is broken or cut off.
    """
    scans = body.count(b"\xff\xda") if body.startswith(b"\xff\xd8") else 0  # within one, a JPEG has no such bytes
    if scans > MAX_SCANS:
        raise InvalidError(
            f"the image comes in {scans:,} scans, each of which takes as long as the whole; the limit is {MAX_SCANS}: "
            "save it anew",
            "too_many_scans",
        )
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            return upright_rgb(image)
    except UnidentifiedImageError:
        raise NotAnImageError(
            f"the body's {len(body):,} bytes are not an image; send a JPEG, PNG, WebP or BMP file", "not_an_image"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error) as error:
        # What Pillow raises on broken files differs by format.
        raise InvalidError(f"the image is broken or cut off: {error}; send the whole file", "broken_image") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise TooLargeError(
            f"the image is {width}x{height}; the limit is {MAX_SIDE:,} pixels a side: send a smaller one",
            "image_too_large",
        )
    pixels = padded_px(height, width)
    if pixels > max_pixels:
        raise TooLargeError(
            f"the image is {width}x{height}, which is {pixels:,} pixels after padding to multiples of 32; the limit is "
            f"{max_pixels:,} (--max-pixels): send a smaller one",
            "image_too_large",
        )
