"""mIoU and PCK, against figures worked out by hand."""

import numpy as np
import pytest
import torch

from models.commands.tables import cell
from models.data.mpii import SKELETON
from models.data.people import Skeleton
from models.evaluation import scores
from models.imaging.geometry import STRIDE, Frame
from models.imaging.postprocess import keypoints, peaks

RIGHT_HIP, PELVIS, THORAX, NECK, HEAD_TOP, RIGHT_SHOULDER, LEFT_SHOULDER = 2, 6, 7, 8, 9, 12, 13
"""Joints of MPII."""


def person(torso_px: float = 10.0) -> torch.Tensor:
    """Joints (1, 16, 3), all labelled and at 0, 0, with left shoulder and right hip `torso_px` apart."""
    joints = torch.zeros(1, 16, 3)
    joints[..., 2] = 1
    joints[0, LEFT_SHOULDER, 0] = torso_px
    return joints


def test_iou_leaves_out_void() -> None:
    labels = torch.tensor([[0, 0, 1, 255]])
    found = torch.tensor([[0, 1, 1, 0]])
    iou = scores.iou(scores.confusion(found, labels, 3, 255))
    assert iou[:2].tolist() == [0.5, 0.5]
    assert iou[2].isnan()  # neither labelled nor found


def test_iou_of_a_confusion_by_hand() -> None:
    """Of class 0, 3 pixels are found rightly and 1 as class 1; of class 1, 2 rightly, 1 as 0 and 3 as 2, which is never
    labelled: 3 / (4 + 4 - 3), 2 / (6 + 3 - 2), 0 / 3. Their mean, mIoU, is 0.295238."""
    labels = torch.tensor([[0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [255, 255, 255, 255, 255]])
    found = torch.tensor([[0, 0, 0, 1, 1], [1, 0, 2, 2, 2], [0, 1, 2, 0, 1]])
    matrix = scores.confusion(found, labels, 3, 255)
    assert matrix.tolist() == [[3, 1, 0], [1, 2, 3], [0, 0, 0]]  # by label, then by what was found
    assert matrix.dtype == torch.float64
    assert scores.iou(matrix).tolist() == pytest.approx([0.6, 2 / 7, 0])
    assert float(scores.iou(matrix).nanmean()) == pytest.approx(0.295238, abs=1e-6)


def test_a_peak_moves_a_quarter_towards_its_higher_neighbour() -> None:
    """A peak at column 3, row 2, higher to the left and below; one in a corner, which does not move; one whose
    neighbours are equal."""
    heatmaps = torch.zeros(1, 3, 6, 8)
    heatmaps[0, 0, 2, 3], heatmaps[0, 0, 2, 2], heatmaps[0, 0, 3, 3] = 1.0, 0.5, 0.25
    heatmaps[0, 1, 0, 7], heatmaps[0, 1, 0, 6] = 1.0, 0.5
    heatmaps[0, 2, 4, 4] = 1.0
    assert peaks(heatmaps.numpy()).tolist() == [[[2.75, 2.25], [7, 0], [4, 4]]]


def test_peaks_decode_as_the_served_keypoints() -> None:
    heatmaps = torch.rand(2, 5, 16, 12, generator=torch.Generator().manual_seed(0))
    frame = Frame(64, 48)
    served = np.stack([keypoints(maps, frame)[:, :2] for maps in heatmaps])
    np.testing.assert_allclose(peaks(heatmaps.numpy()) * STRIDE, served, atol=1e-4)


def test_pck_is_a_share_of_the_torso() -> None:
    joints = person()
    points = joints[..., :2].clone()
    points[0, 0, 0], points[0, 1, 0] = 1.9, 2.1
    right = scores.pck(points, joints, SKELETON)
    assert right[0, :2].tolist() == [1, 0]
    assert right[0, [PELVIS, THORAX]].isnan().all()


def test_a_tie_is_not_within() -> None:
    """A torso of 10 pixels and a share of 0.25: 2.5 pixels are a tie, 2.4375 within."""
    joints = person()
    points = joints[..., :2].clone()
    points[0, 0, 0], points[0, 1, 1] = 2.5, 2.4375
    assert scores.pck(points, joints, SKELETON, 0.25)[0, :2].tolist() == [0, 1]


def test_the_distance_is_euclidean() -> None:
    """3 and 4 pixels off are 5, half of a torso of 10: within 0.51 of it, but not 0.49."""
    joints = person()
    points = joints[..., :2].clone()
    points[0, 0] = torch.tensor([3.0, 4.0])
    assert [float(scores.pck(points, joints, SKELETON, share)[0, 0]) for share in (0.49, 0.51)] == [0, 1]


def test_the_torso_is_the_left_shoulder_s_where_both_diagonals_are_labelled() -> None:
    """Left shoulder to right hip 10 pixels, right shoulder to left hip 100: 5 pixels off is too far."""
    joints = person()
    joints[0, RIGHT_SHOULDER, 1] = 100
    points = joints[..., :2].clone()
    points[0, 0, 0] = 5
    assert scores.pck(points, joints, SKELETON)[0, 0] == 0


def test_pck_leaves_out_what_is_not_labelled() -> None:
    joints = person()
    joints[0, 0, 2] = 0
    assert scores.pck(joints[..., :2], joints, SKELETON)[0, 0].isnan()
    joints[0, [LEFT_SHOULDER, RIGHT_SHOULDER], 2] = 0
    assert scores.pck(joints[..., :2], joints, SKELETON).isnan().all()


def test_pck_takes_the_other_diagonal_where_one_is_not_labelled() -> None:
    joints = person()
    joints[0, RIGHT_HIP, 2] = 0
    joints[0, RIGHT_SHOULDER, 1] = 100
    points = joints[..., :2].clone()
    points[0, 0, 0] = 19
    assert scores.pck(points, joints, SKELETON)[0, 0] == 1


def test_pckh_is_a_share_of_the_head() -> None:
    joints = person()
    points = joints[..., :2].clone()
    points[0, 0, 0], points[0, 1, 0] = 4.9, 5.1
    right = scores.pckh(points, joints, torch.tensor([10.0]), SKELETON)
    assert right[0, :2].tolist() == [1, 0]
    assert right.nanmean() == pytest.approx(13 / 14)  # without pelvis and thorax
    assert scores.pckh(points, joints, torch.tensor([0.0]), SKELETON).isnan().all()


def test_the_head_s_size_is_from_neck_to_top() -> None:
    joints = person().repeat(3, 1, 1)
    joints[:, HEAD_TOP, :2] = torch.tensor([3.0, 4.0])
    joints[1, HEAD_TOP, 2] = joints[2, NECK, 2] = 0
    assert scores.head_size(joints, SKELETON).tolist() == [5, 0, 0]


def test_a_head_of_unknown_size_scores_nobody() -> None:
    joints = person().repeat(2, 1, 1)
    right = scores.pckh(joints[..., :2], joints, torch.tensor([torch.nan, 8.0]), SKELETON)
    assert right[0].isnan().all()
    assert right[1].nansum() == 14


def test_figures_are_percent_of_two_decimals() -> None:
    assert scores.percent(torch.tensor(0.123456)) == 12.35
    assert scores.percent(torch.tensor(torch.nan)) is None
    assert (cell(12.3), cell(None)) == ("12.30", "-")


def test_another_skeleton_has_its_own_torso_head_and_joints_without_a_score() -> None:
    """Three joints: the torso from 0 to 2 is 10 pixels, the head from 0 to 1 is 4; joint 1 is not scored."""
    skeleton = Skeleton(joints=3, torsos=((1, 0), (0, 2)), head=(0, 1), unscored=(1,))
    joints = torch.tensor([[[0.0, 0, 1], [4, 0, 1], [0, 10, 1]]])
    unlabelled = joints * torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 1, 1]])
    points = joints[..., :2] + torch.tensor([[1.5, 0.0], [0, 0], [0, 2.5]])
    assert scores.pck(points, unlabelled, skeleton)[0, [0, 2]].tolist() == [1, 0]
    assert scores.pck(points, joints, skeleton)[0, [0, 2]].tolist() == [0, 0]  # the first torso is 4 pixels
    head_px = scores.head_size(joints, skeleton)
    assert head_px.tolist() == [4]
    assert scores.pckh(points, joints, head_px, skeleton)[0, [0, 2]].tolist() == [1, 0]
    assert scores.pck(points, joints, skeleton)[0, 1].isnan()
