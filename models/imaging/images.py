"""Images: from what a file holds to upright RGB pixels. Needs no torch."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BROKEN_FILE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    zlib.error,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a broken file, which depends on the format, and for an image above its limit of pixels."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image upright, by its EXIF orientation."""
_EXIF_BYTES = 64 * 2**10
"""What is read of EXIF, in which the orientation comes first; JPEG has room for no more. Each of its entries may be as
long as all of it."""
_EXIF_TEXT = "Raw profile type exif"
"""Where a PNG may have EXIF as text, in hexadecimal digits."""


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB, turned upright by the image's EXIF orientation.

    Greys of 16 bits are scaled to 8 bits. Transparency is dropped, which leaves the colours underneath. Raises one of
    `BROKEN_FILE_ERRORS` on a broken file.
    """
    image.load()
    turn = _UPRIGHT.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would cut 16 bits off at 255
        scaled = np.array(image, np.float32)
        np.divide(scaled, 257, out=scaled)
        image = Image.fromarray(np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def orientation(image: Image.Image) -> Any:
    """The EXIF orientation of an image; 1, which is upright, if it cannot be read."""
    if len(image.info.get("exif", b"")) > _EXIF_BYTES:
        image.info["exif"] = image.info["exif"][:_EXIF_BYTES]
    if len(image.info.get(_EXIF_TEXT, "")) > 3 * _EXIF_BYTES:
        del image.info[_EXIF_TEXT]
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def read_image(path: Path) -> NDArray[np.uint8]:
    """The image in a file as uint8 (H, W, 3) RGB, upright, as the server reads it. Raises OSError if the file cannot be
    read, and ValueError that names a broken one or one above Pillow's limit of pixels."""
    with broken_named(path), Image.open(path) as image:
        return upright_rgb(image)


@contextmanager
def broken_named(path: Path) -> Iterator[None]:
    """Turns `BROKEN_FILE_ERRORS` into a ValueError that names the file."""
    try:
        yield
    except BROKEN_FILE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's own
            raise
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
