"""Losses of every exit, to be summed (equation 1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def class_weights(labels: Tensor, classes: int, void: int, softness: float) -> Tensor:
    """float32 (classes,): 1 / ln(softness + share), mean 1 over pixels; rare classes weigh more (Paszke et al., ENet).

    `labels`: integers of any shape but (). The smaller `softness` (> 1), the more the rare classes weigh.
    """
    parts = (part[part != void].long() for part in torch.split(labels, 64))  # int64 takes 8 bytes a pixel, so by parts
    counts = torch.stack([torch.bincount(part, minlength=classes) for part in parts]).sum(0).float()
    share = counts / counts.sum()
    weights = 1 / torch.log(softness + share)
    return weights / (weights * share).sum()


def segmentation(scores: Sequence[Tensor], labels: Tensor, weights: Tensor, void: int) -> Tensor:
    """Weighted cross-entropy of each exit: (exits,). `scores`: (N, C, h, w) logits, compared at the size of `labels`,
    int64 (N, H, W), after bilinear upsampling."""
    size = labels.shape[-2:]
    return torch.stack(
        [
            F.cross_entropy(
                F.interpolate(logits.float(), size, mode="bilinear", align_corners=False),
                labels,
                weights,
                ignore_index=void,
            )
            for logits in scores
        ]
    )


def distilled_segmentation(scores: Sequence[Tensor], taught: Tensor) -> Tensor:
    """Cross-entropy of each exit with the probabilities of a teacher's last exit: (exits,). It is 0 for the last exit,
    because the teacher is the mean of the same weights. `scores`, `taught`: (N, C, h, w) logits."""
    wanted = taught.detach().float().softmax(1)
    found = [-(wanted * logits.float().log_softmax(1)).sum(1).mean() for logits in scores[:-1]]
    return torch.stack([*found, wanted.new_zeros(())])


def distilled_pose(scores: Sequence[Tensor], taught: Tensor) -> Tensor:
    """Mean squared distance of each exit's heatmaps from a teacher's last ones: (exits,), 0 for the last exit."""
    wanted = taught.detach().float().clamp(min=0)
    lowest = torch.where(wanted > 0, -torch.inf, 0.0)
    found = [((torch.maximum(heatmaps.float(), lowest) - wanted) ** 2).mean() for heatmaps in scores[:-1]]
    return torch.stack([*found, wanted.new_zeros(())])


REACH = 3.0
"""A joint's target ends so many standard deviations from it, as in HRNet's own code (Sun et al., CVPR 2019)."""


def heatmaps(joints: Tensor, size: tuple[int, int], stride: int, sigma: float) -> Tensor:
    """Gaussian targets float32 (N, J, h, w) of height 1, 0 beyond `REACH`. `joints` (N, J, 3): x, y in pixels of the
    input."""
    height, width = size
    x, y = (joints[:, :, :2] / stride).unbind(-1)
    dx = torch.arange(width, device=joints.device) - x[:, :, None]
    dy = torch.arange(height, device=joints.device) - y[:, :, None]
    squares = (dy[:, :, :, None] ** 2 + dx[:, :, None, :] ** 2) / sigma**2
    return torch.exp(-squares / 2) * (squares <= REACH**2)


def pose(scores: Sequence[Tensor], joints: Tensor, stride: int, sigma: float) -> Tensor:
    """Mean squared error of each exit's heatmaps: (exits,). Joints of weight 0 (`joints[..., 2]`) do not count.

    Unlike in the paper, values below 0 are not an error where the target is 0, since they also say that no joint is
    there. If they were, the background would be noise around 0, above the masks' threshold (0.002) at half of the
    positions.
    """
    size = (int(scores[0].shape[-2]), int(scores[0].shape[-1]))
    target = heatmaps(joints, size, stride, sigma)
    weight = joints[:, :, 2, None, None]
    lowest = torch.where(target > 0, -torch.inf, 0.0)
    return torch.stack([(weight * (torch.maximum(found.float(), lowest) - target) ** 2).mean() for found in scores])
