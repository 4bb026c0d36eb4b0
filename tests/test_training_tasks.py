"""Batches of both training tasks, in which images and labels move together, and their scores by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor

from models.data import lsp
from models.data.people import Skeleton
from models.network.adpc import AdpcNet
from models.training import augment, crops, losses, tasks
from models.training.augment import Augmentation
from models.training.recipe import Phase, Recipe

CPU = torch.device("cpu")
STILL = Augmentation(flip=False, colour=0.0, gamma=1.0)
GREY = {0: 40, 1: 140, 2: 240}
"""The grey of each class in the drawn scenes."""


def recipe(steps: int = 8, batch: int = 4, crop: tuple[int, int] = (32, 32), **more: object) -> Recipe:
    phase = Phase(steps=steps, batch=batch, crop=crop, scale=(1.0, 1.0))
    return replace(Recipe(splits=("train",), phases=(phase,), augmentation=STILL), **more)  # type: ignore[arg-type]


class Answers:
    """Stands for a network: answers every input with the same scores, one tensor an exit."""

    def __init__(self, *scores: Tensor) -> None:
        self.scores = scores
        self.config = tiny.SEGMENTATION
        self.seen: list[Tensor] = []

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        first = sum(map(len, self.seen))
        self.seen.append(inputs)
        return tuple(scores[first : first + len(inputs)] for scores in self.scores)


def as_network(answers: Answers) -> AdpcNet:
    return answers  # type: ignore[return-value]


# Which examples make up a step


def test_every_epoch_takes_every_example_once_in_an_order_of_its_own() -> None:
    """Steps of 4 out of 10 examples: 25 steps are 10 epochs, whose borders lie inside steps."""
    sampler = tasks.Sampler(10, recipe(steps=25))
    drawn = torch.cat([sampler(step) for step in range(25)]).view(10, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in drawn.tolist())
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 10


def test_a_step_draws_the_same_whatever_came_before_and_another_seed_another() -> None:
    drawn = [tasks.Sampler(10, recipe(steps=25))(step).tolist() for step in (0, 7, 24)]
    sampler = tasks.Sampler(10, recipe(steps=25))
    assert [sampler(step).tolist() for step in range(25)][::12] == [
        tasks.Sampler(10, recipe(steps=25))(step).tolist() for step in (0, 12, 24)
    ]
    assert drawn != [tasks.Sampler(10, recipe(steps=25, seed=1))(step).tolist() for step in (0, 7, 24)]


def test_augmentation_draws_by_seed_and_step() -> None:
    first = [float(torch.rand(1, generator=tasks.Sampler(9, recipe(seed=seed)).generator(step)))
             for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert first[0] == first[1]
    assert len(set(first)) == 3


# Segmentation


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Five scenes of 48x80 a split: class 0 to the left, 1 from column 12, 16, 20, 24 or 28, 2 to the lower right of
    (52, 12); each class has a grey of its own. In `val` the upper 4 lines are void."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for index in range(5):
            labels = np.zeros((48, 80), np.uint8)
            labels[:, 12 + 4 * index : 52] = 1
            labels[12:, 52:] = 2
            if split == "val":
                labels[:4] = 11
            grey = np.array([GREY.get(value, 0) for value in range(12)], np.uint8)[labels]
            Image.fromarray(grey.repeat(3).reshape(48, 80, 3)).save(tmp_path / split / "images" / f"d{index}_0.png")
            Image.fromarray(labels).save(tmp_path / split / "labels" / f"d{index}_0.png")
    return tmp_path


def segmentation(data: Path, how: Augmentation = STILL, scale: tuple[float, float] = (1.0, 1.0)) -> tasks.Segmentation:
    phase = Phase(steps=8, batch=40, crop=(32, 32), scale=scale)
    return tasks.Segmentation(tiny.SEGMENTATION, recipe(phases=(phase,), augmentation=how), data, CPU)


def greys(images: Tensor) -> Tensor:
    """The images' red, back in 0..255."""
    return (images[:, 0] * tiny.SEGMENTATION.std[0] + tiny.SEGMENTATION.mean[0]) * 255


def agreement(images: Tensor, labels: Tensor) -> float:
    """The share of labelled pixels that have the grey of their class."""
    known = torch.tensor([GREY[label] for label in range(3)])
    labelled = labels != 255
    nearest = (greys(images)[..., None] - known).abs().argmin(-1)
    return float((nearest == labels)[labelled].float().mean())


