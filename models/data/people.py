"""A person in an image: what readers of pose data sets return."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.imaging.geometry import Box, Frame, person_square
from models.imaging.images import read_image
from models.imaging.preprocess import crop_square

JointPair = tuple[int, int]


@dataclass(frozen=True)
class Skeleton:
    """What the scores need to know of a pose data set's joints; all numbers below count them from 0.

    `joints`: how many there are. `torsos`: pairs of joints at both ends of the torso, a shoulder and the opposite hip;
    the first pair that is labelled gives the torso's length. `head`: the joints at both ends of the head. `unscored`:
    joints that are learned and not scored.
    """

    joints: int
    torsos: tuple[JointPair, ...]
    head: JointPair
    unscored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Person:
    """A person in an image. `joints`: float32 (J, 3): x, y in pixels of the image, and 1 if the joint is labelled; else
    0, and x and y mean nothing.

    `head_px`: the head's size that the data set states, or None where it states none.
    """

    image_path: Path
    joints: NDArray[np.float32]
    box: Box
    skeleton: Skeleton
    head_px: float | None = None

    def image(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3)."""
        return read_image(self.image_path)

    def joints_for(self, outputs: int) -> NDArray[np.float32]:
        """`joints`, for a model of so many heatmaps. Raises ValueError if the data set has more or fewer joints."""
        if self.skeleton.joints != outputs:
            raise ValueError(
                f"{self.image_path} has {self.skeleton.joints} joints, but the model has {outputs}; choose "
                "a model of these joints"
            )
        return self.joints


def joints_box(joints: NDArray[np.float32]) -> Box:
    """The smallest box around the labelled joints (J, 3). Raises ValueError if fewer than two are labelled."""
    points = joints[joints[:, 2] > 0, :2]
    if len(points) < 2:
        raise ValueError(f"{len(points)} joints are labelled; a person's box needs at least 2")
    low, high = points.min(0), points.max(0)
    width, height = np.maximum(high - low, 1)
    return float(low[0]), float(low[1]), float(width), float(height)


def crop(person: Person, side: int, room: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cuts out the person's square as the network sees it, `room` times wider, and moves the joints into its pixels.

    Returns uint8 (side, side, 3), black outside of the image, and float32 (J, 3).
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
