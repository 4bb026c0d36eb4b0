"""From a trained network to convolutions ready for the GPU, and the ops that each of its steps runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.anytime import Step
from models.executors.gpu.layers import TritonConvolution, fold, padded
from models.executors.gpu.ops import RowOps
from models.imaging.geometry import STRIDE
from models.network.adpc import AdpcNet, ExitHead, Layer1, StageModule, Stem
from models.network.adpc_configs import AdpcConfig
from models.network.hrnet import BasicBlock, Bottleneck, HighResolutionModule

MAX_ELEMENTS = (1 << 31) - 1
"""Of one map: kernels index elements with integers of 32 bits."""
Branches = tuple[Tensor, ...]
"""Feature maps (N, h / 2^b, w / 2^b, C_b), the finest first, C_b padded."""
HeadItem = TritonConvolution | Literal["pool", "up"] | tuple[TritonConvolution, ...]
"""One layer of a head. A tuple stands for one 1x1 convolution of all branches together: it has a convolution for each
branch, whose results are summed at the finest size."""


@dataclass(frozen=True, eq=False)
class ModuleLayers:
    """The layers of a HighResolutionModule.

    `branches`: for each branch, the two convolutions of each block. `fuse`: by target and source branch, the
    convolutions on the way; none if source and target are the same.
    """

    branches: list[list[tuple[TritonConvolution, TritonConvolution]]]
    fuse: list[list[list[TritonConvolution]]]


@dataclass(frozen=True, eq=False)
class BottleneckLayers:
    """The layers of a Bottleneck. `downsample`: the convolution of the residual; None if it is the input itself."""

    first: TritonConvolution
    second: TritonConvolution
    third: TritonConvolution
    downsample: TritonConvolution | None


class TritonNetwork:
    """The convolutions of `network` on `device` in `dtype`, and the ops of its steps. It holds nothing of a request.

    `reach`: the farthest that any of its interpolations reads, in positions.
    """

    def __init__(self, network: AdpcNet, device: torch.device, dtype: torch.dtype) -> None:
        self.config: AdpcConfig = network.config
        self.steps = network.steps
        self.device, self.dtype = device, dtype
        self.bilinear = self.config.backbone.fuse_upsample == "bilinear"
        network = network.to(device).eval()
        self._convolutions: list[TritonConvolution] = []
        self._stem = [self._fold([conv, norm, nn.ReLU()]) for conv, norm in _stem(network)]
        self._layer1 = [self._bottleneck(block) for block in network.layer1]
        self._transitions: dict[int, list[list[TritonConvolution]]] = {}
        self._modules: dict[StageModule, ModuleLayers] = {}
        self._heads: dict[ExitHead, list[HeadItem]] = {}
        for step in self.steps:
            if isinstance(step, StageModule):
                self._modules[step] = self._module(network.module(step))
                transition = network.transition(step.stage)
                self._transitions[step.stage] = [self._chain(layer) for layer in transition.children()]
            elif isinstance(step, ExitHead):
                self._heads[step] = self._head(network, step)
        self.reach = max(conv.reach for conv in self._convolutions)

    def channels(self, step: Step) -> tuple[int, ...]:
        """Padded channels of the branches after `step`, the finest first."""
        if isinstance(step, Stem):
            return (self._stem[-1].out_channels,)
        if isinstance(step, StageModule):
            targets = len(self._modules[step].fuse)
            return tuple(padded(c) for c in self.config.backbone.channels(targets))
        return (self._layer1[-1].third.out_channels,)

    def real_channels(self, index: int) -> tuple[int, ...]:
        """Channels of the branches after step `index` without the padding. An exit leaves the branches as they are."""
        while self.steps[index].exit is not None:
            index -= 1
        step = self.steps[index]
        if isinstance(step, StageModule):
            return self.config.backbone.channels(len(self._modules[step].fuse))
        return self.channels(step)  # the stem and layer 1 have multiples of 64, which no padding follows

    def check_indices(self, shape: tuple[int, int], batch: int) -> None:
        """Raises ValueError if a map of `batch` inputs of `shape` (H, W) has more than `MAX_ELEMENTS`."""
        widest = max(padded(sum(padded(c) for c in self.config.backbone.channels(4))), 256)
        largest = batch * (shape[0] // STRIDE) * (shape[1] // STRIDE) * widest
        if largest > MAX_ELEMENTS:
            most = MAX_ELEMENTS // widest * STRIDE**2
            raise ValueError(
                f"{batch} inputs of {shape[0]}x{shape[1]} need maps of {largest} elements; the triton executor indexes "
                f"at most {MAX_ELEMENTS}: give smaller images or batches, of {most} pixels together, or use executor "
                "reference"
            )

    def run(self, step: Step, xs: Branches, ops: RowOps, out: Branches) -> Branches:
        """Runs a step that is not an exit on the branches `xs` and returns its branches. Those of a module are `out`,
        into which it writes."""
        if isinstance(step, Stem):
            x = xs[0]
            for conv in self._stem:
                x = ops.convolve(conv, x)
            return (x,)
        if isinstance(step, Layer1):
            x = xs[0]
            for block in self._layer1:
                residual = x if block.downsample is None else ops.convolve(block.downsample, x)
                x = ops.convolve(block.third, ops.convolve(block.second, ops.convolve(block.first, x)), residual)
            return (x,)
        assert isinstance(step, StageModule)
        transition = self._transitions[step.stage] if step.index == 0 else [[] for _ in xs]
        return self._run_module(self._modules[step], transition, xs, ops, out)

    def _run_module(
        self, module: ModuleLayers, transition: list[list[TritonConvolution]], xs: Branches, ops: RowOps, out: Branches
    ) -> Branches:
        """`transition`: for each branch, the convolutions before the module's own; none if the branch goes on."""
        targets = range(len(module.fuse))

        def branch(source: int) -> dict[int, Tensor]:
            """Runs the transition and the blocks of one branch. Returns what it adds to each target."""
            x = xs[min(source, len(xs) - 1)]
            for conv in transition[source]:
                x = ops.convolve(conv, x)
            for first, second in module.branches[source]:
                x = ops.convolve(second, ops.convolve(first, x), x)
            parts = {}
            for target in targets:
                part = x
                for conv in module.fuse[target][source]:
                    part = ops.convolve(conv, part)
                parts[target] = part
            return parts

        parts = ops.parallel([partial(branch, source) for source in range(len(module.branches))])

        def fuse(target: int) -> Tensor:
            return ops.add_resampled([part[target] for part in parts], out[target], relu=True, bilinear=self.bilinear)

        return tuple(ops.parallel([partial(fuse, target) for target in targets]))

    def head(self, step: ExitHead, xs: Branches, ops: RowOps, scores: Tensor) -> None:
        """Runs an exit on the branches `xs`. Writes the active rows of `scores`, float32 (N, h, w, padded outputs)."""
        items = self._heads[step]
        x, size = xs[0], xs[0].shape[:3]
        if isinstance(items[0], tuple):
            parts = [ops.convolve_needed(conv, branch) for conv, branch in zip(items[0], xs, strict=True)]
            x = ops.add_resampled(parts, parts[0].new_empty(parts[0].shape), relu=True, halo=False)
            items = items[1:]
        elif items[0] == "pool":
            widths = [branch.shape[3] for branch in xs]
            x = x.new_empty((size[0], size[1] // 2, size[2] // 2, sum(widths)))
            for branch, part in zip(xs, torch.split(x, widths, 3), strict=True):
                ops.add_resampled([branch], part, pool=2, halo=False)
            items = items[1:]
        for item, following in zip(items, [*items[1:], None], strict=True):
            batch, height, width, channels = x.shape
            if isinstance(item, TritonConvolution) and following is None:
                ops.convolve_scores(item, x, scores)
            elif isinstance(item, TritonConvolution):
                x = ops.convolve(item, x, halo=not isinstance(following, TritonConvolution))
            elif item == "up":
                x = ops.add_resampled([x], x.new_empty((batch, 2 * height, 2 * width, channels)), halo=False)
            else:
                half = x.new_empty((batch, height // 2, width // 2, channels))
                x = ops.add_resampled([x], half, pool=2, halo=False)

    def _fold(
        self, modules: Sequence[nn.Module], segments: Sequence[int] = (), part: int | None = None
    ) -> TritonConvolution:
        """A convolution with the batch norm and the ReLU that may follow it in `modules`; see `layers.fold`."""
        module, norm = modules[0], next((m for m in modules if isinstance(m, nn.BatchNorm2d)), None)
        assert isinstance(module, nn.Conv2d)
        relu = part is None and any(isinstance(m, nn.ReLU) for m in modules)
        conv = fold(module, norm, relu, self.dtype, segments, part=part)
        self._convolutions.append(conv)
        return conv

    def _chain(self, chain: nn.Module, segments: Sequence[int] = ()) -> list[TritonConvolution]:
        """The convolutions of a chain of layers."""
        return [item for item in self._items(chain, segments) if isinstance(item, TritonConvolution)]

    def _items(self, chain: nn.Module, segments: Sequence[int] = ()) -> list[HeadItem]:
        """The layers of a chain. `segments`: channels of the branches that its input is put together from."""
        items: list[HeadItem] = []
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
                items.append(tuple(self._fold(modules[start:end], segments, part) for part in parts))
            else:
                items.append(self._fold(modules[start:end], segments))
            if not isinstance(items[-1], str):
                segments = ()
        return items

    def _bottleneck(self, block: nn.Module) -> BottleneckLayers:
        assert isinstance(block, Bottleneck)
        relu = nn.ReLU()
        return BottleneckLayers(
            self._fold([block.conv1, block.bn1, relu]),
            self._fold([block.conv2, block.bn2, relu]),
            self._fold([block.conv3, block.bn3, relu]),
            None if block.downsample is None else self._chain(block.downsample)[0],
        )

    def _module(self, module: nn.Module) -> ModuleLayers:
        assert isinstance(module, HighResolutionModule)
        branches = []
        for branch in module.branches:
            blocks = [block for block in branch.children() if isinstance(block, BasicBlock)]
            branches.append(
                [(self._fold([b.conv1, b.bn1, nn.ReLU()]), self._fold([b.conv2, b.bn2, nn.ReLU()])) for b in blocks]
            )
        fuse = [[self._chain(layer) for layer in target.children()] for target in module.fuse_layers.children()]
        return ModuleLayers(branches, fuse)

    def _head(self, network: AdpcNet, step: ExitHead) -> list[HeadItem]:
        plain_pose = self.config.task == "pose" and (step.stage == 4 or self.config.heads == "plain")
        segments = (256,) if step.stage == 1 else self.config.backbone.channels(step.stage)
        return self._items(network.head(step), segments[:1] if plain_pose else segments)


def _stem(network: AdpcNet) -> list[tuple[nn.Module, nn.Module]]:
    return [(network.conv1, network.bn1), (network.conv2, network.bn2)]


def _flat(chain: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested chains in order, without identities."""
    for layer in [chain] if isinstance(chain, nn.Conv2d | nn.Identity) else chain.children():
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        elif not isinstance(layer, nn.Identity):
            yield layer