@pytest.mark.parametrize(
    "how",
    [
        STILL,
        replace(STILL, flip=True),
        replace(STILL, rotation_deg=40.0),
        replace(STILL, flip=True, rotation_deg=40.0, cutmix=1.0),
    ],
)
def test_images_and_labels_are_cropped_turned_mirrored_and_mixed_together(scenes: Path, how: Augmentation) -> None:
    images, labels = segmentation(scenes, how, (0.5, 1.5)).batch(0)
    assert images.shape == (40, 3, 32, 32) and labels.shape == (40, 32, 32)
    assert agreement(images, labels) > 0.97
    assert (labels == 255).any(), "crops at a scale of 0.5 are larger than the scene"
    assert {0, 1, 2} <= set(labels.unique().tolist())


def test_pixels_are_normalised_and_what_lies_outside_is_the_mean_colour(scenes: Path) -> None:
    images, labels = segmentation(scenes, scale=(0.25, 0.25)).batch(0)
    assert not images[(labels == 255)[:, None].expand_as(images)].any()
    # Class 2 is the grey 240: (240 / 255 - 0.485) / 0.229 in red, (240 / 255 - 0.406) / 0.225 in blue.
    for channel, expected in ((0, 1.992037), (2, 2.378562)):
        assert float(images[:, channel].max()) == pytest.approx(expected, abs=1e-4)


def test_cutmix_is_left_out_at_0_and_pastes_at_1(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[float] = []
    monkeypatch.setattr(augment, "cutmix", lambda images, labels, share, _: called.append(share) or (images, labels))
    segmentation(scenes).batch(0)
    assert called == []
    segmentation(scenes, replace(STILL, cutmix=0.75)).batch(0)
    assert called == [0.75]


def test_classes_are_weighed_by_their_pixels_in_training(scenes: Path) -> None:
    """Of 5 scenes' 19200 pixels, class 0 has 48 * (12 + 16 + 20 + 24 + 28) + 5 * 12 * 28 = 6480, class 1
    48 * (40 + 36 + 32 + 28 + 24) = 7680, class 2 5 * 36 * 28 = 5040: shares 0.3375, 0.4, 0.2625. With softness 1.1,
    1 / ln(1.1 + share) is 2.755538, 2.466303, 3.232885, of mean 2.765148."""
    assert segmentation(scenes).weights.tolist() == pytest.approx([0.996525, 0.891925, 1.169154], abs=1e-4)
    softer = tasks.Segmentation(tiny.SEGMENTATION, recipe(class_softness=2.0), scenes, CPU)
    assert softer.weights.tolist() == pytest.approx([1.001574, 0.971386, 1.041579], abs=1e-4)


def test_the_loss_of_every_exit_is_weighted_cross_entropy_without_void(scenes: Path) -> None:
    """Equal logits of three classes give ln 3. Probabilities 1/8, 2/8, 5/8 give ln 8 for a pixel of class 0 and ln 4
    for one of class 1, of weights 0.996525 and 0.891925: 1.752064 on average. The other pixels are void."""
    labels = torch.full((1, 4, 4), 255)
    labels[0, 0, :2] = torch.tensor([0, 1])
    logits = torch.tensor([1.0, 2.0, 5.0]).log().view(1, 3, 1, 1)
    found = segmentation(scenes).losses([torch.zeros(1, 3, 1, 1), logits], labels)
    assert found.tolist() == pytest.approx([1.098612, 1.752064], abs=1e-5)


def test_miou_by_hand(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1 says class 1 everywhere, exit 2 class 0, exit 3 the labels, exit 4 them with 1 and 2 exchanged.

    Without void, the 17600 pixels of 5 scenes are 44 * 100 + 5 * 8 * 28 = 5520 of class 0, 44 * 160 = 7040 of 1 and
    5040 of 2. A class that is never found scores 0: exit 1 has (7040 / 17600) / 3 = 13.3333 %, exit 2
    (5520 / 17600) / 3 = 10.4545 %. Exit 4 is right for class 0 alone. All borders are where upsampling by 4 keeps them.
    """
    task = segmentation(scenes)
    labels = task.held_out[1].long()
    by_label = torch.nn.functional.one_hot(labels.clamp(max=2)[:, ::4, ::4], 3).permute(0, 3, 1, 2).float()
    right = torch.nn.functional.pad(by_label, (0, 24 - 20, 0, 16 - 12))
    constant = [torch.eye(3)[label].view(1, 3, 1, 1).expand_as(right) for label in (1, 0)]
    monkeypatch.setattr(tasks, "SCORED_TOGETHER", 2)
    answers = Answers(constant[0], constant[1], right, right[:, [0, 2, 1]])
    found = task.score(as_network(answers))
    assert found == pytest.approx([13.3333, 10.4545, 100, 33.3333], abs=1e-4)
    assert [tuple(inputs.shape) for inputs in answers.seen] == [(2, 3, 64, 96)] * 2 + [(1, 3, 64, 96)]
    first = answers.seen[0]
    assert not first[:, :, 48:].any() and not first[:, :, :, 80:].any()  # padded by the mean colour
    assert float(first[0, 0, 47, 79]) == pytest.approx(1.992037, abs=1e-5)


# Pose


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Four people of LSP whose right wrist, alone among the joints, is under a bright dot at (70, 40) of 100x100."""
    (tmp_path / "images").mkdir()
    joints = np.zeros((14, 3, 4))
    joints[:, 2] = 1
    joints[6, :2] = np.array([70, 40])[:, None]  # LSP's right wrist, MPII's joint 10
    joints[13, :2] = np.array([50, 10])[:, None]
    joints[0, :2], joints[5, :2] = np.array([20, 90])[:, None], np.array([80, 90])[:, None]
    joints[[1, 2, 3, 4, 7, 8, 9, 10, 11, 12], 2] = 0
    for index in range(4):
        pixels = np.zeros((100, 100, 3), np.uint8)
        pixels[39:42, 69:72] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"im{index + 1:05d}.png")
    savemat(tmp_path / "joints.mat", {"joints": joints})
    return tmp_path


@pytest.fixture
def pose(people: Path, monkeypatch: pytest.MonkeyPatch) -> "Poses":
    read = tasks.datasets.people
    monkeypatch.setattr(tasks.datasets, "people", lambda directory, split: read(directory, "all"))
    return Poses(people)


class Poses:
    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(
        self, how: Augmentation = STILL, scale: tuple[float, float] = (1.0, 1.0), crop: int = 64
    ) -> tasks.Pose:
        phase = Phase(steps=8, batch=40, crop=(crop, crop), scale=scale)
        return tasks.Pose(tiny.POSE, recipe(phases=(phase,), augmentation=how), self.data, CPU)


def dots(images: Tensor) -> Tensor:
    """Where the bright dot of each image is: (N, 2), x and y."""
    mass = (images[:, 0] * tiny.POSE.std[0] + tiny.POSE.mean[0] - 0.01).clamp(min=0)
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in mass.shape[1:]), indexing="ij")
    total = mass.sum((1, 2))
    return torch.stack([(mass * columns).sum((1, 2)), (mass * rows).sum((1, 2))], 1) / total[:, None]


