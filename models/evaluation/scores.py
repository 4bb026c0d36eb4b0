"""Scores of answers against labels: mIoU for segmentation, PCK and PCKh for pose. Pure functions of tensors."""

import torch
from torch import Tensor

from models.data.people import Skeleton


def confusion(found: Tensor, labels: Tensor, classes: int, void: int) -> Tensor:
    """Counts pixels by (label, found class): float64 (classes, classes).

    `found` and `labels` are integers of one shape. Pixels whose label is `void` do not count.
    """
    counted = labels != void
    pairs = labels[counted].long() * classes + found[counted].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes).double()


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class, 0..1, from a confusion matrix (classes, classes): (classes,). A class that
    is neither labelled nor found has nan."""
    right = matrix.diagonal()
    return right / (matrix.sum(0) + matrix.sum(1) - right)


def pck(points: Tensor, joints: Tensor, skeleton: Skeleton, share: float = 0.2) -> Tensor:
    """PCK: 1 where a joint is found within `share` of the torso's length, else 0: float (N, J), nan where it is not
    scored.

    `points` (N, J, 2), x and y, and `joints` (N, J, 3), x, y and 1 where labelled, are in one frame of pixels. A joint
    is scored if it is labelled, the skeleton does not leave it out, and one of the person's torso pairs is labelled.
    """
    torso_px = torch.zeros(len(joints), device=joints.device)
    for shoulder, hip in reversed(skeleton.torsos):  # the first pair is written last, so it wins
        torso_px = torch.where(_labelled(joints, shoulder, hip), _length(joints, shoulder, hip), torso_px)
    return _within(points, joints, torso_px, skeleton, share)


def pckh(points: Tensor, joints: Tensor, head_px: Tensor, skeleton: Skeleton, share: float = 0.5) -> Tensor:
    """PCKh: as `pck`, but within `share` of the head's size, (N,), which is nan or 0 where it is unknown."""
    return _within(points, joints, head_px.nan_to_num(0), skeleton, share)


def head_size(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """The head's length in pixels, (N,), of joints (N, J, 3); 0 where its two ends are not both labelled."""
    return torch.where(_labelled(joints, *skeleton.head), _length(joints, *skeleton.head), 0.0)


def means(right: Tensor) -> tuple[Tensor, Tensor]:
    """Both means of PCKh that papers give, from `pckh`'s (N, J).

    The first is over all scored joints, so that a joint weighs as often as it is labelled (HRNet's code, MPII's total).
    The second is the mean of each joint's own rate (the tables of the stacked hourglass paper).
    """
    return right.nanmean(), right.nanmean(0).nanmean()


def percent(value: Tensor) -> float | None:
    """0..1 in percent with two decimals; None where nothing was scored (nan)."""
    return None if value.isnan() else round(100 * float(value), 2)


def _labelled(joints: Tensor, a: int, b: int) -> Tensor:
    return (joints[:, a, 2] > 0) & (joints[:, b, 2] > 0)


def _length(joints: Tensor, a: int, b: int) -> Tensor:
    length_px: Tensor = (joints[:, a, :2] - joints[:, b, :2]).norm(dim=-1)
    return length_px


def _within(points: Tensor, joints: Tensor, size_px: Tensor, skeleton: Skeleton, share: float) -> Tensor:
    """Divides each distance by the size and compares with `share`, so that ties round as in MPII's code. A tie counts
    as wrong."""
    shares = (points - joints[:, :, :2]).norm(dim=-1) / size_px[:, None]
    scored = (joints[:, :, 2] > 0) & (size_px > 0)[:, None]
    right = torch.where(scored, (shares < share).to(points.dtype), torch.nan)
    right[:, list(skeleton.unscored)] = torch.nan
    return right
