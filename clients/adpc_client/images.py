"""Encodes a caller's image into bytes that the server reads."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from adpc_client.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
"""A path, the bytes of an image file, a Pillow image, or an array, uint8 (H, W, 3) RGB or (H, W) grey."""


def encode_image(image: ImageSource) -> tuple[bytes, str]:
    """The bytes to send and their content type.

    JPEG, PNG, WebP and BMP files are sent unchanged. Other formats, Pillow images and arrays are sent as PNG, which
    keeps every pixel. Raises ImageError if this is no image, and OSError if its file cannot be read.
    """
    if isinstance(image, np.ndarray):
        return _as_png(Image.fromarray(_checked(image)))
    if isinstance(image, Image.Image):
        return _as_png(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _encode_file(bytes(image), "the bytes")
    if isinstance(image, str | os.PathLike):
        return _encode_file(Path(image).read_bytes(), str(image))
    raise ImageError(f"an image is a path, bytes, a Pillow image or a numpy array, not {type(image).__name__}")


def content_type(data: bytes) -> str | None:
    """The content type of an image file, found by its first bytes; None for formats that the server does not read."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/bmp" if data.startswith(b"BM") else None


def _encode_file(data: bytes, name: str) -> tuple[bytes, str]:
    known = content_type(data)
    if known:
        return data, known
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return _as_png(opened)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ImageError(
            f"{name} ({len(data)} bytes) cannot be read as an image; send JPEG, PNG, WebP or BMP"
        ) from error


def _as_png(image: Image.Image) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    # Compression takes time from the deadline. Level 1 is fast, and a larger file costs little to a near server.
    _eight_bits(ImageOps.exif_transpose(image)).convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), "image/png"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, as the server does for files; Pillow would clip it at 255."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    scaled = np.asarray(image, np.float64) / 257
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _checked(array: NDArray[Any]) -> NDArray[np.uint8]:
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not grey_or_rgb or array.size == 0:
        raise ImageError(f"the array has shape {array.shape}; an image is (H, W, 3) RGB or (H, W) grey, and not empty")
    if array.dtype != np.uint8:
        raise ImageError(f"the array has dtype {array.dtype}; an image is uint8, 0..255")
    return np.ascontiguousarray(array)