def test_a_person_is_cropped_as_when_it_is_served(pose: Poses) -> None:
    """The labelled joints span 60x80 pixels from (20, 10): a square of 80 * 1.25 = 100 around (50, 50), 64 px large.

    Pixel centres: (70 + 0.5) * 0.64 - 0.5 = 44.62 and (40 + 0.5) * 0.64 - 0.5 = 25.42.
    """
    images, joints = pose().batch(0)
    assert images.shape == (40, 3, 64, 64) and joints.shape == (40, 16, 3)
    expected = torch.tensor([44.62, 25.42, 1.0]).expand(40, 3)
    torch.testing.assert_close(joints[:, 10], expected, atol=0.5, rtol=0)  # the kept square is whole pixels large
    torch.testing.assert_close(dots(images), joints[:, 10, :2], atol=0.3, rtol=0)
    assert joints[:, 15, 2].eq(0).all()


def test_a_smaller_crop_shows_all_of_the_person(pose: Poses) -> None:
    """Half as large: (70 + 0.5) * 0.32 - 0.5 = 22.06 and 12.46."""
    images, joints = pose(crop=32).batch(0)
    expected = torch.tensor([22.06, 12.46]).expand(40, 2)
    torch.testing.assert_close(joints[:, 10, :2], expected, atol=0.3, rtol=0)
    torch.testing.assert_close(dots(images), joints[:, 10, :2], atol=0.3, rtol=0)


def test_mirrored_people_have_left_and_right_exchanged(pose: Poses) -> None:
    """The right wrist at x = 44.62 of 64 becomes a left wrist at 63 - 44.62 = 18.38."""
    images, joints = pose(replace(STILL, flip=True)).batch(0)
    mirrored = joints[:, 15, 2] > 0
    assert 10 <= mirrored.sum() <= 30
    assert torch.equal(joints[:, 10, 2] > 0, ~mirrored)
    assert joints[mirrored, 15, 0].tolist() == pytest.approx([18.38] * int(mirrored.sum()), abs=0.5)
    wrist = torch.where(mirrored[:, None], joints[:, 15, :2], joints[:, 10, :2])
    torch.testing.assert_close(dots(images), wrist, atol=0.3, rtol=0)
    assert joints[mirrored, 9, 2].all()  # the head top has no other side


