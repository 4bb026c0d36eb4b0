"""HRNet with exits, computed feature by feature, so that a derived class can observe or quantise each feature.

The arithmetic is that of the executors: batch norms are folded into the weights before them, and a 1x1 convolution runs
before the upsampling that precedes it in the network, because the two commute. `NamedNetwork` gives the network's own
scores. Calibration and the network in eight bits derive from it.

A feature follows a ReLU (or a pooling of such) and is named by what makes it:
    conv1, conv2                   in the stem
    P.conv1, P.conv2, P            inside the block at module path P, and its result
    transition1.0                  a new branch of a transition; a branch that is passed on keeps its name
    stage2.0.fuse_layers.1.0.0     a convolution of stride 2 that another one follows
    stage2.0.out.1                 a branch that a module puts out
    exit1.1                        in a head, made by the convolution of that index
    exit1.pooled.0                 in a head, made by its first pooling
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anytime import Step
from models.imaging.preprocess import check_input
from models.network.adpc import AdpcNet, ExitHead, Layer1, StageModule, Stem
from models.network.confidence import Masks
from models.network.hrnet import BasicBlock, Bottleneck, HighResolutionModule, resize
from models.network.masked import MaskedConv2d
from models.network.network import Progress

IMAGE = "image"
"""The name of the network's input, which is no feature: it has negative values."""


@dataclass(frozen=True)
class Feature:
    """`values`: (N, C, h, w)."""

    name: str
    values: Tensor


@dataclass(frozen=True)
class NamedProgress(Progress):
    """`names`: those of `features`."""

    names: tuple[str, ...] = ()

    def read(self) -> list[Feature]:
        return [Feature(name, values) for name, values in zip(self.names, self.features, strict=True)]


@dataclass(frozen=True, eq=False)
class FoldedConv:
    """A convolution with the batch norm after it: fill(products + bias) + shift.

    `path`: of the convolution's module. `weight`: float32 (out, in, kernel, kernel), times the batch norm's scale.
    `bias`: float32 (out, 1, 1), the convolution's, times that scale. `shift`: float32 (out, 1, 1), the batch norm's.
    """

    path: str
    conv: nn.Conv2d
    weight: Tensor
    bias: Tensor
    shift: Tensor

    def fill(self, y: Tensor, masks: Masks | None) -> Tensor:
        """`y` (N, out, h, w), interpolated at inactive positions."""
        if masks is None or not isinstance(self.conv, MaskedConv2d):
            return y
        return self.conv.fill(y, masks.at(y), self.conv.Lambda, self.conv.window)


