"""Cityscapes: street scenes of 1024x2048 with 19 evaluated classes (Cordts et al., CVPR 2016).

The reader takes the data set as it is published: `DIR/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and
`DIR/gtFine/SPLIT/CITY/*_gtFine_labelIds.png`.
"""

from pathlib import Path

from models.data.scenes import Scene, class_table

CLASSES = class_table((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33))
"""The ids in label files that are evaluated, in the order of the classes: road, sidewalk, ... bicycle."""
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def read(directory: Path, split: str) -> list[Scene]:
    """The scenes of `split` (train or val), sorted by city and file name. The `drive` of a scene is its city.

    Raises FileNotFoundError if the split has no images, or if an image has no label map.
    """
    folder = directory / "leftImg8bit" / split
    scenes = []
    for image_path in sorted(folder.glob(f"*/*{_IMAGE}")):
        city = image_path.parent.name
        label_path = directory / "gtFine" / split / city / image_path.name.replace(_IMAGE, _LABELS)
        if not label_path.is_file():
            raise FileNotFoundError(f"{image_path} has no label map {label_path}")
        scenes.append(Scene(image_path, label_path, city, CLASSES))
    if not scenes:
        raise FileNotFoundError(f"there is no CITY/*{_IMAGE} in {folder}; unpack leftImg8bit_trainvaltest.zip there")
    return scenes
