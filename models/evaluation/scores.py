"""Scores: mIoU for segmentation, PCK for pose. Pure functions of tensors; imports no network."""

import torch
from torch import Tensor

RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP = 12, 13, 2, 3
PELVIS, THORAX, NECK, HEAD_TOP = 6, 7, 8, 9


def confusion(found: Tensor, labels: Tensor, classes: int, void: int) -> Tensor:
    """Pixels by (label, found): float64 (classes, classes). Integers of one shape; `void` labels do not count."""
    counted = labels != void
    pairs = labels[counted].long() * classes + found[counted].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes).double()


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class (classes,); nan for a class that is neither labelled nor found."""
    right = matrix.diagonal()
    return right / (matrix.sum(0) + matrix.sum(1) - right)


def correct(points: Tensor, joints: Tensor, share: float = 0.2) -> Tensor:
    """PCK: whether each joint was found within `share` of the torso's length: float (N, J), nan where it is not scored.

    `points` (N, J, 2), `joints` (N, J, 3) in one frame of pixels, MPII's order. The torso's length is that from left
    shoulder to right hip, or, where those are not both labelled, from right shoulder to left hip; without either, the
    person is not scored. Not scored are joints without a label, and pelvis and thorax, which LSP does not label and
    the MPII code leaves out.
    """
    torso = torch.zeros(len(joints), device=joints.device)
    for shoulder, hip in ((RIGHT_SHOULDER, LEFT_HIP), (LEFT_SHOULDER, RIGHT_HIP)):
        length = (joints[:, shoulder, :2] - joints[:, hip, :2]).norm(dim=-1)
        torso = torch.where((joints[:, shoulder, 2] > 0) & (joints[:, hip, 2] > 0), length, torso)
    return _within(points, joints, torso, share)


def correct_by_head(points: Tensor, joints: Tensor, head_px: Tensor, share: float = 0.5) -> Tensor:
    """PCKh: as `correct`, within `share` of the head's size, (N,), nan or 0 where it is unknown."""
    return _within(points, joints, head_px.nan_to_num(0), share)


def head_size(joints: Tensor) -> Tensor:
    """From upper neck to head top: (N,) of joints (N, 16, 3), 0 where they are not both labelled."""
    neck, top = joints[:, NECK], joints[:, HEAD_TOP]
    return torch.where((neck[:, 2] > 0) & (top[:, 2] > 0), (neck - top)[:, :2].norm(dim=-1), 0)


def means(right: Tensor) -> tuple[Tensor, Tensor]:
    """Both means of PCKh, from `correct_by_head`: over all scored joints, so that a joint weighs as often as it is
    labelled (HRNet's code, MPII's total), and over the joints' own rates (the stacked hourglass's tables)."""
    return right.nanmean(), right.nanmean(0).nanmean()


def percent(value: Tensor) -> float | None:
    """None where nothing was scored (nan)."""
    return None if value.isnan() else round(100 * float(value), 2)


def shown(value: float | None) -> str:
    """A table's cell."""
    return "-" if value is None else f"{value:.2f}"


def _within(points: Tensor, joints: Tensor, size: Tensor, share: float) -> Tensor:
    """Shares are compared, not distances, so that ties fall as in code that divides first; a tie is not within."""
    shares = (points - joints[:, :, :2]).norm(dim=-1) / size[:, None]
    scored = (joints[:, :, 2] > 0) & (size > 0)[:, None]
    right = torch.where(scored, (shares < share).to(points.dtype), torch.nan)
    right[:, [PELVIS, THORAX]] = torch.nan
    return right
