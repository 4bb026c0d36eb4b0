"""Decoding: from the bytes of an image file to upright RGB pixels, or to a sentence about what is wrong with them."""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImagePalette, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from models.imaging.images import BROKEN_FILE_ERRORS, orientation, upright_rgb
from server.decoding.header import read_header
from server.decoding.size import check_size
from server.decoding.structure import pixels_only
from server.errors import InvalidError, NotAnImageError, TooLargeError

Image.preinit()
IMPORTED = (WebPImagePlugin, ImagePalette, TiffImagePlugin)
"""Pillow imports these, and what `preinit` does, when it first needs them; a decoding process can open no file then.
The one for TIFF reads Exif."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# Pillow's own limit only warns, and holds for the whole process; `decode` has a limit that refuses.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 16 * 2**20
"""The limit on a PNG's texts, in bytes. `pixels_only` leaves only the texts that may hold the orientation; some
programs store an image's editing history in them, too."""


def decode(body: bytes, max_pixels: int, memory: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Decode an image file: uint8 (H, W, 3) RGB, upright (see `upright_rgb`); the first frame of an animation.

    `memory`: uint8 (at least 3 * H * W,), where the pixels are put; None: new memory.

    Raises NotAnImageError on other formats, TooLargeError before an image of too many pixels is decoded, and
    InvalidError on a file that is broken or cut off, or that no encoder writes.
    """
    header = read_header(body)
    if header is not None:  # some decoders take memory for the whole image when they are opened
        check_size(header.width, header.height, max_pixels)
    try:
        data = pixels_only(body)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(*image.size, max_pixels)
            if (pixels := _upright_jpeg(data, image, memory)) is None:
                pixels = _put(upright_rgb(image), memory)
            return pixels
    except UnidentifiedImageError:
        raise NotAnImageError(
            f"the body's {len(body):,} bytes are not an image; send a JPEG, PNG, WebP or BMP file", "not_an_image"
        ) from None
    except MemoryError:
        raise TooLargeError(
            "the image takes more memory to decode than an image of its size should; save it anew", "image_too_costly"
        ) from None
    except BROKEN_FILE_ERRORS as error:
        raise InvalidError(f"the image is broken or cut off: {error}; send the whole file", "broken_image") from error


def _upright_jpeg(data: bytes, image: Image.Image, memory: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG whose orientation is 1, in 0.6 of the time that Pillow takes: the same library decodes them
    straight into `memory`. None for other images, for a JPEG in CMYK, and if the library finds fault with the file,
    which Pillow may overlook or has words for."""
    if image.format != "JPEG" or orientation(image) != 1:
        return None
    width, height = image.size
    pixels = np.empty(3 * height * width, np.uint8) if memory is None else memory[: 3 * height * width]
    try:
        found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    except ValueError:
        return None
    return found


def _put(pixels: NDArray[np.uint8], memory: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The pixels in `memory`, if there is one."""
    if memory is None:
        return pixels
    target = memory[: pixels.size].reshape(pixels.shape)
    np.copyto(target, pixels)
    return target
