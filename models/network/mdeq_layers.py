"""The layers of an MDEQ: f, which is applied again and again, and the first convolution of the head.

Modules have the names of the released checkpoints.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.mdeq_configs import MdeqConfig

BRANCHES = 4


class WeightNormConv2d(nn.Conv2d):
    """A convolution whose weight is g * v / |v|, per output channel (Salimans and Kingma, 2016).

    `weight` is computed when it is read; without gradients it is computed again only if a parameter has changed.
    """

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2, bias=False)
        initial = self.weight.detach()
        del self.weight
        self.weight_v = nn.Parameter(initial)
        self.weight_g = nn.Parameter(_norms(initial))
        self._folded: tuple[object, Tensor] | None = None

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name == "weight" and "weight_g" in self._parameters:
            return self._weight()
        return super().__getattr__(name)

    def _weight(self) -> Tensor:
        v, g = self.weight_v, self.weight_g
        if torch.is_grad_enabled() or v.is_inference():  # the latter have no version counter
            return v * (g / _norms(v))
        key = (v.data_ptr(), v._version, g.data_ptr(), g._version)
        if self._folded is None or self._folded[0] != key:
            self._folded = key, v * (g / _norms(v))
        return self._folded[1]


class Block(nn.Module):
    """The residual block of one branch. ReLU stands before the last norm, and the injection is added before the second
    one."""

    def __init__(self, channels: int, expansion: int, groups: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.conv1 = WeightNormConv2d(channels, wide, 3)
        self.gn1 = nn.GroupNorm(groups, wide)
        self.conv2 = WeightNormConv2d(wide, channels, 3)
        self.gn2 = nn.GroupNorm(groups, channels)
        self.gn3 = nn.GroupNorm(groups, channels)

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """z: (N, channels, h, w). u: the injection, of the same shape, or None for zeros."""
        x = self.conv2(F.relu(self.gn1(self.conv1(z))))
        if u is not None:
            x = x + u
        found: Tensor = self.gn3(F.relu(self.gn2(x) + z))
        return found


class Branch(nn.Module):
    """One branch of f. The released code allows several blocks; every configuration has one."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        found: Tensor = self.blocks[0](z, u)
        return found


class NormedConv(nn.Module):
    """A convolution and its group norm."""

    def __init__(self, conv: nn.Conv2d, groups: int) -> None:
        super().__init__()
        self.conv = conv
        self.gnorm = nn.GroupNorm(groups, conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.gnorm(self.conv(x))
        return found


class Fusion(nn.Module):
    """From branch j to branch i: the branch as it is, a 1x1 and nearest upsampling, or 3x3 of stride 2."""

    net: nn.Module

    def __init__(self, config: MdeqConfig, i: int, j: int) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.scale = 2 ** max(0, j - i)
        if j > i:
            self.net = NormedConv(nn.Conv2d(channels[j], channels[i], 1, bias=False), groups)
        elif j < i:
            widths = [*[channels[j]] * (i - j), channels[i]]
            self.net = nn.ModuleList(
                NormedConv(nn.Conv2d(before, after, 3, 2, 1, bias=False), groups) for before, after in pairwise(widths)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.scale > 1:
            return F.interpolate(self.net(x), scale_factor=self.scale, mode="nearest")
        if not isinstance(getattr(self, "net", None), nn.ModuleList):
            return x
        for number, layer in enumerate(self.net.children()):
            x = layer(F.relu(x) if number else x)
        return x


class EquilibriumLayer(nn.Module):
    """f(z, u)."""

    def __init__(self, config: MdeqConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.branches = nn.ModuleList(Branch(Block(width, config.expansion, groups)) for width in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(Fusion(config, i, j) for j in range(BRANCHES)) for i in range(BRANCHES)
        )
        self.post_fuse_layers = nn.ModuleList(
            NormedConv(WeightNormConv2d(width, width, 1), groups // 2) for width in channels
        )

    def forward(self, z: Sequence[Tensor], u: Tensor) -> list[Tensor]:
        """z: a tensor (N, channels, h, w) for each branch, the finest first. u: the injection of the finest branch."""
        injections = (u, *[None] * (BRANCHES - 1))
        xs = [branch(x, injection) for branch, x, injection in zip(self.branches, z, injections, strict=True)]
        found = []
        for post, fusions in zip(self.post_fuse_layers, self.fuse_layers, strict=True):
            assert isinstance(fusions, nn.ModuleList)
            fused = torch.stack([fuse(x) for fuse, x in zip(fusions, xs, strict=True)]).sum(0)
            found.append(post(F.relu(fused)))
        return found


class BranchwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of branches that are upsampled and concatenated.

    A 1x1 convolution and bilinear upsampling commute, so each branch is convolved at its own size, and the results are
    upsampled and added. That is exact but for rounding, and takes a seventh of the multiply-adds.
    """

    def __init__(self, branch_channels: tuple[int, ...], out: int) -> None:
        super().__init__(sum(branch_channels), out, 1)
        self.branch_channels = branch_channels

    def forward(self, xs: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """xs: (N, c, h, w) for each branch, the finest first. Returns (N, out, h, w) at the size of the first."""
        weights = torch.split(self.weight, list(self.branch_channels), dim=1)
        finest, *coarser = (F.conv2d(x, weight) for x, weight in zip(xs, weights, strict=True))
        for x in coarser:
            finest = finest + F.interpolate(x, finest.shape[2:], mode="bilinear", align_corners=True)
        assert self.bias is not None
        return finest + self.bias[:, None, None]

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of an output of that size."""
        inputs = sum(
            channels * (height >> branch) * (width >> branch) for branch, channels in enumerate(self.branch_channels)
        )
        return self.out_channels * inputs


def _norms(weight: Tensor) -> Tensor:
    """The norm of every output channel's weights: (out, in, k, k) -> (out, 1, 1, 1)."""
    norms: Tensor = weight.flatten(1).norm(dim=1)[:, None, None, None]
    return norms