class NamedNetwork:
    """See `Stepwise`. `network`: in evaluation mode; its weights are read once."""

    def __init__(self, network: AdpcNet) -> None:
        self.network = network.eval()
        self.config = network.config
        self.steps = network.steps
        self._paths = {module: path for path, module in network.named_modules()}
        self._folded: dict[nn.Module, FoldedConv] = {}

    def feature(self, name: str, values: Tensor) -> Feature:
        """A new feature. Derived networks look at it or round it here."""
        return Feature(name, values)

    def products(self, conv: FoldedConv, x: Feature, columns: slice = slice(None)) -> Tensor:
        """The sums of products of `x` and the weights: (N, out, h, w). `columns`: the input channels that `x` has."""
        return F.conv2d(x.values, conv.weight[:, columns], None, conv.conv.stride, conv.conv.padding)

    def start(self, images: Tensor) -> NamedProgress:
        check_input(images)
        return NamedProgress((images,), names=(IMAGE,))

    def advance(self, progress: Progress, step: Step) -> Progress:
        assert isinstance(progress, NamedProgress)
        xs, masks, network = progress.read(), progress.masks, self.network
        match step:
            case Stem():
                x = self._hidden("conv1", self._fold(network.conv1, network.bn1), xs[0], masks)
                found = [self._hidden("conv2", self._fold(network.conv2, network.bn2), x, masks)]
            case Layer1():
                found = [self._blocks(network.layer1, xs[0], masks)]
            case StageModule():
                if step.index == 0:
                    xs = self._transition(step.stage, xs, masks)
                found = self._module(network.module(step), xs, masks)
            case ExitHead():
                return network.complete(progress, step, self._scores(step, xs, masks))
            case _:
                raise TypeError(f"{step} is no step of {type(self).__name__}")
        values, names = (tuple(x.values for x in found), tuple(x.name for x in found))
        return replace(progress, features=values, names=names)

    def _fold(self, conv: nn.Module, norm: nn.Module | None = None) -> FoldedConv:
        if conv not in self._folded:
            assert isinstance(conv, nn.Conv2d)
            weight = conv.weight.detach().double()
            bias = torch.zeros_like(weight[:, 0, 0, 0]) if conv.bias is None else conv.bias.detach().double()
            shift = torch.zeros_like(bias)
            if norm is not None:
                assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
                assert norm.running_var is not None
                scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
                shift = norm.bias.detach().double() - norm.running_mean.double() * scale
                weight, bias = weight * scale[:, None, None, None], bias * scale
            per_channel = (bias[:, None, None].float(), shift[:, None, None].float())
            self._folded[conv] = FoldedConv(self._paths[conv], conv, weight.float(), *per_channel)
        return self._folded[conv]

    def _fold_chain(self, chain: nn.Module) -> FoldedConv:
        """The convolution and the batch norm that `chain` begins with."""
        return self._fold(*list(chain.children())[:2])

    def _convolved(self, conv: FoldedConv, x: Feature, masks: Masks | None) -> Tensor:
        return conv.fill(self.products(conv, x) + conv.bias, masks) + conv.shift

    def _hidden(self, name: str, conv: FoldedConv, x: Feature, masks: Masks | None) -> Feature:
        return self.feature(name, F.relu(self._convolved(conv, x, masks)))

    def _blocks(self, chain: nn.Module, x: Feature, masks: Masks | None) -> Feature:
        for block in chain.children():
            path, before = self._paths[block], x
            assert isinstance(block, BasicBlock | Bottleneck)
            x = self._hidden(f"{path}.conv1", self._fold(block.conv1, block.bn1), x, masks)
            residual, last = before.values, self._fold(block.conv2, block.bn2)
            if isinstance(block, Bottleneck):
                x = self._hidden(f"{path}.conv2", last, x, masks)
                last = self._fold(block.conv3, block.bn3)
                if block.downsample is not None:
                    residual = self._convolved(self._fold_chain(block.downsample), before, masks)
            x = self.feature(path, F.relu(self._convolved(last, x, masks) + residual))
        return x

    def _transition(self, stage: int, xs: Sequence[Feature], masks: Masks | None) -> list[Feature]:
        found = []
        for branch, layer in enumerate(self.network.transition(stage)):
            x = xs[min(branch, len(xs) - 1)]
            if not isinstance(layer, nn.Identity):
                chain = next(layer.children()) if branch >= len(xs) else layer
                x = self._hidden(self._paths[layer], self._fold_chain(chain), x, masks)
            found.append(x)
        return found

    def _module(self, module: HighResolutionModule, xs: Sequence[Feature], masks: Masks | None) -> list[Feature]:
        """The branches, then their sums: each its own branch, then finer ones, the nearest first, then coarser ones."""
        xs = [self._blocks(branch, x, masks) for branch, x in zip(module.branches, xs, strict=True)]
        found = []
        for target, fusing in enumerate(module.fuse_layers):
            layers, total = list(fusing.children()), xs[target].values
            for source in reversed(range(target)):
                x, (*hops, last) = xs[source], layers[source].children()
                for hop in hops:
                    x = self._hidden(self._paths[hop], self._fold_chain(hop), x, masks)
                total = self._convolved(self._fold_chain(last), x, masks) + total
            for source in range(target + 1, len(xs)):
                part = self._convolved(self._fold_chain(layers[source]), xs[source], masks)
                total = resize(part, total, module.upsample) + total
            found.append(self.feature(f"{self._paths[module]}.out.{target}", F.relu(total)))
        return found

    def _scores(self, step: ExitHead, xs: Sequence[Feature], masks: Masks | None) -> Tensor:
        config, head = self.config, self.network.head(step)
        if config.heads == "redesigned" and step.stage < 4:
            return self._redesigned(step, head, xs, masks)
        if config.task == "pose":
            return self._convolved(self._fold(head[0]), xs[0], masks)
        # A 1x1 convolution commutes with upsampling, so that coarse branches are convolved at their own size.
        conv, first, total = self._fold(head[0], head[1]), 0, None
        for x in xs:
            channels = x.values.shape[1]
            part = self.products(conv, x, slice(first, first + channels))
            total, first = part if total is None else total + resize(part, total), first + channels
        assert total is not None
        hidden = self.feature(conv.path, F.relu(conv.fill(total + conv.bias, masks) + conv.shift))
        return self._convolved(self._fold(head[3]), hidden, masks)

    def _redesigned(self, step: ExitHead, head: nn.Sequential, xs: Sequence[Feature], masks: Masks | None) -> Tensor:
        """Poolings and 1x1 convolutions, then 1x1 convolutions and as many upsamplings by 2."""
        layers = [layer for layer in head if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        convs = [self._fold(*layers[i : i + 2]) for i in range(0, len(layers), 2)]
        depth = self.config.downsamplings[step.stage - 1]
        path, values = self._paths[head], self.network.read(tuple(x.values for x in xs), step)
        for hop, conv in enumerate(convs[:depth]):
            pooled = self.feature(f"{path}.pooled.{hop}", F.avg_pool2d(values, 2))
            x = self._hidden(conv.path, conv, pooled, masks)
            values = x.values
        for conv in convs[depth:]:
            part = F.interpolate(self.products(conv, x), scale_factor=2, mode="bilinear", align_corners=False)
            y = conv.fill(part + conv.bias, masks) + conv.shift
            if conv is not convs[-1]:
                x = self.feature(conv.path, F.relu(y))
        return y


class _Trace(NamedNetwork):
    """Notes which features there are and which convolutions read them, and multiplies nothing."""

    def __init__(self, network: AdpcNet) -> None:
        super().__init__(network)
        self.names: list[str] = []
        self.readers: dict[str, list[str]] = {}

    def feature(self, name: str, values: Tensor) -> Feature:
        self.names.append(name)
        self.readers.setdefault(name, [])
        return super().feature(name, values)

    def products(self, conv: FoldedConv, x: Feature, columns: slice = slice(None)) -> Tensor:
        self.readers.setdefault(x.name, []).append(conv.path)
        height, width = (side // conv.conv.stride[0] for side in x.values.shape[-2:])
        return x.values.new_zeros(1, conv.conv.out_channels, height, width)


def _trace(network: AdpcNet) -> _Trace:
    found = _Trace(network)
    device = next(network.parameters()).device
    progress: Progress = found.start(torch.zeros(1, 3, 32, 32, device=device))
    with torch.inference_mode():
        for step in found.steps:
            progress = found.advance(progress, step)
    return found


def feature_names(network: AdpcNet) -> list[str]:
    """The names of all features, in the order in which they are made."""
    return _trace(network).names


def readers(network: AdpcNet) -> dict[str, list[str]]:
    """The module paths of the convolutions that read the image and each feature, by its name."""
    return _trace(network).readers
