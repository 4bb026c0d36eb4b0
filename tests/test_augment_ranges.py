"""What augmentation draws: every range, direction and probability, against figures worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from models.training import augment
from models.training.augment import Augmentation

STILL = Augmentation(flip=False, colour=0.0, gamma=1.0)
LUMA = torch.tensor([0.299, 0.587, 0.114])
VOID = 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spans(values: Tensor, low: float, high: float) -> bool:
    """Whether many `values` lie in low..high and reach within 2 % of the range of both ends."""
    margin = 0.02 * (high - low)
    inside = low - 1e-4 <= float(values.min()) and float(values.max()) <= high + 1e-4
    return inside and float(values.min()) < low + margin and float(values.max()) > high - margin


def test_zooms_are_uniform_in_their_logarithm() -> None:
    """Of scales from 1/4 to 4, as many enlarge as reduce. A scale of 4 makes 4 pixels of the crop of 1 of the image."""
    linear, mirrored = augment.zooms(STILL, (0.25, 4.0), 1000, seeded())
    scale = 1 / linear[:, 0, 0]
    assert torch.equal(linear[:, 0, 0], linear[:, 1, 1]) and not linear[:, 0, 1].any() and not linear[:, 1, 0].any()
    assert spans(scale.log(), math.log(0.25), math.log(4))
    assert (scale < 1).float().mean() == pytest.approx(0.5, abs=0.04)
    assert not mirrored.any()


def test_half_of_the_images_are_mirrored_in_x() -> None:
    linear, mirrored = augment.zooms(Augmentation(), (1.0, 1.0), 1000, seeded())
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(linear[mirrored], torch.tensor([[-1.0, 0.0], [0.0, 1.0]]).expand(int(mirrored.sum()), 2, 2))
    assert torch.equal(linear[~mirrored], torch.eye(2).expand(int((~mirrored).sum()), 2, 2))


def test_rotations_reach_their_limit_either_way_and_keep_distances() -> None:
    linear, mirrored = augment.zooms(Augmentation(rotation_deg=30), (1.0, 1.0), 1000, seeded())
    torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(1000, 2, 2))
    angle_deg = torch.atan2(linear[:, 1, 1], linear[:, 0, 1]).rad2deg() - 90  # of the second axis, never mirrored
    assert spans(angle_deg, -30, 30)
    assert torch.equal(linear.det() < 0, mirrored)


def test_a_crop_is_sampled_around_its_centre() -> None:
    """A 2x4 crop around (6, 3) of an 8x10 image at scale 2 covers x from 5 to 7 and y from 2.5 to 3.5. `grid_sample`
    counts from -1 to 1 over the image: its first pixel is at 2 * (5.25, 2.75) / (10, 8) - 1 = (0.05, -0.3125)."""
    where = augment.grid(torch.eye(2)[None] / 2, torch.tensor([[6.0, 3.0]]), (8, 10), (2, 4), torch.device("cpu"))
    assert where.shape == (1, 2, 4, 2)
    assert where[0, 0, :, 0].tolist() == pytest.approx([0.05, 0.15, 0.25, 0.35])
    assert where[0, :, 0, 1].tolist() == pytest.approx([-0.3125, -0.1875])


def test_centres_are_spread_over_all_places_where_the_crop_fits() -> None:
    """A 50x60 crop at scale 1 in an image of 100x200: x from 30 to 170 and y from 25 to 75."""
    centre = augment.place(torch.eye(2).expand(1000, 2, 2), (100, 200), (50, 60), seeded())
    assert spans(centre[:, 0], 30, 170) and spans(centre[:, 1], 25, 75)


def test_colours_span_their_ranges() -> None:
    """Grey keeps its hue, so a row of the matrix sums to brightness * contrast; 0.45 is where contrast turns."""
    matrix, offset, exponent = augment.colours(Augmentation(colour=0.4, gamma=1.5), 2000, seeded())
    contrast = 1 - offset[:, 0] / 0.45
    grey = matrix.sum(2)
    torch.testing.assert_close(grey, grey[:, :1].expand(-1, 3))
    brightness = grey[:, 0] / contrast
    saturation = (matrix[:, 0, 0] - matrix[:, 1, 0]) / grey[:, 0]
    for drawn in (contrast, brightness, saturation):
        assert spans(drawn, 0.6, 1.4)
    torch.testing.assert_close(LUMA @ matrix, grey[:, :1] * LUMA)  # saturation keeps the luma
    assert spans(exponent.log(), -math.log(1.5), math.log(1.5))
    assert (exponent < 1).float().mean() == pytest.approx(0.5, abs=0.04)


def test_a_tint_spans_its_range() -> None:
    matrix, _, _ = augment.colours(Augmentation(colour=0.0, tint=0.25), 2000, seeded())
    gains = matrix.diagonal(dim1=1, dim2=2)
    assert all(spans(gains[:, channel], 0.75, 1.25) for channel in range(3))
    assert (gains[:, 0] - gains[:, 1]).abs().max() > 0.4  # of each channel alone


def test_pixels_are_recoloured_then_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pixel of 102 / 255 = 0.4: (0.5 * 0.4 + 0.1) ^ 2 = 0.09, normalised (0.09 - 0.5) / 0.25 = -1.64. A pixel of 1
    becomes (2 * 1 + 0.1) -> 1 at most: (1 - 0.5) / 0.25 = 2. Outside of the image is the colour that is asked for."""
    images = torch.tensor([102, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    gains = torch.tensor([0.5, 2.0]).view(2, 1, 1) * torch.eye(3)
    drawn = gains, torch.full((2, 3), 0.1), torch.tensor([2.0, 1.0])
    monkeypatch.setattr(augment, "colours", lambda *_: drawn)
    where = torch.zeros(2, 1, 2, 2)
    where[:, 0, 1] = 1.01
    found = augment.resample(
        images,
        where,
        STILL,
        normal=(torch.full((3,), 0.5), torch.full((3,), 0.25)),
        outside=torch.tensor([7.0, 8.0, 9.0]),
        generator=seeded(),
    )
    assert found[0, :, 0, 0].tolist() == pytest.approx([-1.64] * 3, abs=1e-5)
    assert found[1, :, 0, 0].tolist() == pytest.approx([2.0] * 3)
    assert found[:, :, 0, 1].tolist() == [[7, 8, 9]] * 2


def test_channels_are_mixed_by_rows_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red takes all of green, green half of blue, blue nothing: (0.2, 0.4, 0.6) -> (0.4, 0.3, least)."""
    images = torch.tensor([51, 102, 153], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    matrix = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]])
    monkeypatch.setattr(augment, "colours", lambda *_: (matrix, torch.zeros(1, 3), torch.ones(1)))
    normal = torch.zeros(3), torch.ones(3)
    where = torch.zeros(1, 1, 1, 2)
    found = augment.resample(images, where, STILL, normal=normal, outside=torch.zeros(3), generator=seeded())
    assert found.flatten().tolist() == pytest.approx([0.4, 0.3, 0.0], abs=2e-4)


def test_labels_take_the_nearest_pixel_and_void_outside() -> None:
    """Pixel centres of two columns are at -0.5 and 0.5 of -1..1."""
    labels = torch.tensor([[[3, 7]]], dtype=torch.uint8)
    x = torch.tensor([-0.9, -0.1, 0.1, 0.9, 1.9])
    where = torch.stack([x, torch.zeros(5)], -1).view(1, 1, 5, 2)
    found = augment.resample_labels(labels, where, VOID)
    assert found.dtype == torch.int64
    assert found.flatten().tolist() == [3, 3, 7, 7, VOID]


def test_cutmix_pastes_rectangles_of_a_quarter_to_half_of_each_side_into_some_images() -> None:
    count = 400
    labels = torch.arange(count).view(-1, 1, 1).expand(count, 40, 80)
    images = labels[:, None].float()
    mixed, mixed_labels = augment.cutmix(images, labels, 0.25, seeded())
    assert torch.equal(mixed[:, 0].long(), mixed_labels)
    pasted = mixed_labels != labels
    assert pasted.any(2).any(1).float().mean() == pytest.approx(0.25, abs=0.06)
    for image, source in zip(pasted[pasted.any(2).any(1)], mixed_labels[pasted.any(2).any(1)], strict=True):
        rows, columns = int(image.any(1).sum()), int(image.any(0).sum())
        assert int(image.sum()) == rows * columns  # a rectangle
        assert 9 <= rows <= 21 and 19 <= columns <= 41
        assert len(source[image].unique()) == 1  # of one other image
