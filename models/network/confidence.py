"""Confidence: from an exit's scores to the mask of what later exits compute (equation 2), at every feature size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.network.configs import Masking


def confidence(scores: Tensor, task: str) -> Tensor:
    """How sure an exit is of each position: (N, C, h, w) -> (N, 1, h, w).

    For segmentation the largest softmax probability, 0..1; for pose the largest heatmap value, about 0..1.
    """
    if task == "pose":
        return scores.amax(1, keepdim=True)
    # The largest softmax probability is 1 / sum(exp(logit - largest logit)).
    return (scores - scores.amax(1, keepdim=True)).exp().sum(1, keepdim=True).reciprocal()


def make_mask(scores: Tensor, masking: Masking, exit_index: int) -> Tensor:
    """The mask after an exit: M of equation 2 as bool (N, 1, h, w), True where active.

    `scores`: (N, C, h, w) of the exit after carry-over. A random mask depends on its size and `exit_index` alone.
    """
    threshold = masking.threshold
    match masking.criterion:
        case "max_probability":
            return confidence(scores, "segmentation") <= threshold
        case "max_score":
            return confidence(scores, "pose") >= threshold
        case "margin":
            first_two = scores.softmax(1).topk(2, 1).values
            return first_two[:, :1] - first_two[:, 1:] <= threshold
        case "entropy":
            log_probability = scores.log_softmax(1)
            return -(log_probability.exp() * log_probability).sum(1, keepdim=True) >= threshold
        case "top_k":
            flat = confidence(scores, "segmentation").flatten(1)
            inactive = flat.topk(round(threshold * flat.shape[1]), 1).indices
            return torch.ones_like(flat, dtype=torch.bool).scatter_(1, inactive, False).view_as(scores[:, :1])
        case "random":
            generator = torch.Generator().manual_seed(exit_index)
            drawn = torch.rand(1, 1, *scores.shape[2:], generator=generator) >= threshold
            return drawn.to(scores.device).expand_as(scores[:, :1])


class Masks:
    """A batch's masks between two exits, at every feature size.

    `finest`: bool (N, 1, h, w), True where active, at the size of the exit's scores. Other feature sizes take the
    nearest position, as the paper resizes the scores themselves.
    """

    def __init__(self, finest: Tensor) -> None:
        self.finest = finest
        self._at: dict[tuple[int, int], Tensor] = {}

    def at(self, like: Tensor) -> Tensor:
        """The masks for a feature map `like` (N, C, h, w): (N, 1, h, w) in its dtype, 1 where active."""
        size = (int(like.shape[-2]), int(like.shape[-1]))
        if size not in self._at:
            self._at[size] = F.interpolate(self.finest.to(like.dtype), size=size, mode="nearest")
        return self._at[size].to(like.dtype)
