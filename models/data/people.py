"""A person in an image, with joints in MPII's order: what readers of pose data sets return.

Imports no network.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.files import read_rgb
from models.imaging.geometry import Box, Frame, person_square
from models.imaging.preprocess import crop_square


@dataclass(frozen=True)
class Person:
    """`joints`: float32 (16, 3): x, y in pixels of the image and 1 where labelled, else 0 (x and y are then junk).

    `head_px`: MPII's head size (0.6 of the head box's diagonal), or None where the data set has none.
    """

    image_path: Path
    joints: NDArray[np.float32]
    box: Box
    head_px: float | None = None

    def image(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3)."""
        return read_rgb(self.image_path)


def joints_box(joints: NDArray[np.float32]) -> Box:
    """The smallest box around the labelled joints. Raises ValueError if fewer than two are labelled."""
    points = joints[joints[:, 2] > 0, :2]
    if len(points) < 2:
        raise ValueError(f"{len(points)} joints are labelled; a person's box needs at least 2")
    low, high = points.min(0), points.max(0)
    width, height = np.maximum(high - low, 1)
    return float(low[0]), float(low[1]), float(width), float(height)


def crop(person: Person, side: int, room: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The person's square as the network sees it, `room` times wider, and the joints in its pixels.

    Returns uint8 (side, side, 3), black outside of the image, and float32 (16, 3).
    """
    image = person.image()
    height, width = image.shape[:2]
    x, y, box_width, box_height = person.box
    grow = (room - 1) / 2 * max(box_width, box_height)
    left, top, length = person_square(height, width, (x - grow, y - grow, box_width + 2 * grow, box_height + 2 * grow))
    cut = crop_square(image, (left, top, length))
    frame = Frame(height, width, left, top, length / side)
    joints = np.concatenate([frame.to_input(person.joints[:, :2]), person.joints[:, 2:]], 1)
    return np.asarray(cut.resize((side, side), Image.Resampling.BILINEAR)), joints
