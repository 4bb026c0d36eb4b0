"""CamVid: street scenes with 11 classes (Brostow et al., 2009). `DIR/{train,val,test}/{images,labels}`.

Label 11 is void. A file's name begins with the drive it was taken on, for example 0001TP.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.training.data.files import images_in, read_labels, read_rgb

CLASSES = 11
VOID = 255
"""The label of pixels that are not scored."""


@dataclass(frozen=True)
class Scene:
    """One image and its label map, on disk."""

    image_path: Path
    label_path: Path

    @property
    def drive(self) -> str:
        return self.image_path.stem.partition("_")[0]

    def image(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3)."""
        return read_rgb(self.image_path)

    def labels(self) -> NDArray[np.uint8]:
        """uint8 (H, W): 0..10, or VOID."""
        labels = read_labels(self.label_path)
        return np.where(labels < CLASSES, labels, VOID).astype(np.uint8)


def read(directory: Path, split: str) -> list[Scene]:
    """The scenes of `directory/split`, by name. Raises FileNotFoundError on a folder or label map that is missing."""
    scenes = []
    for image_path in images_in(directory / split / "images"):
        label_path = directory / split / "labels" / f"{image_path.stem}.png"
        if not label_path.is_file():
            raise FileNotFoundError(f"{image_path} has no label map {label_path}")
        scenes.append(Scene(image_path, label_path))
    return scenes
