"""Augmentation of a whole batch on its device: one affine resampling and one colour transform for each image.

Every random number is drawn on the CPU from a generator that is passed in, so that a batch depends on its seed alone.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.network.configs import Share
from models.validation import value

Range = tuple[float, float]
"""The smallest and the largest value."""


@value()
class Augmentation:
    """How much training images vary. `rotation_deg`, `shift` (a share of the crop): the largest amount in either
    direction. `colour`: the largest relative change of brightness, contrast and saturation. `tint`: the largest
    relative change of red, green and blue, each by itself. `gamma`: the exponent lies between 1 / gamma and gamma.
    `cutmix`: the probability of pasting a rectangle of another image (segmentation).
    """

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Annotated[float, Field(ge=0)] = 0.0
    flip: bool = True
    colour: Share = 0.4
    tint: Share = 0.0
    gamma: Annotated[float, Field(ge=1)] = 1.5
    cutmix: Share = 0.0


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """float32 (count,) on the CPU."""
    return torch.rand(count, generator=generator) * (high - low) + low


def zooms(how: Augmentation, scales: Range, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random linear maps, float32 (count, 2, 2), and whether each mirrors, bool (count,). A map turns an
    offset in the crop into one in the image, both in pixels from the crop's centre."""
    scale = torch.exp(uniform(generator, count, math.log(scales[0]), math.log(scales[1])))
    angle = uniform(generator, count, -how.rotation_deg, how.rotation_deg).deg2rad()
    mirrored = (torch.rand(count, generator=generator) < 0.5) & how.flip
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    sign = torch.where(mirrored, -1.0, 1.0)
    return torch.stack([cosine * sign, -sine, sine * sign, cosine], 1).view(count, 2, 2), mirrored


def place(linear: Tensor, size: tuple[int, int], crop: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random centres of crops, (count, 2), x and y in the image. In each direction, a crop lies inside the image if it
    fits, and covers the whole image if it does not."""
    count = len(linear)
    reach = (linear.abs() @ torch.tensor([crop[1], crop[0]], dtype=torch.float32)) / 2
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    low, high = torch.minimum(reach, extent - reach), torch.maximum(reach, extent - reach)
    return low + torch.rand(count, 2, generator=generator) * (high - low)


def grid(linear: Tensor, centre: Tensor, size: tuple[int, int], crop: tuple[int, int], device: torch.device) -> Tensor:
    """The sampling grid (count, h, w, 2) of `grid_sample` for crops around `centre` of images of `size`."""
    from_crop = torch.tensor([crop[1], crop[0]], dtype=torch.float32)
    to_image = torch.tensor([size[1], size[0]], dtype=torch.float32)
    theta = torch.cat([linear * from_crop, 2 * centre[:, :, None] - to_image[:, None]], 2) / to_image[:, None]
    return F.affine_grid(theta.to(device, non_blocking=True), [len(theta), 1, *crop], align_corners=False)


def colours(how: Augmentation, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random colour transforms of RGB in 0..1: matrices (count, 3, 3), offsets (count, 3) and exponents (count,)."""
    brightness, contrast, saturation = (uniform(generator, count, 1 - how.colour, 1 + how.colour) for _ in range(3))
    luma = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    matrix = saturation[:, None, None] * torch.eye(3) + (1 - saturation)[:, None, None] * luma
    matrix = matrix * (brightness * contrast)[:, None, None]
    offset = (0.45 * (1 - contrast))[:, None].expand(count, 3)
    limit = math.log(how.gamma)
    exponent = torch.exp(uniform(generator, count, -limit, limit))
    if how.tint:
        matrix = uniform(generator, 3 * count, 1 - how.tint, 1 + how.tint).view(count, 3, 1) * matrix
    return matrix, offset, exponent


def resample(
    images: Tensor,
    where: Tensor,
    how: Augmentation,
    *,
    normal: tuple[Tensor, Tensor],
    outside: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Samples images, uint8 (N, 3, H, W), at the grid `where`; returns float32 (N, 3, h, w), recoloured and normalised.

    `normal`: mean and standard deviation, (3,) each. `outside`: (3,), the normalised colour beyond the image.
    """
    matrix, offset, exponent = (t.to(images.device, non_blocking=True) for t in colours(how, len(images), generator))
    sampled = F.grid_sample(images.float() / 255, where, align_corners=False)
    inside = (where.abs() <= 1).all(-1)[:, None]
    recoloured = torch.einsum("nij,njhw->nihw", matrix, sampled) + offset[:, :, None, None]
    recoloured = recoloured.clamp(1e-4, 1) ** exponent[:, None, None, None]
    mean, std, beyond = (values[:, None, None] for values in (*normal, outside))
    return torch.where(inside, (recoloured - mean) / std, beyond)


def resample_labels(labels: Tensor, where: Tensor, void: int) -> Tensor:
    """Samples labels, uint8 (N, H, W), at the grid `where`, nearest; returns int64 (N, h, w), `void` outside of the
    image."""
    shifted = F.grid_sample(labels[:, None].float() - void, where, mode="nearest", align_corners=False)
    return shifted[:, 0].long() + void


def cutmix(images: Tensor, labels: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pastes a rectangle of the image before it in the batch into each image and its labels, with this probability.
    The rectangle's sides are a quarter to half of the image's."""
    count, (height, width), device = len(images), images.shape[-2:], images.device
    inside = (torch.rand(count, generator=generator) < probability).view(-1, 1, 1).to(device, non_blocking=True)
    for extent, shape in ((height, (count, -1, 1)), (width, (count, 1, -1))):
        side = uniform(generator, count, 0.25, 0.5) * extent
        start = torch.rand(count, generator=generator) * (extent - side)
        low, high = torch.stack([start, start + side])[:, :, None].to(device, non_blocking=True)
        position = torch.arange(extent, device=device)
        inside = inside & ((position >= low) & (position < high)).view(shape)
    return torch.where(inside[:, None], images.roll(1, 0), images), torch.where(inside, labels.roll(1, 0), labels)
