"""Draws answers as pictures."""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from adpc_client.results import Exit, Labels

MIN_SCORE = 0.1
"""Joints with a lower score are guesses; they are not drawn."""


def mask_picture(result: Exit) -> Image.Image:
    """The mask as an indexed picture: its pixels are the class numbers, its palette holds their colours.

    Raises ValueError for a pose, which has no mask.
    """
    if result.mask is None:
        raise ValueError("a pose has no mask; draw it over its photo with `overlay`")
    picture = Image.fromarray(result.mask)
    picture.putpalette(_colours(result.labels, 256).tobytes())
    return picture


def overlay(result: Exit, photo: Image.Image, opacity: float = 0.6) -> Image.Image:
    """`photo` as RGB with the mask blended into it, or with the skeleton drawn on it.

    `opacity` is the weight of the mask: 0 shows only the photo, 1 only the mask.
    """
    ground = _fitted(photo, result.size)
    if result.mask is not None:
        return Image.blend(ground, mask_picture(result).convert("RGB"), opacity)
    if result.keypoints is not None:
        _draw_skeleton(ImageDraw.Draw(ground), result.keypoints, result.labels, max(2, round(max(ground.size) / 160)))
    return ground


def _fitted(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`photo` as RGB, upright and resized to `size` (height, width), which is how the server saw it."""
    upright = ImageOps.exif_transpose(photo).convert("RGB")
    return upright if upright.size == size[::-1] else upright.resize(size[::-1])


def _draw_skeleton(draw: ImageDraw.ImageDraw, keypoints: NDArray[np.float32], labels: Labels, width_px: int) -> None:
    colours = [tuple(colour) for colour in _colours(labels, len(keypoints)).tolist()]
    points: list[tuple[float, float]] = [(x, y) for x, y, _ in keypoints.tolist()]
    drawn = keypoints[:, 2] >= MIN_SCORE
    for a, b in labels.skeleton:
        if drawn[a] and drawn[b]:
            draw.line([points[a], points[b]], fill=colours[b], width=width_px)
    for joint in np.flatnonzero(drawn):
        draw.circle(points[joint], width_px, fill=colours[joint], outline="white")


def _colours(labels: Labels, count: int) -> NDArray[np.uint8]:
    """`count` colours, uint8 (`count`, 3): the model's palette, then further hues that are easy to tell apart."""
    given: NDArray[Any] = labels.palette[:count]
    more = [colorsys.hsv_to_rgb(index * 0.618 % 1, 0.65, 0.9) for index in range(len(given), count)]
    return np.concatenate([given, (np.array(more).reshape(-1, 3) * 255).astype(np.uint8)])
