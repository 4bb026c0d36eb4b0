"""The limit on the size of an image."""

from models.imaging.geometry import MAX_SIDE, padded_px
from server.errors import TooLargeError


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Check the size of an image: `width` and `height` in pixels.

    Raises TooLargeError if a side is longer than `MAX_SIDE`, or if the padded image has more than `max_pixels`.
    """
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
