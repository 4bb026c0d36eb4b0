"""From a trained network to ops on rows, step by step.

Work that does not depend on each other is put side by side: all branches of a module share their phases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from torch import nn

from models.anytime import Step
from models.executors.cpu.layers import Convolution, fold, fold_chain
from models.executors.cpu.ops import (
    Matrix,
    Mode,
    Op,
    Phases,
    RowLoop,
    convolve,
    resample,
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

    def _stem(self) -> LoweredStep:
        network = self.network
        pixels, half, out = Matrix(IMAGE, 3, RowDomain.PADDED_PIXELS), Matrix(HALF, 64), Matrix(FINEST, 64)
        first = fold(network.conv1, network.bn1)
        # Three adjacent pixels are nine contiguous floats, so that a line of three taps is one tap of nine channels.
        lines = replace(first, weights=first.weights.reshape(3, 9, 64))
        conv1 = replace(convolve(lines, pixels, half, stride=2), addressing=Addressing.PADDED_IMAGE)
        conv2 = convolve(fold(network.conv2, network.bn2), half, out, stride=2)
        phases = [[_active(HALF, conv1)], [_active(FINEST, conv2)]]
        return LoweredStep((pixels,), (out,), phases)

    def _layer1(self) -> LoweredStep:
        """The last 1x1 convolution of a bottleneck and the first of the next one share a row loop, so that a block of
        rows is still in the cache."""
        blocks = [block for block in self.network.layer1 if isinstance(block, Bottleneck)]
        x, out = Matrix(FINEST, 64), Matrix(FINEST, 256)
        narrow = Matrix(FINEST, 64)
        phases = [[_active(FINEST, convolve(fold(blocks[0].conv1, blocks[0].bn1), x, narrow))]]
        for block, following in zip_longest(blocks, blocks[1:]):
            middle = Matrix(FINEST, 64)
            phases.append([_active(FINEST, convolve(fold(block.conv2, block.bn2), narrow, middle))])
            ops: list[Op] = []
            residual = out
            if block.downsample is not None:
                residual = Matrix(FINEST, 256, scratch=True)
                ops.append(convolve(fold_chain(block.downsample), x, residual, relu=False))
            ops.append(convolve(fold(block.conv3, block.bn3), middle, out, residual=residual))
            if following is not None:
                narrow = Matrix(FINEST, 64)
                ops.append(convolve(fold(following.conv1, following.bn1), out, narrow))
            phases.append([_active(FINEST, *ops)])
        return LoweredStep((x,), (out,), phases)

    def _module(self, step: StageModule) -> LoweredStep:
        """The transition, if the module is the first of its stage; then the branches; then their sums."""
        stage, index = step.stage, step.index
        channels = self.config.backbone.channels(stage)
        before = (256,) if stage == 2 else self.config.backbone.channels(stage - 1)
        xs = tuple(Matrix(FINEST + branch, width) for branch, width in enumerate(before if index == 0 else channels))
        inputs, phases = xs, []
        if index == 0:
            xs = tuple(Matrix(FINEST + branch, width) for branch, width in enumerate(channels))
            phases = self._transition(stage, inputs, xs)
        module = self.network.module(step)
        phases = phases + side_by_side(*(_blocks(branch, x) for branch, x in zip(module.branches, xs, strict=True)))
        outputs = tuple(Matrix(x.level, x.channels) for x in xs[: len(module.fuse_layers)])
        return LoweredStep(inputs, outputs, phases + self._fuse(module, xs, outputs))

    def _transition(self, stage: int, xs: Sequence[Matrix], ys: Sequence[Matrix]) -> Phases:
        chains: list[Phases] = []
        layers = self.network.transition(stage).children()
        for branch, (layer, y) in enumerate(zip(layers, ys, strict=True)):
            x = xs[min(branch, len(xs) - 1)]
            if isinstance(layer, nn.Identity):  # copies the rows that the new mask needs
                op = resample("same", x, y, from_previous=True)
                chains.append([[RowLoop(y.level, LoopDomain.NEEDED, (op,))]])
                continue
            conv = fold_chain(next(layer.children()) if branch >= len(xs) else layer)
            op = convolve(conv, x, y, stride=1 << (y.level - x.level), from_previous=True)
            chains.append(with_halo(conv, _active(y.level, op)))
        return side_by_side(*chains)

    def _fuse(self, module: HighResolutionModule, xs: Sequence[Matrix], ys: Sequence[Matrix]) -> Phases:
        """A sum grows in the order in which its parts are ready: finer branches, which take several convolutions of
        stride 2, add themselves one by one; then one loop adds all coarser branches."""
        chains: list[Phases] = []
        sums: list[RowLoop] = []
        for target, (fusing, y) in enumerate(zip(module.fuse_layers, ys, strict=True)):
            layers = list(fusing.children())
            total, parts = xs[target], []
            for source in reversed(range(target)):
                hops, x, last = [fold_chain(hop) for hop in layers[source].children()], xs[source], source == 0
                chain: Phases = []
                for hop, conv in enumerate(hops, 1):
                    final = hop == len(hops)
                    to = y if final else Matrix(x.level + 1, x.channels)
                    op = convolve(conv, x, to, stride=2, residual=total if final else None, relu=not final)
                    if final and last and target == len(xs) - 1:
                        op = replace(op, relu=True)
                    chain += with_halo(conv, _active(to.level, op))
                    x = to
                chains.append(chain)
                total = y
            for source in range(target + 1, len(xs)):
                conv = fold_chain(layers[source])
                part = Matrix(FINEST + source, y.channels)
                op = convolve(replace(conv, shift=None), xs[source], part, relu=False)
                chains.append(with_halo(conv, _active(part.level, op)))
                # The shift is added after upsampling: upsampling weights sum to one, so that the result is the same.
                last = source == len(xs) - 1
                parts.append(resample(module.upsample, part, y, residual=total, shift=conv.shift, relu=last))
                total = y
            if parts:
                sums.append(RowLoop(y.level, LoopDomain.NEEDED, tuple(parts)))
        return [*side_by_side(*chains), sums]

    def _exit(self, step: ExitHead) -> LoweredStep:
        config = self.config
        last = step.stage == 4
        redesigned = config.heads == "redesigned" and not last
        head = self.network.head(step)
        channels = (256,) if step.stage == 1 else config.backbone.channels(step.stage)
        if last and config.backbone.last_module_fuses_finest_only:
            channels = channels[:1]
        xs = tuple(Matrix(FINEST + branch, width) for branch, width in enumerate(channels))
        if redesigned:
            phases = self._redesigned(head, xs, config.downsamplings[step.stage - 1])
        elif config.task == "pose":
            phases = [[_active(FINEST, convolve(fold(head[0]), xs[0], self.scores, relu=False))]]
        else:
            phases = self._plain(head, xs)
        return LoweredStep(xs, (self.scores,), phases)

    def _plain(self, head: nn.Sequential, xs: Sequence[Matrix]) -> Phases:
        """A 1x1 convolution commutes with upsampling, so that coarse branches are convolved at their own size."""
        conv, out = fold(head[0], head[1]), fold(head[3])
        total = conv.weights.shape[2]
        splits = np.split(conv.weights, np.cumsum([x.channels for x in xs])[:-1], axis=1)
        hidden = Matrix(FINEST, total, scratch=True)
        ops: list[Op] = []
        coarse: list[RowLoop] = []
        residual = None
        for x, weights in zip(xs[1:], splits[1:], strict=True):
            part = Matrix(x.level, total)
            op = convolve(Convolution(weights, None, None, None), x, part, relu=False)
            coarse.append(RowLoop(x.level, LoopDomain.NEEDED, (op,)))
            ops.append(resample("bilinear", part, hidden, residual=residual))
            residual = hidden
        ops.append(convolve(replace(conv, weights=splits[0]), xs[0], hidden, residual=residual))
        ops.append(convolve(out, hidden, self.scores, relu=False))
        return [coarse, [_active(FINEST, *ops)]]

    def _redesigned(self, head: nn.Sequential, xs: Sequence[Matrix], depth: int) -> Phases:
        """`depth` times pooling and a 1x1 convolution, then as many times a 1x1 convolution and upsampling. Pooling and
        upsampling commute with 1x1 convolutions, which run at the coarser of the two sizes."""
        layers = [layer for layer in head if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        convs = [fold(*layers[i : i + 2]) for i in range(0, len(layers), 2)]
        phases: Phases = []
        for hop, conv in enumerate(convs[:depth], 1):
            level = FINEST + hop
            ops = []
            pooled = Matrix(level, sum(x.row_pitch for x in xs), scratch=True)
            column, weights = 0, []
            first = 0
            for x in xs:
                mode: Mode = "pool" if x.level == level - 1 else "pool_up"
                ops.append(resample(mode, x, pooled, column=column))
                own = conv.weights[:, first : first + x.channels]
                weights.append(np.pad(own, ((0, 0), (0, x.row_pitch - x.channels), (0, 0))))
                column, first = column + x.row_pitch, first + x.channels
            wide = replace(conv, weights=np.concatenate(weights, 1))
            hidden = Matrix(level, conv.weights.shape[2])
            phases += with_halo(wide, _active(level, *ops, convolve(wide, pooled, hidden)))
            xs = (hidden,)
        x = xs[0]
        for conv in convs[depth:]:
            final = conv is convs[-1]
            part = Matrix(x.level, conv.weights.shape[2])
            up = self.scores if final else Matrix(x.level - 1, part.channels)
            op = convolve(Convolution(conv.weights, None, None, None), x, part, relu=False)
            phases.append([RowLoop(x.level, LoopDomain.NEEDED, (op,))])
            loop = _active(up.level, resample("bilinear", part, up, bias=conv.bias, shift=conv.shift, relu=not final))
            phases += [[loop]] if final else with_halo(conv, loop)
            x = up
        return phases


def _active(level: int, *ops: Op) -> RowLoop:
    """A loop over the active rows of a level."""
    return RowLoop(level, LoopDomain.ACTIVE, ops)


def _blocks(branch: nn.Module, x: Matrix) -> Phases:
    """The basic blocks of a branch. Each writes its result over its input `x`."""
    phases: Phases = []
    for block in branch.children():
        assert isinstance(block, BasicBlock)
        hidden = Matrix(x.level, x.channels)
        first, second = fold(block.conv1, block.bn1), fold(block.conv2, block.bn2)
        phases += with_halo(first, _active(x.level, convolve(first, x, hidden)))
        phases += with_halo(second, _active(x.level, convolve(second, hidden, x, residual=x)))
    return phases
