"""MPII Human Pose (Andriluka et al., CVPR 2014), in the files that HRNet's authors publish for it.

`DIR/images/*.jpg`; `DIR/annot/{train,valid,trainval}.json`: a list of people with `image`, `joints` (16, 2),
`joints_vis` (16,), `center` (x, y) and `scale` (the person's height / 200 pixels); `DIR/annot/gt_valid.mat`: the ground
truth of val, against which poses are scored. Coordinates in all of them begin at 1, as MATLAB counts.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.files import read_mat
from models.data.people import Person, Skeleton
from models.imaging.geometry import Box

SKELETON = Skeleton(joints=16, torsos=((13, 2), (12, 3)), head=(8, 9), unscored=(6, 7))
"""The torso is measured from left shoulder to right hip, or else from right shoulder to left hip, and the head from
upper neck to head top. MPII's own code leaves pelvis and thorax out of the scores."""
SPLITS = {"train": "train", "val": "valid", "trainval": "trainval"}
"""The file of each split."""
TRUTH = "gt_valid.mat"
HEAD_SHARE = 0.6
"""MPII's head size is this share of the head box's diagonal."""
_JOINTS = {
    "rank": 0, "rkne": 1, "rhip": 2, "lhip": 3, "lkne": 4, "lank": 5, "head": 9, "rwri": 10, "relb": 11, "rsho": 12,
    "lsho": 13, "lelb": 14, "lwri": 15,
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """MPII's ground truth. `joints`: float64 (N, 16, 3): x, y as the file counts them (from 1), and 1 where labelled.
    `head_px`: the size of each head in pixels, (N,)."""

    joints: NDArray[np.float64]
    head_px: NDArray[np.float64]


def read(directory: Path, split: str) -> list[Person]:
    """The people of `split` (train, val, trainval), in the file's order. People of val have `head_px`.

    Raises ValueError if the split is unknown or a file has another form, and FileNotFoundError if a file is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of MPII with labels; choose {', '.join(SPLITS)}")
    path = directory / "annot" / f"{SPLITS[split]}.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; put MPII's annotations as HRNet's authors publish them there")
    try:
        people = [_person(directory / "images", entry) for entry in json.loads(path.read_text())]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a list of people with image, joints (16, 2), joints_vis (16), center and scale: {error!r}"
        ) from error
    return _with_heads(people, directory / "annot" / TRUTH) if split == "val" else people


def read_truth(path: Path) -> Truth:
    """`gt_valid.mat`: `pos_gt_src` (16, 2, N), `jnt_missing` (16, N), `headboxes_src` (2, 2, N), `dataset_joints`.

    Raises FileNotFoundError if the file is missing, and ValueError if it has another form.
    """
    places, missing, boxes, names = read_mat(path, "pos_gt_src", "jnt_missing", "headboxes_src", "dataset_joints")
    people = places.shape[-1]
    shapes = (places.shape, missing.shape, boxes.shape)
    if shapes != ((16, 2, people), (16, people), (2, 2, people)):
        raise ValueError(
            f"{path} holds pos_gt_src, jnt_missing, headboxes_src of {shapes}; for N people they must be "
            "(16, 2, N), (16, N), (2, 2, N)"
        )
    order = [str(np.ravel(name)[0]).strip() for name in names.ravel()]
    if any(joint not in order or order.index(joint) != index for joint, index in _JOINTS.items()):
        raise ValueError(f"{path} names its joints {order}; MPII's order begins rank, rkne, rhip, lhip, lkne, lank")
    labelled = 1.0 - missing.astype(np.float64)
    joints = np.concatenate([places.astype(np.float64), labelled[:, None]], 1).transpose(2, 0, 1)
    diagonals = np.linalg.norm(boxes[1].astype(np.float64) - boxes[0], axis=0)
    return Truth(joints, HEAD_SHARE * diagonals)


def _person(images: Path, entry: dict[str, object]) -> Person:
    places, visible = np.asarray(entry["joints"], np.float32), np.asarray(entry["joints_vis"], np.float32)
    if places.shape != (16, 2) or visible.shape != (16,):
        raise ValueError(f"joints of {entry['image']} are {places.shape} and joints_vis {visible.shape}")
    joints = np.concatenate([places - 1, (visible > 0).astype(np.float32)[:, None]], 1)
    box = _box(np.asarray(entry["center"], float), float(str(entry["scale"])))
    return Person(images / str(entry["image"]), joints, box, SKELETON)


def _box(centre: NDArray[np.float64], scale: float) -> Box:
    """A square as high as the person. Its centre moves down by 15 pixels for a person of 200, as in HRNet's code.

    `geometry.person_square` widens it later, by HRNet's 1.25.
    """
    side = 200 * scale
    x, y = centre - 0.5 + (0, 15 * scale)  # counted from 1 at a pixel's centre -> from 0 at its corner
    return float(x - side / 2), float(y - side / 2), side, side


def _with_heads(people: list[Person], path: Path) -> list[Person]:
    """The people with the joints and head sizes of `gt_valid.mat`, against which poses are scored."""
    truth = read_truth(path)
    if len(truth.head_px) != len(people):
        raise ValueError(f"{path} is about {len(truth.head_px)} people, valid.json about {len(people)}")
    joints = (truth.joints - (1, 1, 0)).astype(np.float32)
    return [
        replace(person, joints=joints[index], head_px=float(truth.head_px[index]))
        for index, person in enumerate(people)
    ]
