"""CamVid: street scenes with 11 classes (Brostow et al., 2009). `DIR/{train,val,test}/{images,labels}`.

Label 11 is void. A file's name begins with the drive it was taken on, for example 0001TP.
"""

from pathlib import Path

from models.data.files import images_in
from models.data.scenes import Scene, class_table

CLASSES = class_table(range(11))


def read(directory: Path, split: str) -> list[Scene]:
    """The scenes of `directory/split`, by name. Raises FileNotFoundError on a folder or label map that is missing."""
    scenes = []
    for image_path in images_in(directory / split / "images"):
        label_path = directory / split / "labels" / f"{image_path.stem}.png"
        if not label_path.is_file():
            raise FileNotFoundError(f"{image_path} has no label map {label_path}")
        scenes.append(Scene(image_path, label_path, image_path.stem.partition("_")[0], CLASSES, all_classes=False))
    return scenes
