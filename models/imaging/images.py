"""Pictures as files give them -> pictures as networks take them. Imports Pillow and numpy only."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
"""By EXIF orientation: what turns an image upright."""


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB, turned upright by its EXIF orientation. 16-bit greys are scaled to 8; transparency is
    dropped, which leaves the colour that the file holds underneath.

    Raises OSError, SyntaxError or ValueError, by format, on a broken file.
    """
    image.load()
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would cut 16 bits off at 255
        scaled = np.asarray(image, np.float64) / 257
        image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def read_image(path: Path) -> NDArray[np.uint8]:
    """The image in a file, as `upright_rgb` has it. Raises OSError, and ValueError that names a broken file."""
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
