"""Draws masks and skeletons as pictures."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from adpc_client.labels import Labels

NO_CLASS = 255
"""The value of the pixels of a mask that the request left out."""
MIN_SCORE = 0.1
"""Joints with a lower score are guesses; they are not drawn."""


def mask_picture(mask: NDArray[np.uint8], labels: Labels) -> Image.Image:
    """The mask as an indexed picture: its pixels are the class numbers, its palette holds their colours. No class is
    black."""
    picture, colours = Image.fromarray(mask), labels.colours(256)
    colours[NO_CLASS] = 0
    picture.putpalette(colours.tobytes())
    return picture


def blend_mask(photo: Image.Image, mask: NDArray[np.uint8], labels: Labels, opacity: float) -> Image.Image:
    """Returns `photo` with the mask blended into it. `opacity` is the weight of the mask, and 0 shows only the photo.
    Pixels that have no class show the photo at every opacity."""
    fitted = fit_photo(photo, mask.shape)
    blended = Image.blend(fitted, mask_picture(mask, labels).convert("RGB"), opacity)
    return Image.composite(blended, fitted, Image.fromarray(mask != NO_CLASS))


def draw_skeleton(photo: Image.Image, keypoints: NDArray[np.float32], labels: Labels) -> Image.Image:
    """`photo` with limbs and joints drawn on it; `keypoints`, float32 (J, 3), are in its pixels."""
    picture = photo.copy()
    draw, width_px = ImageDraw.Draw(picture), max(2, round(max(photo.size) / 160))
    colours = [tuple(colour) for colour in labels.colours(len(keypoints)).tolist()]
    points: list[tuple[float, float]] = [(x, y) for x, y, _ in keypoints.tolist()]
    drawn = keypoints[:, 2] >= MIN_SCORE
    for a, b in labels.skeleton:
        if drawn[a] and drawn[b]:
            draw.line([points[a], points[b]], fill=colours[b], width=width_px)
    for joint in np.flatnonzero(drawn):
        draw.circle(points[joint], width_px, fill=colours[joint], outline="white")
    return picture


def fit_photo(photo: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """`photo` as RGB, upright and resized to `size` (height, width), which is how the server saw it."""
    upright = ImageOps.exif_transpose(photo).convert("RGB")
    return upright if upright.size == size[::-1] else upright.resize((size[1], size[0]))
