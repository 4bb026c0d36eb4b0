"""From a trained network to ops on rows, step by step.

Work that does not depend on each other is put side by side: all branches of a module share their phases.

A feature that a convolution reads has a name, by which its scale is known when it is quantised:
    conv1, conv2                   of the stem
    P.conv1, P.conv2, P            inside the block at module path P, and its result
    transition1.0                  a new branch of a transition
    stage2.0.fuse_layers.1.0.0     a downsampling hop that is not the last one
    stage2.0.out.1                 a branch that a module puts out
    exit1.1                        in a head, made by the convolution of that index
    exit1.pooled.0                 in a head, made by its first pooling
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from torch import nn

from models.anytime import Step
from models.executors.cpu.layers import Convolution, fold
from models.executors.cpu.ops import (
    Matrix,
    Mode,
    Op,
    Phases,
    RowLoop,
    convolve,
    padded,
    resample,
    resample_sum,
    side_by_side,
    with_halo,
)
from models.executors.cpu.structures import Addressing, LoopDomain, RowDomain
from models.network.adpc import AdpcNet, ExitHead, Layer1, StageModule, Stem
from models.network.hrnet import BasicBlock, Bottleneck, HighResolutionModule

IMAGE, HALF, FINEST = 0, 1, 2
"""Levels: the image, half its size, and the finest branch."""


@dataclass(frozen=True, eq=False)
class LoweredStep:
    """A step: the features that it reads, the features (or scores) that it leaves, and the work between."""

    inputs: tuple[Matrix, ...]
    outputs: tuple[Matrix, ...]
    phases: Phases


class Lowering:
    """Lowers the steps of one network."""

    def __init__(self, network: AdpcNet) -> None:
        self.network = network
        self.config = network.config
        self._paths = {module: path for path, module in network.named_modules()}
        self.scores = Matrix(FINEST, self.config.outputs, RowDomain.ALL_POSITIONS)

    def lower(self, step: Step) -> LoweredStep:
        match step:
            case Stem():
                return self._stem()
            case Layer1():
                return self._layer1()
            case StageModule():
                return self._module(step)
            case ExitHead():
                return self._exit(step)
        raise TypeError(f"{step} is no step of {type(self.network).__name__}")

    def _fold(self, conv: nn.Module, norm: nn.Module | None = None) -> Convolution:
        return fold(conv, norm, self._paths[conv])

    def _fold_chain(self, chain: nn.Module) -> Convolution:
        """The convolution and the batch norm that `chain` begins with."""
        return self._fold(*list(chain.children())[:2])

    def _before(self, stage: int, index: int) -> tuple[Matrix, ...]:
        """The branches that module `index` of a stage reads, finest first. Exit `stage - 1` reads those of the stage's
        first module, though there is no stage 5."""
        if index == 0:
            stage, index = stage - 1, 0 if stage == 2 else self.config.backbone.modules[stage - 3]
        if stage == 1:
            return (Matrix(FINEST, 256, name=f"layer1.{self.config.backbone.layer1_blocks - 1}"),)
        widths = enumerate(self.config.backbone.channels(stage))
        return tuple(Matrix(FINEST + b, width, name=f"stage{stage}.{index - 1}.out.{b}") for b, width in widths)

    def _stem(self) -> LoweredStep:
        network = self.network
        pixels = Matrix(IMAGE, 3, RowDomain.PADDED_PIXELS)
        half, out = Matrix(HALF, 64, name="conv1"), Matrix(FINEST, 64, name="conv2")
        first = self._fold(network.conv1, network.bn1)
        # Three adjacent pixels are nine contiguous floats, so that a line of three taps is one tap of nine channels.
        lines = replace(first, weights=first.weights.reshape(3, 9, 64))
        conv1 = replace(convolve(lines, pixels, half, stride=2), addressing=Addressing.PADDED_IMAGE)
        conv2 = convolve(self._fold(network.conv2, network.bn2), half, out, stride=2)
        phases = [[_active(HALF, conv1)], [_active(FINEST, conv2)]]
        return LoweredStep((pixels,), (out,), phases)

    def _layer1(self) -> LoweredStep:
        """The last 1x1 convolution of a bottleneck and the first of the next one share a row loop, so that a block of
        rows is still in the cache."""
        blocks = [block for block in self.network.layer1 if isinstance(block, Bottleneck)]
        x, out = Matrix(FINEST, 64, name="conv2"), None
        narrow = Matrix(FINEST, 64, name="layer1.0.conv1")
        phases = [[_active(FINEST, convolve(self._fold(blocks[0].conv1, blocks[0].bn1), x, narrow))]]
        for index, (block, following) in enumerate(zip_longest(blocks, blocks[1:])):
            middle = Matrix(FINEST, 64, name=f"layer1.{index}.conv2")
            phases.append([_active(FINEST, convolve(self._fold(block.conv2, block.bn2), narrow, middle))])
            ops: list[Op] = []
            before, residual = out, out
            if block.downsample is not None:
                residual = Matrix(FINEST, 256, scratch=True)
                ops.append(convolve(self._fold_chain(block.downsample), x, residual, relu=False))
            out = Matrix(FINEST, 256, name=f"layer1.{index}", over=before)
            ops.append(convolve(self._fold(block.conv3, block.bn3), middle, out, residual=residual))
            if following is not None:
                narrow = Matrix(FINEST, 64, name=f"layer1.{index + 1}.conv1")
                ops.append(convolve(self._fold(following.conv1, following.bn1), out, narrow))
            phases.append([_active(FINEST, *ops)])
        assert out is not None
        return LoweredStep((x,), (out,), phases)

    def _module(self, step: StageModule) -> LoweredStep:
        """The transition, if the module is the first of its stage; then the branches; then their sums."""
        stage, index = step.stage, step.index
        xs = inputs = self._before(stage, index)
        phases: Phases = []
        if index == 0:
            xs, phases = self._transition(stage, inputs)
        module = self.network.module(step)
        branches = [self._blocks(branch, x) for branch, x in zip(module.branches, xs, strict=True)]
        outputs, sums = self._fuse(module, [x for x, _ in branches])
        return LoweredStep(inputs, outputs, phases + side_by_side(*(chain for _, chain in branches)) + sums)

    def _blocks(self, branch: nn.Module, x: Matrix) -> tuple[Matrix, Phases]:
        """The basic blocks of a branch, and what the last of them leaves. Each writes its result over its input."""
        phases: Phases = []
        for block in branch.children():
            assert isinstance(block, BasicBlock)
            path = self._paths[block]
            hidden = Matrix(x.level, x.channels, name=f"{path}.conv1")
            out = Matrix(x.level, x.channels, name=path, over=x)
            first, second = self._fold(block.conv1, block.bn1), self._fold(block.conv2, block.bn2)
            phases += with_halo(first, _active(x.level, convolve(first, x, hidden)))
            phases += with_halo(second, _active(x.level, convolve(second, hidden, out, residual=x)))
            x = out
        return x, phases

    def _transition(self, stage: int, xs: Sequence[Matrix]) -> tuple[tuple[Matrix, ...], Phases]:
        """The branches of a stage, made from those of the stage before."""
        chains: list[Phases] = []
        ys: list[Matrix] = []
        layers, widths = self.network.transition(stage).children(), self.config.backbone.channels(stage)
        for branch, (layer, width) in enumerate(zip(layers, widths, strict=True)):
            x = xs[min(branch, len(xs) - 1)]
            if isinstance(layer, nn.Identity):  # copies the rows that the new mask needs
                y = Matrix(x.level, x.channels, name=x.name)
                op = resample("same", x, y, from_previous=True)
                chains.append([[RowLoop(y.level, LoopDomain.NEEDED, (op,))]])
            else:
                y = Matrix(FINEST + branch, width, name=self._paths[layer])
                conv = self._fold_chain(next(layer.children()) if branch >= len(xs) else layer)
                op = convolve(conv, x, y, stride=1 << (y.level - x.level), from_previous=True)
                chains.append(with_halo(conv, _active(y.level, op)))
            ys.append(y)
        return tuple(ys), side_by_side(*chains)

    def _fuse(self, module: HighResolutionModule, xs: Sequence[Matrix]) -> tuple[tuple[Matrix, ...], Phases]:
        """The sums of all branches, one for each branch that the module puts out.

        A sum grows in the order in which its parts are ready: finer branches, which take several convolutions of stride
        2, add themselves one by one; then one loop adds all coarser branches. Every sum so far is written over the one
        before. The last one is the output.
        """
        outputs: list[Matrix] = []
        chains: list[Phases] = []
        sums: list[RowLoop] = []
        for target, fusing in enumerate(module.fuse_layers):
            layers = list(fusing.children())
            own = total = xs[target]
            name = f"{self._paths[module]}.out.{target}"
            coarser = range(target + 1, len(xs))
            for source in reversed(range(target)):
                last = source == 0 and not coarser
                over = None if total is own else total
                y = Matrix(own.level, own.channels, name=name if last else None, over=over)
                chains.append(self._hops(layers[source], xs[source], y, residual=total, relu=last))
                total = y
            parts, shift = [], np.zeros(own.channels, np.float32)
            for source in coarser:
                conv = self._fold_chain(layers[source])
                parts.append(part := Matrix(FINEST + source, own.channels))
                op = convolve(replace(conv, shift=None), xs[source], part, relu=False)
                chains.append(with_halo(conv, _active(part.level, op)))
                # The shift is added after upsampling: upsampling weights sum to one, so the result is the same.
                shift = shift if conv.shift is None else shift + conv.shift
            if parts:
                y = Matrix(own.level, own.channels, name=name, over=None if total is own else total)
                op = resample_sum(module.upsample, parts, y, residual=total, shift=shift, relu=True)
                sums.append(RowLoop(y.level, LoopDomain.NEEDED, (op,)))
                total = y
            outputs.append(total)
        return tuple(outputs), [*side_by_side(*chains), sums]

    def _hops(self, hops: nn.Module, x: Matrix, y: Matrix, *, residual: Matrix, relu: bool) -> Phases:
        """Convolutions of stride 2 from `x` to `y`, the last of which adds `residual`."""
        chain: Phases = []
        for hop in hops.children():
            conv, final = self._fold_chain(hop), x.level == y.level - 1
            to = y if final else Matrix(x.level + 1, x.channels, name=self._paths[hop])
            added = residual if final else None
            op = convolve(conv, x, to, stride=2, residual=added, relu=relu or not final)
            chain += with_halo(conv, _active(to.level, op))
            x = to
        return chain

    def _exit(self, step: ExitHead) -> LoweredStep:
        config = self.config
        last = step.stage == 4
        redesigned = config.heads == "redesigned" and not last
        head = self.network.head(step)
        xs = self._before(step.stage + 1, 0)
        if last and config.backbone.last_module_fuses_finest_only:
            xs = xs[:1]
        if redesigned:
            phases = self._redesigned(head, xs, config.downsamplings[step.stage - 1])
        elif config.task == "pose":
            phases = [[_active(FINEST, convolve(self._fold(head[0]), xs[0], self.scores, relu=False))]]
        else:
            phases = self._plain(head, xs)
        return LoweredStep(xs, (self.scores,), phases)

    def _plain(self, head: nn.Sequential, xs: Sequence[Matrix]) -> Phases:
        """A 1x1 convolution commutes with upsampling, so that coarse branches are convolved at their own size."""
        conv, out = self._fold(head[0], head[1]), self._fold(head[3])
        total = conv.weights.shape[2]
        splits = np.split(conv.weights, np.cumsum([x.channels for x in xs])[:-1], axis=1)
        ops: list[Op] = []
        coarse: list[RowLoop] = []
        parts: list[Matrix] = []
        for x, weights in zip(xs[1:], splits[1:], strict=True):
            parts.append(part := Matrix(x.level, total))
            op = convolve(replace(_plain(conv), weights=weights), x, part, relu=False)
            coarse.append(RowLoop(x.level, LoopDomain.NEEDED, (op,)))
        residual = None
        if parts:
            residual = Matrix(FINEST, total, scratch=True)
            ops.append(resample_sum("bilinear", parts, residual))
        hidden = Matrix(FINEST, total, scratch=True, name=conv.name, over=residual)
        ops.append(convolve(replace(conv, weights=splits[0]), xs[0], hidden, residual=residual))
        ops.append(convolve(out, hidden, self.scores, relu=False))
        return [coarse, [_active(FINEST, *ops)]]

    def _redesigned(self, head: nn.Sequential, xs: Sequence[Matrix], depth: int) -> Phases:
        """`depth` times pooling and a 1x1 convolution, then as many times a 1x1 convolution and upsampling. Pooling and
        upsampling commute with 1x1 convolutions, which run at the coarser of the two sizes."""
        layers = [layer for layer in head if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        convs = [self._fold(*layers[i : i + 2]) for i in range(0, len(layers), 2)]
        phases: Phases = []
        for hop, conv in enumerate(convs[:depth], 1):
            level = FINEST + hop
            ops = []
            name = f"{self._paths[head]}.pooled.{hop - 1}"
            pooled = Matrix(level, sum(padded(x.channels) for x in xs), scratch=True, name=name)
            column, weights = 0, []
            first = 0
            for x in xs:
                mode: Mode = "pool" if x.level == level - 1 else "pool_up"
                ops.append(resample(mode, x, pooled, column=column))
                own = conv.weights[:, first : first + x.channels]
                weights.append(np.pad(own, ((0, 0), (0, padded(x.channels) - x.channels), (0, 0))))
                column, first = column + padded(x.channels), first + x.channels
            wide = replace(conv, weights=np.concatenate(weights, 1))
            hidden = Matrix(level, conv.weights.shape[2], name=conv.name)
            phases += with_halo(wide, _active(level, *ops, convolve(wide, pooled, hidden)))
            xs = (hidden,)
        x = xs[0]
        for conv in convs[depth:]:
            final = conv is convs[-1]
            part = Matrix(x.level, conv.weights.shape[2])
            up = self.scores if final else Matrix(x.level - 1, part.channels, name=conv.name)
            op = convolve(_plain(conv), x, part, relu=False)
            phases.append([RowLoop(x.level, LoopDomain.NEEDED, (op,))])
            loop = _active(up.level, resample("bilinear", part, up, bias=conv.bias, shift=conv.shift, relu=not final))
            phases += [[loop]] if final else with_halo(conv, loop)
            x = up
        return phases


def _active(level: int, *ops: Op) -> RowLoop:
    """A loop over the active rows of a level."""
    return RowLoop(level, LoopDomain.ACTIVE, ops)


def _plain(conv: Convolution) -> Convolution:
    """The products alone: neither bias, shift nor halo."""
    return replace(conv, bias=None, shift=None, halo_weights=None)
