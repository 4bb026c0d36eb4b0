"""HRNet's blocks, modules and transitions (Sun et al., CVPR 2019; Wang et al., TPAMI 2020).

Parameters have the names of the released weights. A `Make` makes every convolution and decides whether it is masked.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.network.adpc_configs import Backbone
from models.network.confidence import Masks
from models.network.masked import Chain, MaskAware

Make = Callable[..., nn.Module]
"""make(in_channels, out_channels, kernel, stride, bias) -> a convolution, padded to keep (or halve) the size."""


class BasicBlock(MaskAware):
    """Two 3x3 convolutions and a residual connection: (N, C, h, w) -> the same shape."""

    def __init__(self, make: Make, channels: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = make(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv2 = make(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels, momentum=momentum)

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x, masks)))
        return F.relu(self.bn2(self.conv2(y, masks)) + x)


class Bottleneck(MaskAware):
    """1x1, 3x3 and 1x1 convolutions and a residual connection: (N, C, h, w) -> (N, 4 * planes, h, w)."""

    def __init__(self, make: Make, channels: int, planes: int, momentum: float) -> None:
        super().__init__()
        out = 4 * planes
        self.conv1 = make(channels, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes, momentum=momentum)
        self.conv2 = make(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes, momentum=momentum)
        self.conv3 = make(planes, out, 1)
        self.bn3 = nn.BatchNorm2d(out, momentum=momentum)
        self.downsample = None
        if channels != out:
            self.downsample = Chain(make(channels, out, 1), nn.BatchNorm2d(out, momentum=momentum))

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x, masks)))
        y = F.relu(self.bn2(self.conv2(y, masks)))
        y = self.bn3(self.conv3(y, masks))
        return F.relu(y + (x if self.downsample is None else self.downsample(x, masks)))


class HighResolutionModule(MaskAware):
    """Blocks in every branch; then each output branch is the sum of all branches, resized to its size.

    `finest_only`: it makes the finest output branch alone, for pose heads that read no other.
    """

    def __init__(self, make: Make, spec: Backbone, branches: int, finest_only: bool) -> None:
        super().__init__()
        self.upsample = spec.fuse_upsample
        channels = spec.channels(branches)
        self.branches = nn.ModuleList(
            Chain(*(BasicBlock(make, c, spec.bn_momentum) for _ in range(spec.blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse(make, channels, source, target, spec.bn_momentum) for source in range(branches))
            for target in range(1 if finest_only else branches)
        )

    def forward(self, xs: Sequence[Tensor], masks: Masks | None = None) -> tuple[Tensor, ...]:
        ys = [branch(x, masks) for branch, x in zip(self.branches, xs, strict=True)]
        return tuple(self._fused(target, layers, ys, masks) for target, layers in enumerate(self.fuse_layers))

    def _fused(self, target: int, layers: nn.Module, ys: Sequence[Tensor], masks: Masks | None) -> Tensor:
        total: Tensor | None = None
        for source, (layer, y) in enumerate(zip(layers, ys, strict=True)):  # type: ignore[call-overload]
            part = y if source == target else layer(y, masks)
            if source > target:
                part = resize(part, ys[target], self.upsample)
            total = part if total is None else total + part
        assert total is not None
        return F.relu(total)


def _fuse(make: Make, channels: Sequence[int], source: int, target: int, momentum: float) -> nn.Module:
    """The layers from one branch to another: a 1x1 convolution to a finer branch, before the upsampling; a strided 3x3
    for each level to a coarser one."""
    if source == target:
        return nn.Identity()
    if source > target:
        return Chain(make(channels[source], channels[target], 1), nn.BatchNorm2d(channels[target], momentum=momentum))
    hops = []
    for hop in range(source, target):
        last = hop == target - 1
        out = channels[target] if last else channels[source]
        layers = [make(channels[source], out, 3, 2), nn.BatchNorm2d(out, momentum=momentum)]
        hops.append(Chain(*layers) if last else Chain(*layers, nn.ReLU()))
    return Chain(*hops)


class Transition(nn.ModuleList, MaskAware):
    """The transition into a stage with one more branch, which is made from the coarsest one. A branch whose channels
    fit is passed on; any other is convolved to fit."""

    def __init__(self, make: Make, before: Sequence[int], after: Sequence[int], momentum: float) -> None:
        super().__init__()
        for branch, channels in enumerate(after):
            norm = nn.BatchNorm2d(channels, momentum=momentum)
            if branch >= len(before):
                self.append(Chain(Chain(make(before[-1], channels, 3, 2), norm, nn.ReLU())))
            elif before[branch] != channels:
                self.append(Chain(make(before[branch], channels, 3), norm, nn.ReLU()))
            else:
                self.append(nn.Identity())

    def forward(self, xs: Sequence[Tensor], masks: Masks | None = None) -> tuple[Tensor, ...]:
        return tuple(
            xs[branch] if isinstance(layer, nn.Identity) else layer(xs[min(branch, len(xs) - 1)], masks)
            for branch, layer in enumerate(self)
        )


def resize(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    """`x` (N, C, h, w) at the height and width of `like` (align_corners=False)."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode=mode, align_corners=False if mode == "bilinear" else None)
