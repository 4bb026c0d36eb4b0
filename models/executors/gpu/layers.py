"""Convolutions ready for the GPU: batch norms folded in, channels padded, and the tiles that compute them.

Imports the network's convolutions; runs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.masked import MaskedConv2d, rbf

GRANULE = 16  # channels: the least that a tensor core multiplies
IMAGE_CHANNELS = 8
NEGLIGIBLE = 2.0**-24  # of the sum of an interpolation's weights: below a float's resolution


def padded(channels: int) -> int:
    return -(-channels // GRANULE) * GRANULE


@dataclass(frozen=True)
class Tile:
    """What one program of `convolve` computes (rows by channels), in steps of `depth`, and how.

    `cached`: it reads features in copies of 8 bytes, which the L1 cache serves, and not of 16, which it does not.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    cached: bool


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution with its batch norm folded in, and whether a ReLU follows (after a residual, if one is given).

    `bias` goes before the interpolation, `shift` after it: float32. `weight`: (out, channels, k, k) for cuDNN, with
    `dense_bias`, which is both, and `raw_bias`, the former.
    `matrix`: (k * k * channels, columns) for our kernel. `stencil`: float32 ((2 * reach + 1) ** 2,), the weights of
    equation 6 without those too small to matter; None where nothing is ever masked.
    """

    weight: Tensor
    dense_bias: Tensor
    raw_bias: Tensor
    matrix: Tensor
    bias: Tensor
    shift: Tensor
    stencil: Tensor | None
    reach: int
    stride: int
    relu: bool

    @property
    def out(self) -> int:
        return self.weight.shape[0]

    @property
    def floor(self) -> float:
        """What results are cut off at."""
        return 0.0 if self.relu else -math.inf

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    @property
    def kernel(self) -> int:
        return self.weight.shape[2]

    def __str__(self) -> str:
        stride = f" / {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{stride} {self.channels} -> {self.out}"


def fold(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    relu: bool,
    dtype: torch.dtype,
    segments: Sequence[int] = (),
    *,
    part: int | None = None,
) -> Layer:
    """`segments`: real channels of the maps that the input is put together from, each padded; none: it is one map.

    `part`: only what this one of the segments adds to the result, bias and shift with the first.
    An image has its three channels padded to `IMAGE_CHANNELS` only: it is convolved by cuDNN alone.
    """
    weight, bias = conv.weight.detach().double(), torch.zeros_like(conv.weight[:, 0, 0, 0], dtype=torch.float64)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    shift = torch.zeros_like(bias)
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.detach().double() - norm.running_mean.double() * scale
        weight, bias = weight * scale[:, None, None, None], bias * scale
    out = padded(len(weight))
    parts = torch.split(weight, list(segments or (weight.shape[1],)), 1)
    if part is not None:
        parts = parts[part : part + 1]
        bias, shift = (bias, shift) if part == 0 else (0 * bias, 0 * shift)
    granule = IMAGE_CHANNELS if weight.shape[1] == 3 else GRANULE
    weight = torch.cat([F.pad(each, (0, 0, 0, 0, 0, -each.shape[1] % granule)) for each in parts], 1)
    weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, out - len(weight)))
    columns = -(-out // block(out)) * block(out)
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, out)
    stencil, reach = None, 0
    if isinstance(conv, MaskedConv2d):
        stencil, reach = _stencil(conv)
    return Layer(
        weight.to(dtype).to(memory_format=torch.channels_last),
        F.pad(bias + shift, (0, out - len(bias))).to(dtype),
        F.pad(bias, (0, out - len(bias))).to(dtype),
        F.pad(matrix, (0, columns - out)).to(dtype).contiguous(),
        F.pad(bias, (0, columns - len(bias))).float(),
        F.pad(shift, (0, columns - len(shift))).float(),
        stencil,
        reach,
        conv.stride[0],
        relu,
    )


def _stencil(conv: MaskedConv2d) -> tuple[Tensor, int]:
    taps, norm = rbf(conv.Lambda.detach().double(), conv.window)
    weights = taps.double()[:, None] * taps.double() / norm.double()
    centre = conv.window // 2
    weights[centre, centre] = 0
    matters = (weights > NEGLIGIBLE * weights.sum()).nonzero()
    reach = int((matters - centre).abs().max()) if len(matters) else 0
    cut = slice(centre - reach, centre + reach + 1)
    return weights[cut, cut].float().flatten().contiguous(), reach


def block(out: int) -> int:
    """Output channels of one program."""
    return min(power_of_two(out), 64)


def power_of_two(number: int) -> int:
    """The least that is not below `number`."""
    return 1 << (number - 1).bit_length()


def tiles(layer: Layer, capacity: int) -> list[Tile]:
    """What is worth trying for a map of `capacity` positions; the first is a fair guess for any GPU."""
    columns = block(layer.out)
    depth = next(d for d in (64, 32, 16) if layer.channels % d in (0, 16, 32) and layer.channels >= d)
    programs = -(-capacity // 128) * -(-layer.out // columns)
    large, small = Tile(128, columns, depth, 4, 4, cached=False), Tile(64, columns, depth, 4, 4, cached=False)
    first, second = (large, small) if programs >= 256 else (small, large)
    return [first, second, replace(large, warps=8, stages=3), replace(large, cached=True)]
