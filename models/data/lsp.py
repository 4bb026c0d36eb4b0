"""Leeds Sports Pose, extended (Johnson and Everingham, CVPR 2011): one person in each image, with 14 joints, which are
read as MPII's 16.

The images are `DIR/images/im00001.*`. `DIR/joints.mat` holds the array `joints` (14, 3, N): x, y, and 1 if labelled.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data import mpii
from models.data.files import images_in, read_mat
from models.data.people import Person, joints_box

SPLITS = {"train": slice(0, 6000), "val": slice(6000, 7000), "all": slice(None)}
"""People by their index in joints.mat: the first 6,000 of lspet's 7,000 train the network, the last 1,000 score it."""
_TO_MPII = (0, 1, 2, 3, 4, 5, -1, -1, 12, 13, 6, 7, 8, 9, 10, 11)
_MIDPOINTS = {6: (2, 3), 7: (12, 13)}  # pelvis and thorax, between hips and shoulders


def read(directory: Path, split: str) -> list[Person]:
    """The people of `split`, one of `SPLITS`. A person's box is the smallest around the labelled joints.

    Raises ValueError if the split is unknown or empty, and if `joints.mat` has more or fewer people than there are
    images.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of LSP; choose {', '.join(SPLITS)}")
    paths = images_in(directory / "images")
    labels = read_mat(directory / "joints.mat", "joints")[0].astype(np.float32)
    if labels.shape != (14, 3, len(paths)):
        raise ValueError(
            f"joints in joints.mat are {labels.shape}; for the {len(paths)} images of {directory / 'images'} they must "
            f"be (14, 3, {len(paths)}); remove images without joints, and joints without an image"
        )
    chosen = range(len(paths))[SPLITS[split]]
    if not chosen:
        raise ValueError(
            f"{directory} has {len(paths)} people, and split {split} begins after {SPLITS[split].start}; use split all"
        )
    return [_person(paths[index], to_mpii(labels[:, :, index])) for index in chosen]


def _person(path: Path, joints: NDArray[np.float32]) -> Person:
    try:
        return Person(path, joints, joints_box(joints), mpii.SKELETON)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_mpii(joints: NDArray[np.float32]) -> NDArray[np.float32]:
    """LSP's 14 joints (14, 3) as MPII's 16 (16, 3); a midpoint is labelled if both its ends are."""
    converted = joints[list(_TO_MPII)].copy()
    for joint, (a, b) in _MIDPOINTS.items():
        converted[joint, :2] = (converted[a, :2] + converted[b, :2]) / 2
        converted[joint, 2] = converted[a, 2] * converted[b, 2]
    return converted
