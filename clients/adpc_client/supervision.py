"""Turns answers into the values of Roboflow's `supervision`, which draws, filters and counts them."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpc_client.draw import NO_CLASS
from adpc_client.labels import Labels


def mask_detections(mask: NDArray[np.uint8], labels: Labels) -> Any:
    """`supervision.Detections` with one detection for each class that `mask` has.

    Its `xyxy` is the box around all pixels of the class, right and bottom included as supervision has them.
    """
    classes = np.unique(mask[mask != NO_CLASS])
    masks = mask == classes[:, None, None]
    boxes = [_box(found) for found in masks]
    return _supervision().Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        mask=masks,
        class_id=classes.astype(int),
        data={"class_name": np.array([_name(labels, number) for number in classes])},
    )


def pose_keypoints(keypoints: NDArray[np.float32]) -> Any:
    """`supervision.KeyPoints` of one person."""
    return _supervision().KeyPoints(xy=keypoints[None, :, :2], confidence=keypoints[None, :, 2])


def _box(found: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _name(labels: Labels, number: int) -> str:
    return labels.names[number] if number < len(labels.names) else str(number)


def _supervision() -> ModuleType:
    try:
        return importlib.import_module("supervision")
    except ImportError as error:
        raise ImportError("`to_supervision` needs the package supervision: pip install supervision") from error
