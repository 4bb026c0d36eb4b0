"""The limit on the size of an image."""

from models.imaging.geometry import MAX_SIDE, padded_px
from server.errors import TooLargeError


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises TooLargeError if an image of this size, in pixels, has a side that is too long, or more than `max_pixels`
    after padding."""
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
