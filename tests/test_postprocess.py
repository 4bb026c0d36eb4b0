import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from models.anytime import Exit
from models.imaging.geometry import Frame
from models.imaging.postprocess import _placed, extra_map, keypoints, labels, rendering, whole
from models.imaging.preprocess import prepare


def test_labels_compare_upsampled_scores() -> None:
    scores = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))
    got = np.empty((60, 90), np.uint8)
    for _ in labels(scores, Frame(60, 90), got):
        pass
    expected = F.interpolate(scores[None], size=(64, 96), mode="bilinear", align_corners=False)[0].argmax(0)
    assert np.array_equal(got, expected[:60, :90].numpy())


@pytest.mark.parametrize("at", [(20.0, 12.0), (31.0, 40.0), (0.0, 0.0)])
def test_keypoints_come_back_where_they_were(at: tuple[float, float]) -> None:
    """A Gaussian drawn where the joint lies is decoded to within half a heatmap position."""
    _, frame = prepare(tiny.image(100, 120), tiny.POSE, (10, 20, 80, 60))
    joint = frame.to_image(np.array(at, np.float32) * 1.0)
    centre = np.array(at) / 4
    y, x = np.mgrid[:16, :16]
    heatmap = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 8)
    found = keypoints(torch.from_numpy(heatmap[None]), frame)
    assert found.shape == (1, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :2], joint, atol=2 * frame.scale + 1e-3)
    assert found[0, 2] == pytest.approx(heatmap.max(), rel=1e-5)


def test_the_peak_moves_a_quarter_towards_the_higher_neighbour() -> None:
    heatmap = torch.zeros(1, 8, 8)
    heatmap[0, 3, 4], heatmap[0, 3, 5], heatmap[0, 2, 4] = 1.0, 0.5, 0.5
    np.testing.assert_allclose(keypoints(heatmap, Frame(32, 32))[0, :2], (4.25 * 4, 2.75 * 4))


def found_exit() -> Exit:
    scores = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    decided = torch.arange(256).view(16, 16).remainder(4).to(torch.uint8)
    return Exit(2, scores, decided, decided == 2, 0.25, 0)


def test_extra_maps_of_a_segmentation() -> None:
    found, frame = found_exit(), Frame(60, 62)
    decided = extra_map(found, tiny.SEGMENTATION, frame, "exit")
    assert np.array_equal(decided, np.kron(found.decided, np.ones((4, 4)))[:60, :62])
    assert np.array_equal(extra_map(found, tiny.SEGMENTATION, frame, "unsure"), decided == 2)
    sure = extra_map(found, tiny.SEGMENTATION, frame, "confidence")
    assert sure.shape == (60, 62)
    assert 255 / 3 * 0.95 < sure.min() <= sure.max() <= 255


def test_extra_maps_of_a_pose_lie_in_the_box() -> None:
    frame = Frame(100, 120, left=-10, top=20, scale=1.0)
    decided = extra_map(found_exit(), tiny.POSE, frame, "exit")
    assert decided.shape == (100, 120)
    assert decided[20:84, :54].any()
    assert not decided[:20].any()
    assert not decided[84:].any()
    assert not decided[:, 54:].any()


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_crop_at_whole_pixels_is_placed_as_torch_resizes_it(mode: str) -> None:
    values = torch.rand(1, 8, 8)
    frame = Frame(40, 70, left=-5, top=11, scale=2.0)  # 64x64 pixels
    corners = False if mode == "bilinear" else None
    large = F.interpolate(values[None], scale_factor=8, mode=mode, align_corners=corners)[0]
    expected = F.pad(large, (-5, 11, 11, -35))
    torch.testing.assert_close(_placed(values, frame, mode), expected)


def test_a_crop_that_covers_a_small_image_costs_what_the_image_costs() -> None:
    frame = Frame(10, 10, left=-1e6, top=-1e6, scale=1e5)
    assert _placed(torch.ones(1, 8, 8), frame, "bilinear").tolist() == [[[1.0] * 10] * 10]


def test_render_adds_the_map_that_was_asked_for() -> None:
    found, frame = found_exit(), Frame(64, 64)
    plain = whole(rendering(found, tiny.SEGMENTATION, frame))
    assert plain.extra is None
    assert (plain.index, plain.active_share) == (2, 0.25)
    more = whole(rendering(found, tiny.SEGMENTATION, frame, "unsure"))
    assert more.extra is not None
    assert np.array_equal(more.array, plain.array)
