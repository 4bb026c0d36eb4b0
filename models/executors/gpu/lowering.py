"""An `AdpcNet` as layers for the GPU, and the walk through each of its steps. Knows nothing of requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.anytime import Step
from models.executors.gpu.layers import Layer, fold, padded
from models.executors.gpu.ops import Pass
from models.imaging.geometry import STRIDE
from models.network.adpc import AdpcNet, ExitHead, Layer1, StageModule, Stem
from models.network.adpc_configs import AdpcConfig
from models.network.hrnet import BasicBlock, Bottleneck, HighResolutionModule

INDICES = 1 << 31
"""Of the kernels' 32 bit integers."""
Branches = tuple[Tensor, ...]
"""Feature maps (N, h / 2^b, w / 2^b, C_b), finest first, C_b padded."""
Item = Layer | Literal["pool", "up"] | tuple[Layer, ...]
"""Part of a head. Several layers: what each branch adds to a convolution of all of them, put together afterwards."""


@dataclass(frozen=True, eq=False)
class Module:
    """A HighResolutionModule: blocks of each branch, and layers by target and source (none: same branch)."""

    branches: list[list[tuple[Layer, Layer]]]
    fuse: list[list[list[Layer]]]


class TritonNetwork:
    """Weights of `network` on `device` in `dtype`, and `stem`, `layer1`, `module`, `head` to run them."""

    def __init__(self, network: AdpcNet, device: torch.device, dtype: torch.dtype) -> None:
        self.config: AdpcConfig = network.config
        self.steps = network.steps
        self.device, self.dtype = device, dtype
        self.bilinear = self.config.backbone.fuse_upsample == "bilinear"
        network = network.to(device).eval()
        self._layers: list[Layer] = []
        self._stem = [self._layer([conv, norm, nn.ReLU()]) for conv, norm in _stem(network)]
        self._layer1 = [self._bottleneck(block) for block in network.layer1]
        self._transitions: dict[int, list[list[Layer]]] = {}
        self._modules: dict[StageModule, Module] = {}
        self._heads: dict[ExitHead, list[Item]] = {}
        for step in self.steps:
            if isinstance(step, StageModule):
                self._modules[step] = self._module(network.module(step))
                transition = network.transition(step.stage)
                self._transitions[step.stage] = [self._chain(layer) for layer in transition.children()]
            elif isinstance(step, ExitHead):
                self._heads[step] = self._head(network, step)
        self.reach = max(layer.reach for layer in self._layers)

    def channels(self, step: Step) -> tuple[int, ...]:
        """Padded channels of the branches after `step`."""
        if isinstance(step, Stem):
            return (self._stem[-1].out,)
        if isinstance(step, StageModule):
            targets = len(self._modules[step].fuse)
            return tuple(padded(c) for c in self.config.backbone.channels(targets))
        return (self._layer1[-1][2].out,)

    def real_channels(self, index: int) -> tuple[int, ...]:
        """Channels of the branches after step `index`, without the padding; an exit leaves those before it."""
        while self.steps[index].exit is not None:
            index -= 1
        step = self.steps[index]
        if isinstance(step, StageModule):
            return self.config.backbone.channels(len(self._modules[step].fuse))
        return self.channels(step)  # of the stem and of layer1, multiples of 64

    def check_indices(self, shape: tuple[int, int], batch: int) -> None:
        """Raises ValueError if a map of `batch` inputs of `shape` has more elements than the kernels' 32 bit indices
        can tell apart."""
        widest = max(padded(sum(padded(c) for c in self.config.backbone.channels(4))), 256)
        largest = batch * (shape[0] // STRIDE) * (shape[1] // STRIDE) * widest
        if largest >= INDICES:
            most = (INDICES - 1) // widest * STRIDE**2
            raise ValueError(
                f"{batch} inputs of {shape[0]}x{shape[1]} need maps of {largest} elements; the triton executor indexes "
                f"at most {INDICES - 1}: give smaller images or batches, of {most} pixels together, or use executor "
                "reference"
            )

    def run(self, step: Step, xs: Branches, work: Pass, out: Branches) -> Branches:
        """A step that is no exit. A module leaves its branches in `out`."""
        if isinstance(step, Stem):
            x = xs[0]
            for layer in self._stem:
                x = work.convolve(layer, x)
            return (x,)
        if isinstance(step, Layer1):
            x = xs[0]
            for first, second, third, around in self._layer1:
                residual = x if around is None else work.convolve(around, x)
                x = work.convolve(third, work.convolve(second, work.convolve(first, x)), residual)
            return (x,)
        assert isinstance(step, StageModule)
        entry = self._transitions[step.stage] if step.index == 0 else [[] for _ in xs]
        return self._run_module(self._modules[step], entry, xs, work, out)

    def _run_module(
        self, module: Module, entry: list[list[Layer]], xs: Branches, work: Pass, out: Branches
    ) -> Branches:
        targets = range(len(module.fuse))

        def branch(source: int) -> dict[int, Tensor]:
            """Into the module, through the blocks of one branch and on its way to every target."""
            x = xs[min(source, len(xs) - 1)]
            for layer in entry[source]:
                x = work.convolve(layer, x)
            for first, second in module.branches[source]:
                x = work.convolve(second, work.convolve(first, x), x)
            parts = {}
            for target in targets:
                part = x
                for layer in module.fuse[target][source]:
                    part = work.convolve(layer, part)
                parts[target] = part
            return parts

        parts = work.parallel([partial(branch, source) for source in range(len(module.branches))])

        def fuse(target: int) -> Tensor:
            return work.combine([part[target] for part in parts], out[target], relu=True, bilinear=self.bilinear)

        return tuple(work.parallel([partial(fuse, target) for target in targets]))

    def head(self, step: ExitHead, xs: Branches, work: Pass, scores: Tensor) -> None:
        """The active rows of `scores`, float32 (N, h, w, padded outputs)."""
        items = self._heads[step]
        x, size = xs[0], xs[0].shape[:3]
        if isinstance(items[0], tuple):
            parts = [work.products(layer, branch) for layer, branch in zip(items[0], xs, strict=True)]
            x = work.combine(parts, parts[0].new_empty(parts[0].shape), relu=True, interpolated=False)
            items = items[1:]
        elif items[0] == "pool":
            widths = [branch.shape[3] for branch in xs]
            x = x.new_empty((size[0], size[1] // 2, size[2] // 2, sum(widths)))
            for branch, part in zip(xs, torch.split(x, widths, 3), strict=True):
                work.combine([branch], part, pool=2, interpolated=False)
            items = items[1:]
        for item, following in zip(items, [*items[1:], None], strict=True):
            batch, height, width, channels = x.shape
            if isinstance(item, Layer) and following is None:
                work.scores(item, x, scores)
            elif isinstance(item, Layer):
                x = work.convolve(item, x, interpolated=not isinstance(following, Layer))
            elif item == "up":
                x = work.combine([x], x.new_empty((batch, 2 * height, 2 * width, channels)), interpolated=False)
            else:
                half = x.new_empty((batch, height // 2, width // 2, channels))
                x = work.combine([x], half, pool=2, interpolated=False)

    def _layer(self, modules: Sequence[nn.Module], segments: Sequence[int] = (), part: int | None = None) -> Layer:
        conv, norm = modules[0], next((m for m in modules if isinstance(m, nn.BatchNorm2d)), None)
        assert isinstance(conv, nn.Conv2d)
        relu = part is None and any(isinstance(m, nn.ReLU) for m in modules)
        layer = fold(conv, norm, relu, self.dtype, segments, part=part)
        self._layers.append(layer)
        return layer

    def _chain(self, chain: nn.Module, segments: Sequence[int] = ()) -> list[Layer]:
        return [item for item in self._items(chain, segments) if isinstance(item, Layer)]

    def _items(self, chain: nn.Module, segments: Sequence[int] = ()) -> list[Item]:
        items: list[Item] = []
        modules = list(_flat(chain))
        starts = [i for i, m in enumerate(modules) if not isinstance(m, nn.BatchNorm2d | nn.ReLU)]
        for start, end in zip(starts, [*starts[1:], len(modules)], strict=False):
            if isinstance(modules[start], nn.AvgPool2d):
                items.append("pool")
            elif isinstance(modules[start], nn.Upsample):
                items.append("up")
            elif len(segments) > 1 and not items:
                # Upsampling commutes with a 1x1 convolution: each branch is convolved at its own size.
                parts = range(len(segments))
                items.append(tuple(self._layer(modules[start:end], segments, part) for part in parts))
            else:
                items.append(self._layer(modules[start:end], segments))
            if not isinstance(items[-1], str):
                segments = ()
        return items

    def _bottleneck(self, block: nn.Module) -> tuple[Layer, Layer, Layer, Layer | None]:
        assert isinstance(block, Bottleneck)
        around = None if block.downsample is None else self._chain(block.downsample)[0]
        relu = nn.ReLU()
        return (
            self._layer([block.conv1, block.bn1, relu]),
            self._layer([block.conv2, block.bn2, relu]),
            self._layer([block.conv3, block.bn3, relu]),
            around,
        )

    def _module(self, module: nn.Module) -> Module:
        assert isinstance(module, HighResolutionModule)
        branches = []
        for branch in module.branches:
            blocks = [block for block in branch.children() if isinstance(block, BasicBlock)]
            branches.append(
                [(self._layer([b.conv1, b.bn1, nn.ReLU()]), self._layer([b.conv2, b.bn2, nn.ReLU()])) for b in blocks]
            )
        fuse = [[self._chain(layer) for layer in target.children()] for target in module.fuse_layers.children()]
        return Module(branches, fuse)

    def _head(self, network: AdpcNet, step: ExitHead) -> list[Item]:
        plain_pose = self.config.task == "pose" and (step.stage == 4 or self.config.heads == "plain")
        segments = (256,) if step.stage == 1 else self.config.backbone.channels(step.stage)
        return self._items(network.head(step), segments[:1] if plain_pose else segments)


def _stem(network: AdpcNet) -> list[tuple[nn.Module, nn.Module]]:
    return [(network.conv1, network.bn1), (network.conv2, network.bn2)]


def _flat(chain: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested chains, without identities."""
    for layer in [chain] if isinstance(chain, nn.Conv2d | nn.Identity) else chain.children():
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        elif not isinstance(layer, nn.Identity):
            yield layer
