"""PCKh of a file of predictions against MPII's ground truth, as MPII's own code computes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.data import mpii
from models.data.files import read_mat
from models.evaluation import scores

COLUMNS = {
    "head": (9,), "shoulder": (12, 13), "elbow": (11, 14), "wrist": (10, 15), "hip": (2, 3), "knee": (1, 4),
    "ankle": (0, 5),
}  # fmt: skip
"""The columns of MPII's tables, each the mean rate of its joints. The upper neck counts in the overall means only."""


def _array(path: Path) -> NDArray[Any]:
    """A `.npy` and nothing else; `np.load` also opens archives by that name."""
    with path.open("rb") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


READERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    ".mat": lambda path: read_mat(path, "preds")[0],
    ".npy": _array,
    ".json": lambda path: np.asarray(json.loads(path.read_text())),
}
"""How predictions are read, by the file's ending."""


def read_predictions(path: Path) -> NDArray[np.float64]:
    """float64 (N, 16, 2): x, y counted from 1, as the ground truth counts them.

    From `preds` (N, 16, 2 or more) of a `.mat`, as HRNet and the stacked hourglass write it, or from an array of that
    shape in `.npy` or `.json`. Raises ValueError on another form, FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of predictions {path}")
    if path.suffix not in READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}; predictions are read from {', '.join(READERS)}")
    try:
        found = READERS[path.suffix](path)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if found.ndim != 3 or found.shape[1] != 16 or found.shape[2] < 2 or not np.issubdtype(found.dtype, np.number):
        raise ValueError(f"the predictions in {path} are {found.dtype} {found.shape}; they must be (people, 16, 2)")
    return found[:, :, :2].astype(np.float64)


def rates(points: NDArray[np.float64], truth: mpii.Truth, share: float) -> dict[str, float | None]:
    """Percent of joints found within `share` of the head's size, for every column and for both means, see
    `scores.means`. A column is None if one of its joints is never labelled.

    `points`: float64 (N, 16, 2), x and y counted from 1. Raises ValueError if N is not the number of people in `truth`.
    """
    if len(points) != len(truth.joints):
        raise ValueError(f"there are predictions for {len(points)} people, but ground truth for {len(truth.joints)}")
    joints, head_px = torch.from_numpy(truth.joints), torch.from_numpy(truth.head_px)
    right = scores.pckh(torch.from_numpy(points), joints, head_px, mpii.SKELETON, share)
    by_joint = right.nanmean(0)
    columns = {name: scores.percent(by_joint[list(indices)].mean()) for name, indices in COLUMNS.items()}
    weighted, plain = map(scores.percent, scores.means(right))
    return {"within": share, **columns, "mean": weighted, "mean_by_joint": plain}
