import numpy as np
import pytest
import tiny
import torch

from models.imaging.geometry import Frame, person_square
from models.imaging.preprocess import crop_square, cut, prepare


@pytest.mark.parametrize("size", [(1, 1), (32, 64), (33, 65), (360, 480)])
def test_segmentation_pads_to_multiples_of_32_with_the_mean(size: tuple[int, int]) -> None:
    image = tiny.image(*size)
    inputs, frame = prepare(image, tiny.SEGMENTATION)
    height, width = inputs.shape[2:]
    assert height % 32 == width % 32 == 0
    assert 0 <= height - size[0] < 32
    assert (frame.height, frame.width, frame.scale) == (*size, 1)
    assert not inputs[:, :, size[0] :].any()
    assert not inputs[:, :, :, size[1] :].any()
    expected = (image / 255 - np.array(tiny.SEGMENTATION.mean)) / np.array(tiny.SEGMENTATION.std)
    torch.testing.assert_close(
        inputs[0, :, : size[0], : size[1]].permute(1, 2, 0).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="must be uint8"):
        prepare(image, tiny.SEGMENTATION)


def test_pose_cuts_out_the_box_and_maps_back() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[40:44, 120:124] = 255  # a blob centred on (121.5, 41.5)
    inputs, frame = prepare(image, tiny.POSE, (100, 20, 40, 40))
    assert inputs.shape == (1, 3, 64, 64)
    bright = inputs[0].mean(0)
    y, x = (positions.float().mean() for positions in torch.where(bright > bright.max() / 2))
    np.testing.assert_allclose(frame.to_image(np.array([float(x), float(y)], np.float32)), (121.5, 41.5), atol=0.5)


def test_pose_takes_the_whole_image_without_a_box() -> None:
    assert person_square(100, 200, None) == (0, -50, 200)
    inputs, frame = prepare(tiny.image(100, 200), tiny.POSE)
    assert (frame.left, frame.top) == (0, -50)
    black = inputs[0, :, 0, 0]
    assert torch.equal(inputs[0, :, :15].amin((1, 2)), black)  # above the image


def test_frame_is_its_own_inverse() -> None:
    frame = Frame(100, 200, left=-7, top=13, scale=1.7)
    points = np.random.default_rng(0).uniform(-5, 200, (9, 2)).astype(np.float32)
    np.testing.assert_allclose(frame.to_input(frame.to_image(points)), points, rtol=1e-4, atol=1e-3)


def test_a_box_larger_than_the_image_sees_the_image_at_its_place() -> None:
    pixels, frame = cut(np.full((100, 100, 3), 255, np.uint8), tiny.POSE, (-50, -50, 200, 200))
    y, x = np.where(pixels[..., 0] > 128)
    corners = np.array([(x.min(), y.min()), (x.max(), y.max())], np.float32)
    np.testing.assert_allclose(frame.to_image(corners), [(0, 0), (99, 99)], atol=3)


def test_a_long_image_costs_no_huge_crop() -> None:
    image = np.zeros((20, 40_000, 3), np.uint8)
    image[:, 30_000:] = 255
    assert crop_square(image, person_square(20, 40_000, None)).size == (4000, 4000)
    pixels, _ = cut(image, tiny.POSE, None)
    assert pixels[32, 40:47].max() == 0
    assert pixels[32, 48:].max() > 0
