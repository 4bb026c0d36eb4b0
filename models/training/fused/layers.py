"""The network's layers with training kernels. A fused layer derives from the layer and replaces `forward`, so weights,
names and results in evaluation stay the same.

Layers whose channels are not a multiple of 8 run as before; `padding.pad_channels` leaves no such layer.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.anytime import Step
from models.network import hrnet
from models.network.adpc import AdpcNet, ExitHead, Stem
from models.network.confidence import Masks
from models.network.masked import Chain, MaskAware
from models.network.network import Progress
from models.training.fused.enlarge import concatenate, enlarge, pool
from models.training.fused.normalise import EIGHT, normalise

SWITCHED_OFF: set[str] = set()
"""Kernels, of "normalise", "enlarge" and "pool", that are not used, so that a measurement can show what they save."""


def _used(kernel: str, x: Tensor) -> bool:
    return kernel not in SWITCHED_OFF and x.shape[1] % EIGHT == 0 and torch.is_grad_enabled()


def norm(layer: nn.Module, x: Tensor, added: Tensor | None = None, *, relu: bool) -> Tensor:
    """Batch normalisation, plus `added`, then a ReLU if `relu`, in one kernel if it is available."""
    if isinstance(layer, nn.BatchNorm2d) and layer.training and _used("normalise", x):
        return normalise(x, layer, added, relu=relu)
    y: Tensor = layer(x)
    y = y if added is None else y + added
    return y.relu() if relu else y


def _factor(x: Tensor, like: Tensor) -> int:
    """How many times larger `like` is, 0 if that is no whole number."""
    factor, rest = divmod(like.shape[-1], x.shape[-1])
    return factor if rest == 0 and factor * x.shape[-2] == like.shape[-2] else 0


def grow(x: Tensor, like: Tensor, mode: str, base: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """`x` at the size of `like`, plus `base`, then a ReLU if `relu`, in one kernel if it is available."""
    factor = _factor(x, like)
    if factor > 1 and _used("enlarge", x):
        return enlarge(x, factor, mode, base, relu=relu)
    y = hrnet.resize(x, like, mode)
    y = y if base is None else base + y
    return y.relu() if relu else y


class FusedChain(Chain):
    """A chain that runs each batch normalisation and the ReLU after it as one kernel."""

    def forward(self, x: Tensor, masks: Masks | None = None, added: Tensor | None = None, relu: bool = False) -> Tensor:
        """`added` and `relu` apply to the last layer's result. They need a last layer that is a batch normalisation, or
        a chain that ends in one."""
        layers = list(self)
        place = 0
        while place < len(layers):
            layer = layers[place]
            last = place == len(layers) - 1
            if isinstance(layer, nn.BatchNorm2d):
                rectified = not last and isinstance(layers[place + 1], nn.ReLU)
                x = norm(layer, x, added if last else None, relu=relu if last else rectified)
                place += rectified
            elif last and isinstance(layer, FusedChain):
                x = layer(x, masks, added, relu)
            else:
                x = layer(x, masks) if isinstance(layer, MaskAware) else layer(x)
            place += 1
        return x


class FusedBasicBlock(hrnet.BasicBlock):
    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        y = norm(self.bn1, self.conv1(x, masks), relu=True)
        return norm(self.bn2, self.conv2(y, masks), x, relu=True)


class FusedBottleneck(hrnet.Bottleneck):
    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        y = norm(self.bn1, self.conv1(x, masks), relu=True)
        y = norm(self.bn2, self.conv2(y, masks), relu=True)
        around = x if self.downsample is None else self.downsample(x, masks)
        return norm(self.bn3, self.conv3(y, masks), around, relu=True)


class FusedModule(hrnet.HighResolutionModule):
    """Each kernel adds its branch to the sum that it gets, so that no kernel is needed for additions."""

    def _fused(self, target: int, layers: nn.Module, ys: Sequence[Tensor], masks: Masks | None) -> Tensor:
        total = ys[target]
        others = [source for source in range(len(ys)) if source != target]
        for source in others:
            layer = layers[source]  # type: ignore[index]
            relu = source == others[-1]
            if source > target:
                total = grow(layer(ys[source], masks), total, self.upsample, total, relu=relu)
            else:
                total = layer(ys[source], masks, total, relu)
        return total


class FusedUpsample(nn.Upsample):
    def forward(self, x: Tensor) -> Tensor:
        if not _used("enlarge", x):
            return super().forward(x)
        return enlarge(x, int(self.scale_factor), self.mode)  # type: ignore[arg-type]


class FusedPool(nn.AvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        halves = self.kernel_size == 2 and x.shape[2] % 2 == x.shape[3] % 2 == 0
        return pool(x) if halves and _used("pool", x) else super().forward(x)


class FusedNet(AdpcNet):
    def advance(self, progress: Progress, step: Step, adaptive: bool | None = None) -> Progress:
        if not isinstance(step, Stem):
            return super().advance(progress, step, adaptive)
        x = norm(self.bn1, self.conv1(progress.features[0]), relu=True)
        return replace(progress, features=(norm(self.bn2, self.conv2(x), relu=True),))

    def read(self, xs: tuple[Tensor, ...], step: ExitHead) -> Tensor:
        plain_pose = self.config.task == "pose" and (step.stage == 4 or self.config.heads == "plain")
        if plain_pose or len(xs) == 1:
            return xs[0]
        if all(_used("enlarge", x) and _factor(x, xs[0]) for x in xs):
            return concatenate(xs)
        return super().read(xs, step)


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    Chain: FusedChain,
    hrnet.BasicBlock: FusedBasicBlock,
    hrnet.Bottleneck: FusedBottleneck,
    hrnet.HighResolutionModule: FusedModule,
    nn.Upsample: FusedUpsample,
    nn.AvgPool2d: FusedPool,
    AdpcNet: FusedNet,
}


def install(network: nn.Module) -> None:
    """Changes the class of every layer of `network` to its fused class, if there is one."""
    for module in network.modules():
        if type(module) in FUSED:
            module.__class__ = FUSED[type(module)]
