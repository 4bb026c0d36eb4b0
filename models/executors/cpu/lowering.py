"""From a trained network to ops on rows, step by step, batch norms folded.

What does not depend on each other is put side by side, so that all branches of a module share their passes. Imports
the network; runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from torch import nn

from models.anytime import Step
from models.executors.cpu.library import ACTIVE, NEEDED, PIXELS
from models.executors.cpu.ops import (
    Convolution,
    Job,
    Matrix,
    Mode,
    Op,
    Stages,
    convolve,
    fold,
    fold_chain,
    masked,
    resample,
    together,
)
from models.network.adpc import AdpcNet
from models.network.hrnet import BasicBlock, Bottleneck, HighResolutionModule

IMAGE, HALF, FINEST = 0, 1, 2  # levels


@dataclass(frozen=True, eq=False)
class Lowered:
    """A step: what it reads of the state, what it leaves there, and the work between."""

    inputs: tuple[Matrix, ...]
    outputs: tuple[Matrix, ...]
    stages: Stages


class Lowering:
    """Turns the steps of one network into `Lowered` ones."""

    def __init__(self, network: AdpcNet) -> None:
        self.network = network
        self.config = network.config
        self.scores = Matrix(FINEST, self.config.outputs, "positions")

    def step(self, step: Step) -> Lowered:
        if step.name == "stem":
            return self._stem()
        if step.name == "layer1":
            return self._layer1()
        if step.module is not None:
            return self._module(*step.module)
        return self._exit(int(step.name.removeprefix("exit")))

    def _stem(self) -> Lowered:
        network = self.network
        pixels, half, out = Matrix(IMAGE, 3, "pixels"), Matrix(HALF, 64), Matrix(FINEST, 64)
        first = fold(network.conv1, network.bn1)
        # Three pixels side by side are nine contiguous floats, so that a row of taps is one tap of nine channels.
        rows = replace(first, weights=first.weights.reshape(3, 9, 64))
        stages = [
            [Job(HALF, ACTIVE, (replace(convolve(rows, pixels, half, step=2), lookup=PIXELS),))],
            [Job(FINEST, ACTIVE, (convolve(fold(network.conv2, network.bn2), half, out, step=2),))],
        ]
        return Lowered((pixels,), (out,), stages)

    def _layer1(self) -> Lowered:
        """The last 1x1 of a bottleneck and the first of the next run in one pass, block by block."""
        blocks = [block for block in self.network.layer1 if isinstance(block, Bottleneck)]
        x, out = Matrix(FINEST, 64), Matrix(FINEST, 256)
        narrow = Matrix(FINEST, 64)
        stages = [[Job(FINEST, ACTIVE, (convolve(fold(blocks[0].conv1, blocks[0].bn1), x, narrow),))]]
        for block, following in zip_longest(blocks, blocks[1:]):
            middle = Matrix(FINEST, 64)
            stages.append([Job(FINEST, ACTIVE, (convolve(fold(block.conv2, block.bn2), narrow, middle),))])
            ops: list[Op] = []
            residual = out
            if block.downsample is not None:
                residual = Matrix(FINEST, 256, "scratch")
                ops.append(convolve(fold_chain(block.downsample), x, residual, relu=False))
            ops.append(convolve(fold(block.conv3, block.bn3), middle, out, residual=residual))
            if following is not None:
                narrow = Matrix(FINEST, 64)
                ops.append(convolve(fold(following.conv1, following.bn1), out, narrow))
            stages.append([Job(FINEST, ACTIVE, tuple(ops))])
        return Lowered((x,), (out,), stages)

    def _module(self, stage: int, index: int) -> Lowered:
        """The transition before the stage's first module, then branches, then the sums of all of them."""
        channels = self.config.backbone.channels(stage)
        before = (256,) if stage == 2 else self.config.backbone.channels(stage - 1)
        xs = tuple(Matrix(FINEST + branch, width) for branch, width in enumerate(before if index == 0 else channels))
        inputs, stages = xs, []
        if index == 0:
            xs = tuple(Matrix(FINEST + branch, width) for branch, width in enumerate(channels))
            stages = self._transition(stage, inputs, xs)
        module = self.network.get_submodule(f"stage{stage}.{index}")
        assert isinstance(module, HighResolutionModule)
        stages = stages + together(*(_blocks(branch, x) for branch, x in zip(module.branches, xs, strict=True)))
        outputs = tuple(Matrix(x.level, x.channels) for x in xs[: len(module.fuse_layers)])
        return Lowered(inputs, outputs, stages + self._fuse(module, xs, outputs))

    def _transition(self, stage: int, xs: Sequence[Matrix], ys: Sequence[Matrix]) -> Stages:
        chains: list[Stages] = []
        layers = self.network.get_submodule(f"transition{stage - 1}").children()
        for branch, (layer, y) in enumerate(zip(layers, ys, strict=True)):
            x = xs[min(branch, len(xs) - 1)]
            if isinstance(layer, nn.Identity):  # only the rows that are still needed
                chains.append([[Job(y.level, NEEDED, (resample("same", x, y, previous=True),))]])
                continue
            conv = fold_chain(next(layer.children()) if branch >= len(xs) else layer)
            step = 1 << (y.level - x.level)
            chains.append(masked(conv, Job(y.level, ACTIVE, (convolve(conv, x, y, step=step, previous=True),))))
        return together(*chains)

    def _fuse(self, module: HighResolutionModule, xs: Sequence[Matrix], ys: Sequence[Matrix]) -> Stages:
        """Sums grow in the order in which their parts are ready: finer branches by hops, then all coarser ones."""
        chains: list[Stages] = []
        sums: list[Job] = []
        for target, (fusing, y) in enumerate(zip(module.fuse_layers, ys, strict=True)):
            layers = list(fusing.children())
            total, parts = xs[target], []
            for source in reversed(range(target)):
                hops, x, last = [fold_chain(hop) for hop in layers[source].children()], xs[source], source == 0
                chain: Stages = []
                for hop, conv in enumerate(hops, 1):
                    final = hop == len(hops)
                    to = y if final else Matrix(x.level + 1, x.channels)
                    op = convolve(conv, x, to, step=2, residual=total if final else None, relu=not final)
                    if final and last and target == len(xs) - 1:
                        op = replace(op, relu=True)
                    chain += masked(conv, Job(to.level, ACTIVE, (op,)))
                    x = to
                chains.append(chain)
                total = y
            for source in range(target + 1, len(xs)):
                conv = fold_chain(layers[source])
                part = Matrix(FINEST + source, y.channels)
                op = convolve(replace(conv, shift=None), xs[source], part, relu=False)
                chains.append(masked(conv, Job(part.level, ACTIVE, (op,))))
                # Upsampling weights sum to one, so that the shift may wait.
                last = source == len(xs) - 1
                parts.append(resample(module.upsample, part, y, residual=total, shift=conv.shift, relu=last))
                total = y
            if parts:
                sums.append(Job(y.level, NEEDED, tuple(parts)))
        return [*together(*chains), sums]

    def _exit(self, index: int) -> Lowered:
        config = self.config
        last = index == 4
        redesigned = config.heads == "redesigned" and not last
        head = self.network.last_layer if last else self.network.get_submodule(f"exit{index}")
        assert isinstance(head, nn.Sequential)
        channels = (256,) if index == 1 else config.backbone.channels(index)
        if last and config.backbone.last_module_fuses_finest_only:
            channels = channels[:1]
        xs = tuple(Matrix(FINEST + branch, width) for branch, width in enumerate(channels))
        if redesigned:
            return Lowered(xs, (self.scores,), self._redesigned(head, xs, config.downsamplings[index - 1]))
        if config.task == "pose":
            conv = fold(head[0])
            return Lowered(
                xs, (self.scores,), [[Job(FINEST, ACTIVE, (convolve(conv, xs[0], self.scores, relu=False),))]]
            )
        return Lowered(xs, (self.scores,), self._plain(head, xs))

    def _plain(self, head: nn.Sequential, xs: Sequence[Matrix]) -> Stages:
        """A 1x1 convolution commutes with upsampling: coarse branches are convolved at their own size."""
        conv, out = fold(head[0], head[1]), fold(head[3])
        total = conv.weights.shape[2]
        splits = np.split(conv.weights, np.cumsum([x.channels for x in xs])[:-1], axis=1)
        hidden = Matrix(FINEST, total, "scratch")
        ops: list[Op] = []
        coarse: list[Job] = []
        residual = None
        for x, weights in zip(xs[1:], splits[1:], strict=True):
            part = Matrix(x.level, total)
            coarse.append(
                Job(x.level, NEEDED, (convolve(Convolution(weights, None, None, None), x, part, relu=False),))
            )
            ops.append(resample("bilinear", part, hidden, residual=residual))
            residual = hidden
        ops.append(convolve(replace(conv, weights=splits[0]), xs[0], hidden, residual=residual))
        ops.append(convolve(out, hidden, self.scores, relu=False))
        return [coarse, [Job(FINEST, ACTIVE, tuple(ops))]]

    def _redesigned(self, head: nn.Sequential, xs: Sequence[Matrix], depth: int) -> Stages:
        """Pooling and 1x1s down, then 1x1s and upsampling up; the 1x1s always at the coarser of the two sizes."""
        layers = [layer for layer in head if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        convs = [fold(*layers[i : i + 2]) for i in range(0, len(layers), 2)]
        stages: Stages = []
        for hop, conv in enumerate(convs[:depth], 1):
            level = FINEST + hop
            ops = []
            pooled = Matrix(level, sum(x.stride for x in xs), "scratch")
            column, weights = 0, []
            first = 0
            for x in xs:
                mode: Mode = "pool" if x.level == level - 1 else "pool_up"
                ops.append(resample(mode, x, pooled, column=column))
                weights.append(
                    np.pad(conv.weights[:, first : first + x.channels], ((0, 0), (0, x.stride - x.channels), (0, 0)))
                )
                column, first = column + x.stride, first + x.channels
            wide = replace(conv, weights=np.concatenate(weights, 1))
            hidden = Matrix(level, conv.weights.shape[2])
            stages += masked(wide, Job(level, ACTIVE, (*ops, convolve(wide, pooled, hidden))))
            xs = (hidden,)
        x = xs[0]
        for conv in convs[depth:]:
            final = conv is convs[-1]
            part = Matrix(x.level, conv.weights.shape[2])
            up = self.scores if final else Matrix(x.level - 1, part.channels)
            stages.append(
                [Job(x.level, NEEDED, (convolve(Convolution(conv.weights, None, None, None), x, part, relu=False),))]
            )
            op = resample("bilinear", part, up, bias=conv.bias, shift=conv.shift, relu=not final)
            job = Job(up.level, ACTIVE, (op,))
            stages += [[job]] if final else masked(conv, job)
            x = up
        return stages


def _blocks(branch: nn.Module, x: Matrix) -> Stages:
    """Basic blocks, in place."""
    stages: Stages = []
    for block in branch.children():
        assert isinstance(block, BasicBlock)
        hidden = Matrix(x.level, x.channels)
        first, second = fold(block.conv1, block.bn1), fold(block.conv2, block.bn2)
        stages += masked(first, Job(x.level, ACTIVE, (convolve(first, x, hidden),)))
        stages += masked(second, Job(x.level, ACTIVE, (convolve(second, hidden, x, residual=x),)))
    return stages
