"""Encodes a caller's image into bytes that the server reads."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from adpc_client.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
"""A path, the bytes of an image file, a Pillow image, or an array, uint8 (H, W, 3) RGB or (H, W) grey."""

BROKEN_IMAGE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a file that is damaged, cut off, or no image."""

CAMERA_JPEG_QUALITY = 90
"""How frames of cameras and videos are sent. A PNG would take most of the time until the next frame."""


def encode_image(image: ImageSource, *, bgr: bool = False, jpeg_quality: int | None = None) -> tuple[bytes, str]:
    """The bytes to send and their content type.

    JPEG, PNG, WebP and BMP files are sent unchanged. Other formats, Pillow images and arrays are sent as PNG, which
    keeps every pixel, or as JPEG of `jpeg_quality`, 1..100, which is faster. An array is BGR if `bgr` is set. Raises
    ImageError if this is no image, ValueError for another quality, and OSError if its file cannot be read.
    """
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise ValueError(f"jpeg_quality is {jpeg_quality}; it must be 1..100, or None for PNG")
    if isinstance(image, np.ndarray | Image.Image):
        return _encode(_as_pillow(image, bgr), jpeg_quality)
    data, name = _file_bytes(image)
    known = content_type(data)
    return (data, known) if known else _encode(_decode(data, name), jpeg_quality)


def open_image(image: ImageSource, *, bgr: bool = False) -> Image.Image:
    """The image as Pillow's. Raises ImageError if this is no image, and OSError if its file cannot be read."""
    return _as_pillow(image, bgr) if isinstance(image, np.ndarray | Image.Image) else _decode(*_file_bytes(image))


def content_type(data: bytes) -> str | None:
    """The content type of an image file, found by its first bytes; None for formats that the server does not read."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/bmp" if data.startswith(b"BM") else None


def _file_bytes(image: Any) -> tuple[bytes, str]:
    """The bytes of an image file, and what to call it in an error."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), "the bytes"
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes(), str(image)
    raise ImageError(f"an image is a path, bytes, a Pillow image or a numpy array, not {type(image).__name__}")


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
    except BROKEN_IMAGE as error:
        remedy = "; send JPEG, PNG, WebP or BMP" if data else ", because the file is empty"
        sentence = f"{name} ({len(data)} bytes) cannot be read as an image{remedy}"
        raise ImageError(sentence) from error
    return opened


def _as_pillow(image: NDArray[Any] | Image.Image, bgr: bool) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    array = _checked(image)
    return Image.fromarray(np.ascontiguousarray(array[..., ::-1] if bgr and array.ndim == 3 else array))


def _encode(image: Image.Image, jpeg_quality: int | None) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    if jpeg_quality is not None:
        upright.save(buffer, "JPEG", quality=jpeg_quality)
        return buffer.getvalue(), "image/jpeg"
    # Compression takes time from the deadline. Level 1 is fast, and a larger file costs little to a near server.
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), "image/png"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, as the server does for files; Pillow would clip it at 255.

    Raises ImageError for floats and 32-bit integers: nothing says which of their values is white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        scaled = np.asarray(image, np.float64) / 257
        return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        low, high = image.getextrema()
        raise ImageError(
            f"the image consists of {kind} from {low:g} to {high:g}, and does not say which is white; scale them to "
            "0..255 and send them as uint8"
        )
    return image


def _shape_remedy(array: NDArray[Any]) -> str:
    if array.size == 0 or array.ndim != 3:
        return ""
    if array.shape[2] in (1, 4):
        return f": send array[..., {'0' if array.shape[2] == 1 else ':3'}]"
    return ": send array.transpose(1, 2, 0)" if array.shape[0] == 3 else ""


def _checked(array: NDArray[Any]) -> NDArray[np.uint8]:
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not grey_or_rgb or array.size == 0:
        sentence = f"the array has shape {array.shape}; an image is (H, W, 3) RGB or (H, W) grey, and not empty"
        raise ImageError(sentence + _shape_remedy(array))
    if array.dtype != np.uint8:
        floats = np.issubdtype(array.dtype, np.floating)
        remedy = "if it holds 0..1, send (255 * array).astype('uint8')" if floats else "scale it to 0..255"
        raise ImageError(f"the array has dtype {array.dtype}; an image is uint8, 0..255: {remedy}")
    return array
