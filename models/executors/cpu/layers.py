"""Convolutions ready for the CPU: batch norms folded into their weights, interpolation weights worked out."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.executors.cpu.library import Floats
from models.network.masked import MaskedConv2d, rbf

NEGLIGIBLE = 1e-10
"""Interpolation weights below this are 0: they are beyond float's precision, and the smallest are denormal and slow."""


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with the batch norm after it.

    `name`: its module path. `weights`: float32 (taps, in, out), times the batch norm's scale. `bias`: float32 (out,),
    the convolution's, added before interpolation. `shift`: float32 (out,), the batch norm's, added after it.
    `halo_weights`: float32 (distance classes,), see `distance_classes`; None if the convolution is never masked.
    `weight_steps`: float32 (out,), the value of a step if the weights are quantised to -127, .., 127: the same for all
    weights of an output channel, even if the input channels are split among several ops.
    """

    name: str
    weights: Floats
    bias: Floats | None
    shift: Floats | None
    halo_weights: Floats | None
    weight_steps: Floats

    def quantised(self) -> NDArray[np.int8]:
        """The weights in steps, int8 (taps, in, out)."""
        return np.rint(self.weights.astype(np.float64) / self.weight_steps).clip(-127, 127).astype(np.int8)


def fold(conv: nn.Module, norm: nn.Module | None = None, name: str = "") -> Convolution:
    """`conv` with the batch norm `norm` folded in."""
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    shift = None
    if norm is not None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.detach().double() - norm.running_mean.double() * scale
        weight = weight * scale[:, None, None, None]
        bias = None if bias is None else bias * scale
    out, channels, height, width = weight.shape
    halo_weights = None
    if isinstance(conv, MaskedConv2d):
        distances = torch.tensor(distance_classes(conv.window), dtype=torch.float64)
        halo_weights = torch.exp(-(conv.Lambda.detach().double() ** 2) * distances) / rbf(conv.Lambda, conv.window)[1]
        halo_weights[halo_weights < NEGLIGIBLE] = 0
    weight = weight.permute(2, 3, 1, 0).reshape(height * width, channels, out)
    weights = _floats(weight)
    steps = weight_steps(weights)
    return Convolution(name, weights, _optional(bias), _optional(shift), _optional(halo_weights), steps)


def weight_steps(weights: Floats) -> Floats:
    """The value of a step of quantised weights, float32 (out,), so that the largest of each output channel is 127."""
    largest = np.abs(weights).max((0, 1))
    return np.where(largest > 0, largest / 127, 1).astype(np.float32)


def distance_classes(window: int) -> list[int]:
    """The squared distances from the centre that occur in a window, in ascending order. All positions of one class have
    the same interpolation weight (equation 6)."""
    reach = range(window // 2 + 1)
    return sorted({y * y + x * x for y in reach for x in reach} - {0})


def _floats(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _optional(tensor: torch.Tensor | None) -> Floats | None:
    return None if tensor is None else _floats(tensor)