def test_turned_zoomed_and_shifted_people_keep_their_joints(pose: Poses) -> None:
    how = replace(STILL, rotation_deg=40.0, shift=0.1, flip=True)
    images, joints = pose(how, (0.8, 1.2)).batch(0)
    wrist = torch.where(joints[:, 15, 2:] > 0, joints[:, 15, :2], joints[:, 10, :2])
    assert (joints[:, 10, 2] + joints[:, 15, 2]).all()
    torch.testing.assert_close(dots(images), wrist, atol=0.4, rtol=0)


def test_shifts_span_their_share_of_the_crop(pose: Poses) -> None:
    """A tenth of 64 pixels either way, in x and y."""
    joints = torch.cat(
        [task.batch(step)[1][:, 10, :2] for task in [pose(replace(STILL, shift=0.1))] for step in range(8)]
    )
    away = joints - torch.tensor([44.62, 25.42])
    assert 6.0 < float(away.max()) < 7.0 and -7.0 < float(away.min()) < -6.0
    assert (away[:, 0] - away[:, 1]).abs().max() > 6  # each by itself


def test_beyond_the_person_s_square_a_pixel_is_black(pose: Poses) -> None:
    """Black is -0.485 / 0.229 in red and -0.406 / 0.225 in blue."""
    images, _ = pose(scale=(0.5, 0.5)).batch(0)
    assert images[:, :, 0, 0].tolist() == [pytest.approx([-2.117904, -2.035714, -1.804444], abs=1e-2)] * 40


@pytest.mark.parametrize(("side", "deviation"), [(64, 2.0), (32, 1.0)])
def test_targets_are_as_wide_as_the_input(pose: Poses, side: int, deviation: float) -> None:
    """Two positions at the network's own size of 64 pixels, one at half of it."""
    joints = torch.zeros(1, 16, 3)
    joints[0, 10] = torch.tensor([16.0, 16.0, 1.0])
    target = losses.heatmaps(joints, (side // 4, side // 4), 4, deviation)
    task = pose()
    assert task.losses([target, target + 1], joints).tolist() == pytest.approx([0, 1 / 16])


def test_pck_by_hand(pose: Poses) -> None:
    """Exit 1 finds the wrist, exit 2 is 8 pixels off, exit 3 and 4 12 and 20; the torso is 50 pixels, a fifth is 10.

    Of 2 people in 2 batches one has no label at all, so the score is the other's.
    """
    task = pose()
    joints = torch.zeros(33, 16, 3)
    joints[:, 10] = torch.tensor([16.0, 24.0, 1.0])
    joints[:, 13, 2] = joints[:, 2, 2] = 1  # left shoulder and right hip, 50 pixels apart
    joints[:, 13, :2], joints[:, 2, :2] = torch.tensor([40.0, 0.0]), torch.tensor([40.0, 50.0])
    joints[32, 10, :2] = torch.tensor([60.0, 60.0])  # nobody finds the last one's
    task.held_out = torch.zeros(33, 3, 64, 64, dtype=torch.uint8), joints
    answers = []
    for off in (0, 2, 3, 5):
        maps = torch.zeros(33, 16, 16, 16)
        maps[:, 10, 6, 4 + off] = maps[:, 2, 12, 10] = maps[:, 13, 0, 10] = 1
        answers.append(maps)
    found = task.score(as_network(Answers(*answers)))
    shoulders = 33 * 2  # found to 2 pixels by every exit
    assert found == pytest.approx([100 * (shoulders + wrists) / 99 for wrists in (32, 32, 0, 0)])


def test_a_file_of_crops_keeps_the_skeleton(people: Path, tmp_path: Path) -> None:
    person = lsp.read(people, "all")[0]
    hands = Skeleton(joints=16, torsos=((0, 1), (2, 3)), head=(4, 5), unscored=(6,))
    part = crops.Part(side=64, room=1.0, quality=50)
    for skeleton in (person.skeleton, hands):
        crops.save(tmp_path / "crops.npz", {"val": (part, [replace(person, skeleton=skeleton)])})
        assert crops.load_skeleton(tmp_path / "crops.npz") == skeleton
    with np.load(tmp_path / "crops.npz") as held:
        np.savez(tmp_path / "old.npz", allow_pickle=False, **{name: held[name] for name in held if name != "skeleton"})
    assert crops.load_skeleton(tmp_path / "old.npz") == person.skeleton
    with pytest.raises(ValueError, match="the people have 2 skeletons; a file holds people of one"):
        crops.save(tmp_path / "two.npz", {"val": (part, [person, replace(person, skeleton=hands)])})


def test_another_file_than_one_of_crops_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").touch()
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=rf"{path} is no file of crops; give the data set's folder, or a file of"):
            crops.load(path, "train", 64, 1.0)
