"""Augmentation: images and what is labelled in them move together."""

import torch

from models.training import augment
from models.training.augment import Augmentation
from models.training.losses import class_weights, heatmaps, pose, segmentation
from models.training.tasks import _placed

STILL = Augmentation(flip=False, colour=0.0, gamma=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PLAIN = {"normal": (torch.zeros(3), torch.ones(3)), "outside": torch.zeros(3), "generator": seeded()}


def test_an_augmentation_of_nothing_returns_the_image() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8, generator=seeded())
    labels = images[:, 0] // 64
    linear, mirrored = augment.zooms(STILL, (1.0, 1.0), 2, seeded())
    where = augment.grid(linear, torch.tensor([[32.0, 16.0]] * 2), (32, 64), (32, 64), images.device)
    assert not mirrored.any()
    found = augment.resample(images, where, STILL, **PLAIN)
    torch.testing.assert_close(found, (images / 255).clamp(1e-4), atol=1e-4, rtol=0)
    assert torch.equal(augment.resample_labels(labels, where, 255), labels.long())


def test_labels_follow_the_image() -> None:
    labels = torch.zeros(4, 40, 60, dtype=torch.uint8)
    labels[:, 10:30, 20:40] = 1
    images = (labels * 255)[:, None].expand(-1, 3, -1, -1)
    how = Augmentation(rotation_deg=30, colour=0, gamma=1)
    linear, _ = augment.zooms(how, (0.8, 1.5), 4, seeded())
    centre = augment.place(linear, (40, 60), (32, 32), seeded())
    where = augment.grid(linear, centre, (40, 60), (32, 32), images.device)
    found = augment.resample(images, where, how, **PLAIN)
    moved = augment.resample_labels(labels, where, 255)
    agree = ((found[:, 0] > 0.5) == (moved == 1)) | (moved == 255)
    assert agree.float().mean() > 0.98


def test_joints_follow_the_image() -> None:
    """A bright dot at the joint is found where the joint was moved to."""
    how = Augmentation(rotation_deg=40, colour=0, gamma=1)
    joints = torch.tensor([[[30.0, 20.0, 1.0]], [[10.0, 40.0, 1.0]], [[33.0, 33.0, 0.0]]])
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    for image, joint in zip(images, joints, strict=True):
        x, y = joint[0, :2].int().tolist()
        image[:, y - 1 : y + 2, x - 1 : x + 2] = 255
    linear, _ = augment.zooms(how, (0.9, 1.1), 3, seeded(1))
    centre = torch.full((3, 2), 32.0)
    where = augment.grid(linear, centre, (64, 64), (96, 96), images.device)
    found = augment.resample(images, where, how, **PLAIN)[:, 0]
    placed = _placed(joints, linear, centre, (96, 96))
    for image, (x, y, labelled), joint in zip(found, placed[:, 0], joints, strict=True):
        if joint[0, 2] == 0:
            assert labelled == 0
            continue
        mass = (image - 0.01).clamp(min=0)
        rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
        assert abs((mass * columns).sum() / mass.sum() - x) < 0.5
        assert abs((mass * rows).sum() / mass.sum() - y) < 0.5


def test_joints_outside_of_the_crop_lose_their_label() -> None:
    joints = torch.tensor([[[5.0, 5.0, 1.0], [32.0, 32.0, 1.0]]])
    placed = _placed(joints, torch.eye(2)[None], torch.full((1, 2), 32.0), (32, 32))
    assert placed[0, :, 2].tolist() == [0, 1]


def test_crops_lie_inside_where_they_fit_and_else_contain_the_image() -> None:
    for scale in (1.0, 0.25):
        linear = (torch.eye(2) / scale).expand(100, 2, 2)
        centre = augment.place(linear, (100, 200), (50, 60), seeded())
        reach = torch.tensor([30.0, 25.0]) / scale
        low, high = centre - reach, centre + reach
        size = torch.tensor([200.0, 100.0])
        fits = (low >= -1e-3) & (high <= size + 1e-3)
        contains = (low <= 1e-3) & (high >= size - 1e-3)
        assert (fits | contains).all()


def test_cutmix_moves_labels_with_pixels() -> None:
    labels = torch.arange(4).view(4, 1, 1).expand(4, 32, 32)
    images = labels[:, None].float()
    mixed, mixed_labels = augment.cutmix(images, labels, 1.0, seeded())
    assert torch.equal(mixed[:, 0].long(), mixed_labels)
    assert ((mixed_labels != labels).float().mean((1, 2)) > 0.05).all()
    assert torch.equal(augment.cutmix(images, labels, 0.0, seeded())[1], labels)


def test_rare_classes_weigh_more() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [255])
    weights = class_weights(labels, 2, 255, 1.1)
    assert weights[1] > weights[0]
    share = torch.tensor([90 / 99, 9 / 99])
    torch.testing.assert_close((weights * share).sum(), torch.tensor(1.0))


def test_heatmaps_peak_at_the_joint() -> None:
    maps = heatmaps(torch.tensor([[[40.0, 20.0, 1.0]]]), (16, 24), 4, 2.0)
    assert maps.shape == (1, 1, 16, 24)
    assert divmod(int(maps.argmax()), 24) == (5, 10)
    assert maps.max() == 1
    torch.testing.assert_close(maps[0, 0, 5, 12], torch.tensor(float(torch.tensor(-0.5).exp())))
    assert maps[0, 0, 5, 16] > 0  # 3 standard deviations away
    assert maps[0, 0, 5, 17] == 0


def test_a_heatmap_may_be_below_0_where_no_joint_is_near() -> None:
    joints = torch.tensor([[[8.0, 8.0, 1.0]]])
    target = heatmaps(joints, (16, 16), 4, 1.0)
    away = (target == 0).float()
    losses = pose([target - away, target + away, target - (1 - away)], joints, 4, 1.0)
    assert losses[0] == 0
    assert losses[1] == away.mean()
    assert losses[2] == (1 - away).mean()


def test_every_exit_has_its_loss() -> None:
    joints = torch.tensor([[[8.0, 8.0, 1.0], [4.0, 4.0, 0.0]]])
    right = heatmaps(joints, (8, 8), 4, 2.0)
    losses = pose([right, right + torch.tensor([0.0, 5.0]).view(1, 2, 1, 1), right + 1], joints, 4, 2.0)
    assert losses[:2].tolist() == [0, 0]  # the second joint is not labelled
    assert losses[2] > 0
    logits = torch.zeros(1, 3, 4, 4)
    labels = torch.full((1, 16, 16), 255)
    labels[0, 0, 0] = 2
    weights = torch.ones(3)
    assert segmentation([logits, logits], labels, weights, 255).tolist() == [log_3(), log_3()]


def log_3() -> float:
    return float(torch.tensor(3.0).log())


def test_a_tint_scales_each_channel_alone_and_the_rest_is_drawn_as_without_it() -> None:
    plain, tinted = (augment.colours(Augmentation(tint=tint), 50, seeded(3)) for tint in (0.0, 0.25))
    gains = tinted[0] / plain[0]
    assert torch.allclose(gains, gains[:, :, :1].expand(-1, -1, 3), rtol=1e-4)
    assert 0.75 <= float(gains.min()) < 0.8 and 1.2 < float(gains.max()) <= 1.25
    assert all(torch.equal(one, other) for one, other in zip(plain[1:], tinted[1:], strict=True))
