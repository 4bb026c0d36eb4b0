"""Leeds Sports Pose, extended (Johnson and Everingham, CVPR 2011): one person in each image, with 14 joints, which are
read as MPII's 16.

`DIR/images/im00001.*` and `DIR/joints.mat`, joints (14, 3, N): x, y, and 1 where labelled.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data import mpii
from models.data.files import images_in, read_mat
from models.data.people import Person, joints_box

SPLITS = {"train": slice(0, 6000), "val": slice(6000, 7000), "all": slice(None)}
"""Places in joints.mat: the first 6,000 of lspet's 7,000 people are for training, the last 1,000 for scoring."""
_TO_MPII = (0, 1, 2, 3, 4, 5, -1, -1, 12, 13, 6, 7, 8, 9, 10, 11)
_MIDPOINTS = {6: (2, 3), 7: (12, 13)}  # pelvis and thorax, between hips and shoulders


def read(directory: Path, split: str) -> list[Person]:
    """The people of `split`, one of `SPLITS`. A person's box is the smallest around the labelled joints.

    Raises ValueError on another split or an empty one, and where `joints.mat` has more or fewer people than there are
    images.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of LSP; choose {', '.join(SPLITS)}")
    paths = images_in(directory / "images")
    labels = read_mat(directory / "joints.mat", "joints")[0].astype(np.float32)
    if labels.shape != (14, 3, len(paths)):
        raise ValueError(
            f"joints.mat holds {labels.shape}; for the {len(paths)} images of {directory / 'images'} it must be "
            f"(14, 3, {len(paths)}): add or remove those that only one of them has"
        )
    chosen = range(len(paths))[SPLITS[split]]
    if not chosen:
        raise ValueError(
            f"{directory} has {len(paths)} people, none of {split}, which begins at {SPLITS[split].start}; use all"
        )
    return [_person(paths[index], to_mpii(labels[:, :, index])) for index in chosen]


def _person(path: Path, joints: NDArray[np.float32]) -> Person:
    try:
        return Person(path, joints, joints_box(joints), mpii.SKELETON)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_mpii(joints: NDArray[np.float32]) -> NDArray[np.float32]:
    """LSP's 14 joints (14, 3) as MPII's 16 (16, 3); a midpoint is labelled where both its ends are."""
    converted = joints[list(_TO_MPII)].copy()
    for joint, (a, b) in _MIDPOINTS.items():
        converted[joint, :2] = (converted[a, :2] + converted[b, :2]) / 2
        converted[joint, 2] = converted[a, 2] * converted[b, 2]
    return converted
