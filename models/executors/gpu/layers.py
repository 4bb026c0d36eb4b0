"""Convolutions ready for the GPU: batch norms folded in, channels padded, and the tiles that may compute them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.masked import MaskedConv2d, rbf

CHANNEL_MULTIPLE = 16
"""The fewest channels that a tensor core multiplies."""
IMAGE_CHANNELS = 8
"""The image's three channels are padded to these only: cuDNN alone convolves the image."""
MAX_COLUMNS = 64
"""The most output channels of one program."""
NEGLIGIBLE = 2.0**-24
"""Interpolation weights below this share of their sum are left out: they are beyond float's precision."""


def padded(channels: int) -> int:
    """Channels of a map that is to hold so many."""
    return -(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Tile:
    """How `kernels.convolve` cuts its work: `rows` x `columns` (output channels) a program, `depth` input channels at a
    time, by `warps` warps, with loads `stages` iterations ahead. `cached`: features are read in copies of 8 bytes,
    which the L1 cache serves, and not of 16, which it does not."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    cached: bool


@dataclass(frozen=True, eq=False)
class TritonConvolution:
    """A convolution with the batch norm after it, and with a ReLU after both if `relu` (after the residual, if any).

    For Triton's kernels. `weights`: (taps * in_channels, columns) in the network's dtype, times the batch norm's scale.
    `bias`: float32 (columns,), the convolution's, added before interpolation. `shift`: float32 (columns,), the batch
    norm's, added after it. `halo_weights`: float32 ((2 * reach + 1) ** 2,), those of equation 6 that are not
    negligible; None if the convolution is never masked. `reach`: the farthest that interpolation reads, in positions.

    For cuDNN, in the network's dtype. `cudnn_weight`: (out_channels, in_channels, k, k), channels last. `cudnn_bias`:
    (out_channels,). `cudnn_bias_and_shift`: (out_channels,).
    """

    cudnn_weight: Tensor
    cudnn_bias: Tensor
    cudnn_bias_and_shift: Tensor
    weights: Tensor
    bias: Tensor
    shift: Tensor
    halo_weights: Tensor | None
    reach: int
    stride: int
    relu: bool

    @property
    def out_channels(self) -> int:
        return self.cudnn_weight.shape[0]

    @property
    def in_channels(self) -> int:
        return self.cudnn_weight.shape[1]

    @property
    def kernel_size(self) -> int:
        return self.cudnn_weight.shape[2]

    @property
    def floor(self) -> float:
        """Results below this become this."""
        return 0.0 if self.relu else -math.inf

    def __str__(self) -> str:
        stride = f" / {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel_size}x{self.kernel_size}{stride} {self.in_channels} -> {self.out_channels}"


def layer_name(conv: TritonConvolution, x: Tensor) -> str:
    """The name under which a convolution is tuned: convolutions of one name take the same time for inputs of one shape
    (N, h, w, C), such as that of `x`."""
    return f"{conv} from {x.shape[1]}x{x.shape[2]}"


def fold(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    relu: bool,
    dtype: torch.dtype,
    segments: Sequence[int] = (),
    *,
    part: int | None = None,
) -> TritonConvolution:
    """`conv` with the batch norm `norm` folded in.

    `segments`: real channels of the maps that the input is put together from, each of which is padded; empty if the
    input is one map. `part`: take only what this one of the segments adds to the result; bias and shift come with
    part 0.
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
    multiple = IMAGE_CHANNELS if weight.shape[1] == 3 else CHANNEL_MULTIPLE
    weight = torch.cat([F.pad(each, (0, 0, 0, 0, 0, -each.shape[1] % multiple)) for each in parts], 1)
    weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, out - len(weight)))
    columns = -(-out // _columns(out)) * _columns(out)
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, out)
    halo_weights, reach = _halo_weights(conv) if isinstance(conv, MaskedConv2d) else (None, 0)
    return TritonConvolution(
        cudnn_weight=weight.to(dtype).to(memory_format=torch.channels_last),
        cudnn_bias=F.pad(bias, (0, out - len(bias))).to(dtype),
        cudnn_bias_and_shift=F.pad(bias + shift, (0, out - len(bias))).to(dtype),
        weights=F.pad(matrix, (0, columns - out)).to(dtype).contiguous(),
        bias=F.pad(bias, (0, columns - len(bias))).float(),
        shift=F.pad(shift, (0, columns - len(shift))).float(),
        halo_weights=halo_weights,
        reach=reach,
        stride=conv.stride[0],
        relu=relu,
    )


def _halo_weights(conv: MaskedConv2d) -> tuple[Tensor, int]:
    """`halo_weights` and `reach`, see `TritonConvolution`."""
    taps, norm = rbf(conv.Lambda.detach().double(), conv.window)
    weights = taps.double()[:, None] * taps.double() / norm.double()
    centre = conv.window // 2
    weights[centre, centre] = 0
    matters = (weights > NEGLIGIBLE * weights.sum()).nonzero()
    reach = int((matters - centre).abs().max()) if len(matters) else 0
    cut = slice(centre - reach, centre + reach + 1)
    return weights[cut, cut].float().flatten().contiguous(), reach


def _columns(out_channels: int) -> int:
    """Output channels of one program."""
    return min(power_of_two(out_channels), MAX_COLUMNS)


def candidate_tiles(conv: TritonConvolution, positions: int) -> list[Tile]:
    """The tiles worth trying where the result has so many positions; the first is a fair guess for any GPU."""
    columns = _columns(conv.out_channels)
    depth = next(d for d in (64, 32, 16) if conv.in_channels % d in (0, 16, 32) and conv.in_channels >= d)
    programs = -(-positions // 128) * -(-conv.out_channels // columns)
    large, small = Tile(128, columns, depth, 4, 4, cached=False), Tile(64, columns, depth, 4, 4, cached=False)
    first, second = (large, small) if programs >= 256 else (small, large)
    return [first, second, replace(large, warps=8, stages=3), replace(large, cached=True)]
