"""Ops on rows: what a network is lowered to, whatever the instruction set.

A layer becomes `Stages`: lists of jobs, each list to be finished before the next. A masked convolution is two: compute
the active rows, then interpolate the halo. Imports layers, no network.
"""

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch
from torch import nn

from models.executors.cpu.library import CONVOLVE, HALO, INTERPOLATE, NEIGHBOURS, RESAMPLE, SAME_ROW, Floats
from models.network.masked import MaskedConv2d, rbf

NEGLIGIBLE = 1e-10  # an interpolation weight beyond float's precision; the smallest would be denormal, and slow

ROW_MULTIPLE = 8  # of floats in a row of features, whatever the number of channels

Mode = Literal["bilinear", "nearest", "pool", "pool_up", "same"]
Resampling = tuple[Mode, int, int]
"""Mode, source level, target level."""


def padded(channels: int) -> int:
    return -(-channels // ROW_MULTIPLE) * ROW_MULTIPLE


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows of `channels` floats. `rows`: what there is one of for each row; scratch holds one block of a thread."""

    level: int
    channels: int
    rows: Literal["needed", "active", "positions", "pixels", "scratch"] = "needed"

    @property
    def stride(self) -> int:
        return self.channels if self.rows == "pixels" else padded(self.channels)


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


def fold_chain(chain: nn.Module) -> Convolution:
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
