"""From a trained network to ops on rows, step by step, batch norms folded.

A layer becomes `Stages`: lists of jobs, each list to be finished before the next. A masked convolution is two: compute
the active rows, then interpolate the halo. What does not depend on each other is zipped, so that all branches of a
module share their passes. Imports the network; knows no instruction set and runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch
from torch import nn

from models.adpc import AdpcNet
from models.executors.native.library import (
    ACTIVE,
    CONVOLVE,
    HALO,
    INTERPOLATE,
    NEEDED,
    NEIGHBOURS,
    PIXELS,
    RESAMPLE,
    SAME_ROW,
    Floats,
)
from models.hrnet import BasicBlock, Bottleneck, HighResolutionModule
from models.masked import MaskedConv2d, rbf

IMAGE, HALF, FINEST = 0, 1, 2  # levels

NEGLIGIBLE = 1e-10  # an interpolation weight beyond float's precision; the smallest would be denormal, and slow

Mode = Literal["bilinear", "nearest", "pool", "pool_up", "same"]
Resampling = tuple[Mode, int, int]
"""Mode, source level, target level."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows of `channels` floats. `rows`: what there is one of for each row; scratch holds one block of a thread."""

    level: int
    channels: int
    rows: Literal["needed", "active", "positions", "pixels", "scratch"] = "needed"

    @property
    def stride(self) -> int:
        return self.channels if self.rows == "pixels" else -(-self.channels // 8) * 8


@dataclass(frozen=True, eq=False)
class Convolution:
    """Weights (taps, in, out) with the batch norm's scale folded in; see `Op` in native.h for the vectors."""

    weights: Floats
    bias: Floats | None
    shift: Floats | None
    classes: Floats | None  # interpolation weight of each class of distance; None: never masked


@dataclass(frozen=True, eq=False)
class Op:
    kind: int
    source: Matrix
    target: Matrix
    channels: int
    convolution: Convolution | None = None
    residual: Matrix | None = None
    kept: Matrix | None = None
    previous: bool = False
    lookup: int = SAME_ROW
    step: int = 1
    resampling: Resampling | None = None
    bias: Floats | None = None
    shift: Floats | None = None
    column: int = 0
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Job:
    level: int
    rows: int
    ops: tuple[Op, ...]


Stages = list[list[Job]]


def together(*chains: Stages) -> Stages:
    """Chains that do not depend on each other, side by side."""
    return [[job for stage in stages for job in stage] for stages in zip_longest(*chains, fillvalue=[])]


def distance_classes(window: int) -> list[int]:
    """The squared distances that occur in a window, in order: an interpolation has one weight for each."""
    reach = range(window // 2 + 1)
    return sorted({y * y + x * x for y in reach for x in reach} - {0})


def fold(conv: nn.Module, norm: nn.Module | None = None) -> Convolution:
    """A convolution and the batch norm after it. The shift stays apart: it is added after interpolation."""
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    shift = None
    if norm is not None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.detach().double() - norm.running_mean.double() * scale
        weight = weight * scale[:, None, None, None]
        bias = None if bias is None else bias * scale
    out, channels, height, width = weight.shape
    classes = None
    if isinstance(conv, MaskedConv2d):
        distances = torch.tensor(distance_classes(conv.window), dtype=torch.float64)
        classes = torch.exp(-(conv.Lambda.detach().double() ** 2) * distances) / rbf(conv.Lambda, conv.window)[1]
        classes[classes < NEGLIGIBLE] = 0
    weight = weight.permute(2, 3, 1, 0).reshape(height * width, channels, out)
    return Convolution(_floats(weight), _optional(bias), _optional(shift), _optional(classes))


def _folded(chain: nn.Module) -> Convolution:
    """A chain that begins with a convolution and its batch norm."""
    return fold(*list(chain.children())[:2])


def _floats(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _optional(tensor: torch.Tensor | None) -> Floats | None:
    return None if tensor is None else _floats(tensor)


def convolve(
    conv: Convolution,
    source: Matrix,
    target: Matrix,
    *,
    step: int = 1,
    residual: Matrix | None = None,
    relu: bool = True,
    previous: bool = False,
) -> Op:
    """One op; `previous`: the source has the rows of the geometry before."""
    taps = conv.weights.shape[0]
    mapped = taps > 1 or step > 1 or previous or source.level != target.level
    return Op(
        CONVOLVE,
        source,
        target,
        conv.weights.shape[2],
        conv,
        residual=residual,
        previous=previous,
        lookup=NEIGHBOURS if mapped else SAME_ROW,
        step=step,
        bias=conv.bias,
        shift=conv.shift,
        relu=relu,
    )


def masked(conv: Convolution, job: Job) -> Stages:
    """`job` gives `conv` at active rows; the halo is interpolated from what its last op keeps."""
    if conv.classes is None:
        return [[job]]
    last = job.ops[-1]
    raw = last.shift is None and last.residual is None and not last.relu
    kept = last.target if raw else Matrix(job.level, last.channels, "active")
    halo = Op(
        INTERPOLATE,
        kept,
        last.target,
        last.channels,
        conv,
        residual=last.residual,
        shift=last.shift,
        relu=last.relu,
    )
    ops = job.ops if raw else (*job.ops[:-1], replace(last, kept=kept))
    return [[replace(job, ops=ops)], [Job(job.level, HALO, (halo,))]]


def resample(
    mode: Mode,
    source: Matrix,
    target: Matrix,
    *,
    residual: Matrix | None = None,
    bias: Floats | None = None,
    shift: Floats | None = None,
    relu: bool = False,
    column: int = 0,
    previous: bool = False,
) -> Op:
    return Op(
        RESAMPLE,
        source,
        target,
        source.channels,
        residual=residual,
        previous=previous,
        resampling=(mode, source.level, target.level),
        bias=bias,
        shift=shift,
        relu=relu,
        column=column,
    )


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

    def step(self, name: str) -> Lowered:
        if name == "stem":
            return self._stem()
        if name == "layer1":
            return self._layer1()
        if name.startswith("stage"):
            return self._module(int(name[5]), int(name[7:]))
        return self._exit(int(name[4:]))

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
                ops.append(convolve(_folded(block.downsample), x, residual, relu=False))
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
            conv = _folded(next(layer.children()) if branch >= len(xs) else layer)
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
                hops, x, last = [_folded(hop) for hop in layers[source].children()], xs[source], source == 0
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
                conv = _folded(layers[source])
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
