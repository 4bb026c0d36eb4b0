"""The tasks of training, segmentation and pose: their batches, losses and scores.

A task holds its whole data set on the device, so that no step waits for loading: 25 GB for Cityscapes, 8 GB for MPII.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data import datasets
from models.data.files import in_parallel
from models.data.people import Skeleton, crop
from models.data.scenes import VOID, Scene
from models.evaluation import scores
from models.imaging.geometry import MULTIPLE, STRIDE
from models.imaging.postprocess import peaks
from models.network.configs import ModelConfig
from models.network.network import Network
from models.training import augment, crops, fused, losses
from models.training.recipe import Recipe

SIGMA = 2.0
"""The deviation of a target's Gaussian, in positions of a full-size input's heatmap; it shrinks with the input."""
ROOM = 1.28
"""The crop that is kept of each person is so many times as wide as the person's square, which leaves room for zooming
out, turning and shifting."""

SCORED_TOGETHER = 32
"""How many images of CamVid's size are scored at once; fewer if they are larger, with the same number of pixels."""
SCORED_PIXELS = SCORED_TOGETHER * 360 * 480


class Task(Protocol):
    examples: int

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs float (N, 3, H, W) and targets of a step; depends on the recipe's seed and `step` alone."""

    def losses(self, found: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The loss of each exit: (exits,)."""

    def distilled(self, found: Sequence[Tensor], taught: Tensor) -> Tensor:
        """The loss of each exit against the last exit of a teacher, whose scores are `taught`: (exits,)."""

    def score(self, network: Network) -> list[float]:
        """The score of each exit in percent (mIoU, PCK@0.2) on what was held out."""


def load(config: ModelConfig, recipe: Recipe, directory: Path, device: torch.device) -> Task:
    return (Pose if config.task == "pose" else Segmentation)(config, recipe, directory, device)


class Sampler:
    """Chooses the examples of a step. Every epoch takes all of them in a new order, which depends on the seed."""

    def __init__(self, examples: int, recipe: Recipe) -> None:
        self.examples, self.recipe = examples, recipe
        self.order: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        first = self.recipe.images_before(step)
        positions = range(first, first + self.recipe.phase_at(step).batch)
        return torch.stack([self._order(position // self.examples)[position % self.examples] for position in positions])

    def generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self.order:
            generator = torch.Generator().manual_seed((self.recipe.seed + 1) * 7_000_003 + epoch)
            recent = {known: order for known, order in self.order.items() if known >= epoch - 1}
            self.order = recent | {epoch: torch.randperm(self.examples, generator=generator)}
        return self.order[epoch]


def compared_by(device: torch.device) -> Callable[[Sequence[Tensor], Tensor, Tensor, int], Tensor]:
    """The fastest function that computes `losses.segmentation` on a device."""
    return fused.gpu_loss.segmentation if device.type == "cuda" else losses.segmentation


class Segmentation:
    """CamVid or Cityscapes: random crops of the scenes, class-weighted cross-entropy, mIoU."""

    def __init__(self, config: ModelConfig, recipe: Recipe, directory: Path, device: torch.device) -> None:
        train, held_out = scenes(recipe, directory)
        self.recipe, self.classes = recipe, config.outputs
        self.mean, self.std = (torch.tensor(values, device=device) for values in (config.mean, config.std))
        self.images, self.labels = _scenes(train, self.classes, device)
        self.held_out = _scenes(held_out, self.classes, device)
        self.examples = len(train)
        self.sampler = Sampler(len(train), recipe)
        self.weights = losses.class_weights(self.labels, self.classes, VOID, recipe.class_softness)
        self.compare = compared_by(device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        how, phase, device = self.recipe.augmentation, self.recipe.phase_at(step), self.images.device
        generator = self.sampler.generator(step)
        chosen = self.sampler(step).to(device, non_blocking=True)
        size = (int(self.images.shape[2]), int(self.images.shape[3]))
        linear, _ = augment.zooms(how, phase.scale, len(chosen), generator)
        centre = augment.place(linear, size, phase.crop, generator)
        where = augment.grid(linear, centre, size, phase.crop, device)
        padding = torch.zeros_like(self.mean)
        images = augment.resample(
            self.images[chosen], where, how, normal=(self.mean, self.std), outside=padding, generator=generator
        )
        labels = augment.resample_labels(self.labels[chosen], where, VOID)
        return augment.cutmix(images, labels, how.cutmix, generator) if how.cutmix else (images, labels)

    def losses(self, found: Sequence[Tensor], targets: Tensor) -> Tensor:
        return self.compare(found, targets, self.weights, VOID)

    def distilled(self, found: Sequence[Tensor], taught: Tensor) -> Tensor:
        return losses.distilled_segmentation(found, taught)

    @torch.inference_mode()
    def score(self, network: Network) -> list[float]:
        images, labels = self.held_out
        height, width = images.shape[-2:]
        confusion = torch.zeros(network.config.exits, self.classes, self.classes, dtype=torch.float64)
        together = min(SCORED_TOGETHER, max(SCORED_PIXELS // (height * width), 1))
        for start in range(0, len(images), together):
            rows = slice(start, start + together)
            inputs = (images[rows].float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]
            inputs = torch.nn.functional.pad(inputs, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
            for exit_index, logits in enumerate(network(inputs)):
                large = torch.nn.functional.interpolate(logits.float(), scale_factor=STRIDE, mode="bilinear")
                found = large[:, :, :height, :width].argmax(1)
                confusion[exit_index] += scores.confusion(found, labels[rows], self.classes, VOID).cpu()
        return [100 * float(scores.iou(matrix).nanmean()) for matrix in confusion]


def scenes(recipe: Recipe, directory: Path) -> tuple[list[Scene], list[Scene]]:
    """The scenes to train on, and those that are scored: the drives in `hold_out`, or split `val` if it is empty.

    Raises ValueError if a drive in `hold_out` is missing, or if no other drive is left.
    """
    found = [scene for split in recipe.splits for scene in datasets.scenes(directory, split)]
    drives = {scene.drive for scene in found}
    if unknown := set(recipe.hold_out) - drives:
        raise ValueError(f"hold_out names {', '.join(sorted(unknown))}; the drives are {', '.join(sorted(drives))}")
    train = [scene for scene in found if scene.drive not in recipe.hold_out]
    if not train:
        raise ValueError(f"hold_out names all drives, {', '.join(sorted(drives))}; leave one to train on")
    return train, [scene for scene in found if scene.drive in recipe.hold_out] or datasets.scenes(directory, "val")


def _scenes(scenes: Sequence[Scene], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, H, W) and labels uint8 (N, H, W). Raises ValueError if sizes differ, or if the data set has
    other classes."""
    height, width = scenes[0].labels_for(classes).shape
    images = torch.empty(len(scenes), 3, height, width, dtype=torch.uint8, device=device)
    labels = torch.empty(len(scenes), height, width, dtype=torch.uint8, device=device)

    def place(index: int) -> None:  # one by one, so that a large data set is not in memory twice
        image, label_map = scenes[index].example(classes)
        if label_map.shape != (height, width):
            raise ValueError(
                f"{scenes[index].image_path} is {image.shape[0]}x{image.shape[1]}, but the first image is "
                f"{height}x{width}; training needs one size"
            )
        images[index] = torch.tensor(image).permute(2, 0, 1)
        labels[index] = torch.from_numpy(label_map)

    in_parallel(place, range(len(scenes)))
    return images, labels


class Pose:
    """LSP or MPII: turned, zoomed and mirrored crops around each person, heatmaps, PCK@0.2.

    `directory`: the data set's folder, or a file of crops, see crops.py.
    """

    def __init__(self, config: ModelConfig, recipe: Recipe, directory: Path, device: torch.device) -> None:
        self.config, self.recipe = config, recipe
        self.mean, self.std = (torch.tensor(values, device=device) for values in (config.mean, config.std))
        self.side = round(config.size[0] * ROOM)
        self.images, self.joints, self.skeleton = _people(directory, recipe.splits, self.side, ROOM, device)
        self.held_out = _people(directory, ("val",), config.size[0], 1.0, device)[:2]
        self.examples = len(self.images)
        self.sampler = Sampler(self.examples, recipe)
        self.swapped = torch.arange(config.outputs)
        for a, b in config.flip_pairs:
            self.swapped[[a, b]] = torch.tensor([b, a])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        how, phase, device = self.recipe.augmentation, self.recipe.phase_at(step), self.images.device
        generator = self.sampler.generator(step)
        chosen = self.sampler(step)
        linear, mirrored = augment.zooms(how, phase.scale, len(chosen), generator)
        linear = linear * (self.side / ROOM / phase.crop[0])
        shift = augment.uniform(generator, 2 * len(chosen), -how.shift, how.shift).view(-1, 2)
        centre = self.side * (0.5 + shift / ROOM)
        where = augment.grid(linear, centre, (self.side, self.side), phase.crop, device)
        black = -self.mean / self.std
        chosen_here = chosen.to(device, non_blocking=True)
        images = augment.resample(
            self.images[chosen_here], where, how, normal=(self.mean, self.std), outside=black, generator=generator
        )
        joints = _placed(self.joints[chosen], linear, centre, phase.crop)
        joints = torch.where(mirrored[:, None, None], joints[:, self.swapped], joints)
        return images, joints.to(device, non_blocking=True)

    def losses(self, found: Sequence[Tensor], targets: Tensor) -> Tensor:
        return losses.pose(found, targets, STRIDE, SIGMA * found[0].shape[-1] * STRIDE / self.config.size[1])

    def distilled(self, found: Sequence[Tensor], taught: Tensor) -> Tensor:
        return losses.distilled_pose(found, taught)

    @torch.inference_mode()
    def score(self, network: Network) -> list[float]:
        images, joints = self.held_out
        right: list[list[Tensor]] = [[] for _ in range(network.config.exits)]
        for start in range(0, len(images), SCORED_TOGETHER):
            rows = slice(start, start + SCORED_TOGETHER)
            inputs = (images[rows].float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]
            for exit_index, maps in enumerate(network(inputs)):
                points = torch.from_numpy(peaks(maps.float().cpu().numpy())) * STRIDE
                right[exit_index].append(scores.pck(points, joints[rows], self.skeleton))
        return [100 * float(torch.cat(parts).nanmean()) for parts in right]


def _placed(joints: Tensor, linear: Tensor, centre: Tensor, crop_size: tuple[int, int]) -> Tensor:
    """The joints (N, J, 3) in the crops; those outside lose their label."""
    size = torch.tensor([crop_size[1], crop_size[0]], dtype=torch.float32)
    offset = joints[:, :, :2] + 0.5 - centre[:, None]
    points = offset @ torch.linalg.inv(linear).transpose(1, 2) + size / 2 - 0.5
    inside = ((points >= 0) & (points < size)).all(-1)
    return torch.cat([points, (joints[:, :, 2] * inside)[:, :, None]], 2)


def _people(
    directory: Path, splits: Sequence[str], side: int, room: float, device: torch.device
) -> tuple[Tensor, Tensor, Skeleton]:
    """Crops uint8 (N, 3, side, side) on the device, their joints float32 (N, J, 3) in pixels of the crop on the CPU,
    and the skeleton."""
    if directory.is_file():
        found = [example for split in splits for example in crops.load(directory, split, side, room)]
        count, skeleton = len(found), crops.load_skeleton(directory)
    else:
        people = [person for split in splits for person in datasets.people(directory, split)]
        count, skeleton = len(people), people[0].skeleton

    def cut(index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        return found[index] if directory.is_file() else crop(people[index], side, room)

    images = torch.empty(count, 3, side, side, dtype=torch.uint8, device=device)

    def place(index: int) -> NDArray[np.float32]:
        image, joints = cut(index)
        images[index] = torch.tensor(image).permute(2, 0, 1)
        return joints

    return images, torch.from_numpy(np.stack(in_parallel(place, range(count)))), skeleton
