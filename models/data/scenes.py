"""A street scene, an image and its label map on disk: what readers of segmentation data sets return."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.files import read_labels
from models.imaging.images import read_image

VOID = 255
"""The label of pixels that are not scored."""


@dataclass(frozen=True)
class Scene:
    """An image and its label map. `drive`: scenes of one drive resemble each other, so they are held out together.

    `classes`: uint8 (256,), the class or VOID of each value in the label file; see `class_table`. `all_classes`:
    whether a model must have all of them; data of fewer classes may come in the layout of another data set.
    """

    image_path: Path
    label_path: Path
    drive: str
    classes: NDArray[np.uint8] = field(repr=False, compare=False)
    all_classes: bool = True

    def image(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3), as the server reads it."""
        return read_image(self.image_path)

    def labels(self) -> NDArray[np.uint8]:
        """uint8 (H, W): the class, or VOID."""
        return self.classes[read_labels(self.label_path)]

    def labels_for(self, outputs: int) -> NDArray[np.uint8]:
        """`labels`, for a model of so many classes. Raises ValueError if the data set has more or fewer."""
        labels = self.labels()
        highest, last = (int(values[values != VOID].max(initial=0)) for values in (labels, self.classes))
        if highest >= outputs or last < outputs - 1 or (self.all_classes and last >= outputs):
            raise ValueError(
                f"{self.label_path} has class {highest} of the data set's 0 to {last}, but the model has 0 to "
                f"{outputs - 1}; choose a model of these classes"
            )
        return labels

    def example(self, outputs: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image, and its labels for a model of so many classes. Raises ValueError if one is of another size, and as
        `labels_for` does."""
        image, labels = self.image(), self.labels_for(outputs)
        if image.shape[:2] != labels.shape:
            (height, width), (rows, columns) = image.shape[:2], labels.shape
            raise ValueError(
                f"{self.label_path} has {rows}x{columns} pixels, but its image has {height}x{width}; make it anew at "
                "the size of the image"
            )
        return image, labels


def class_table(values: Sequence[int]) -> NDArray[np.uint8]:
    """uint8 (256,) that makes the k-th of `values` class k, and every other value VOID."""
    table = np.full(256, VOID, np.uint8)
    table[list(values)] = np.arange(len(values))
    return table
