"""mIoU and PCK, against figures worked out by hand."""

import numpy as np
import pytest
import torch

from models.evaluation import scores
from models.imaging.geometry import STRIDE, Frame
from models.imaging.postprocess import keypoints, peaks


def person(torso_px: float = 10.0) -> torch.Tensor:
    """Joints (1, 16, 3), all labelled and at 0, 0, with left shoulder and right hip `torso_px` apart."""
    joints = torch.zeros(1, 16, 3)
    joints[..., 2] = 1
    joints[0, scores.LEFT_SHOULDER, 0] = torso_px
    return joints


def test_iou_leaves_out_void() -> None:
    labels = torch.tensor([[0, 0, 1, 255]])
    found = torch.tensor([[0, 1, 1, 0]])
    iou = scores.iou(scores.confusion(found, labels, 3, 255))
    assert iou[:2].tolist() == [0.5, 0.5]
    assert iou[2].isnan()  # neither labelled nor found


def test_peaks_decode_as_the_served_keypoints() -> None:
    heatmaps = torch.rand(2, 5, 16, 12, generator=torch.Generator().manual_seed(0))
    frame = Frame(64, 48)
    served = np.stack([keypoints(maps, frame)[:, :2] for maps in heatmaps])
    np.testing.assert_allclose(peaks(heatmaps.numpy()) * STRIDE, served, atol=1e-4)


def test_pck_is_a_share_of_the_torso() -> None:
    joints = person()
    points = joints[..., :2].clone()
    points[0, 0, 0], points[0, 1, 0] = 1.9, 2.1
    right = scores.correct(points, joints)
    assert right[0, :2].tolist() == [1, 0]
    assert right[0, [scores.PELVIS, scores.THORAX]].isnan().all()


def test_pck_leaves_out_what_is_not_labelled() -> None:
    joints = person()
    joints[0, 0, 2] = 0
    assert scores.correct(joints[..., :2], joints)[0, 0].isnan()
    joints[0, [scores.LEFT_SHOULDER, scores.RIGHT_SHOULDER], 2] = 0
    assert scores.correct(joints[..., :2], joints).isnan().all()


def test_pck_takes_the_other_diagonal_where_one_is_not_labelled() -> None:
    joints = person()
    joints[0, scores.RIGHT_HIP, 2] = 0
    joints[0, scores.RIGHT_SHOULDER, 1] = 100
    points = joints[..., :2].clone()
    points[0, 0, 0] = 19
    assert scores.correct(points, joints)[0, 0] == 1


def test_pckh_is_a_share_of_the_head() -> None:
    joints = person()
    points = joints[..., :2].clone()
    points[0, 0, 0], points[0, 1, 0] = 4.9, 5.1
    right = scores.correct_by_head(points, joints, torch.tensor([10.0]))
    assert right[0, :2].tolist() == [1, 0]
    assert right.nanmean() == pytest.approx(13 / 14)  # without pelvis and thorax
    assert scores.correct_by_head(points, joints, torch.tensor([0.0])).isnan().all()
