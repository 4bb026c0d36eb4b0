"""Pictures as files give them -> pictures as networks take them. Imports Pillow and numpy only."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB, turned upright by its EXIF orientation. 16-bit greys are scaled to 8; transparency is
    dropped, which leaves the colour that the file holds underneath.

    Raises OSError, SyntaxError or ValueError, by format, on a broken file.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would cut 16 bits off at 255
        scaled = np.asarray(image, np.float64) / 257
        image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    return np.asarray(image.convert("RGB"))
