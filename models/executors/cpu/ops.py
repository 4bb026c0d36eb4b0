"""Ops on rows: what a network is lowered to, whatever the instruction set. They are explained in native/structures.h.

A layer becomes phases: lists of row loops that may run side by side, each phase finished before the next. A masked
convolution takes two phases: the first computes the active rows, the second interpolates the halo from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

from models.executors.cpu.layers import Convolution
from models.executors.cpu.library import Floats
from models.executors.cpu.structures import Addressing, LoopDomain, OpKind, RowDomain

ROW_MULTIPLE = 8
"""The floats of a row are a multiple of this, whatever the number of channels."""
U8_ROW_MULTIPLE = 16
"""The same for bytes, so that a vector of 16 lanes stays within the row."""

Mode = Literal["bilinear", "nearest", "pool", "pool_up", "same"]
"""`pool`: the mean of 2x2. `pool_up`: bilinear upsampling to twice the target's size, then `pool`."""
Resampling = tuple[Mode, int, int]
"""Mode, source level, target level."""


def padded(channels: int) -> int:
    """Floats of a row with so many channels."""
    return -(-channels // ROW_MULTIPLE) * ROW_MULTIPLE


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows of `channels` values at one level.

    `scratch`: only one block of rows exists, in each thread's scratch. `name`: that of the feature, see
    `Lowering`; None for what no convolution reads, such as parts of sums. `over`: a matrix that this one replaces row
    by row, in the same memory. `scale`: values are uint8 times this scale; 0 if they are float32.
    """

    level: int
    channels: int
    domain: RowDomain = RowDomain.NEEDED
    scratch: bool = False
    name: str | None = None
    over: "Matrix | None" = None
    scale: float = 0.0

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        if self.domain == RowDomain.PADDED_PIXELS:
            return self.channels if self.scale else 4 * self.channels
        if self.scale:
            return -(-self.channels // U8_ROW_MULTIPLE) * U8_ROW_MULTIPLE
        return 4 * padded(self.channels)

    @property
    def first(self) -> "Matrix":
        """The matrix whose memory this one takes over; itself if it replaces none."""
        return self if self.over is None else self.over.first


@dataclass(frozen=True, eq=False)
class Op:
    """target = relu(value + bias + shift + residual), see `Op` in native/structures.h.

    `channels`: those of the result. `from_previous`: the source has the rows of the previous geometry. `column`: the
    target's channel that receives the first result. `parts`: resamplings whose values are added to this one's; only
    their sources are used.
    """

    kind: OpKind
    source: Matrix
    target: Matrix
    channels: int
    convolution: Convolution | None = None
    residual: Matrix | None = None
    pre_activation: Matrix | None = None
    from_previous: bool = False
    addressing: Addressing = Addressing.SAME_ROW
    stride: int = 1
    resampling: Resampling | None = None
    bias: Floats | None = None
    shift: Floats | None = None
    column: int = 0
    relu: bool = False
    parts: tuple["Op", ...] = ()

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All that it reads or writes."""
        every = (self.source, *(part.source for part in self.parts), self.target, self.residual, self.pre_activation)
        return tuple(matrix for matrix in every if matrix is not None)

    def __str__(self) -> str:
        """What it does, for a profile: `convolve_u8 9x64->64 at level 2`."""
        channels = f"{1 + len(self.parts)}x{self.channels}" if self.parts else str(self.channels)
        if self.convolution is not None and self.kind != OpKind.INTERPOLATE:
            taps, inputs, _ = self.convolution.weights.shape
            channels = f"{taps}x{inputs}->{channels}"
        return f"{self.kind.name.lower()} {channels} at level {self.target.level}"


@dataclass(frozen=True, eq=False)
class RowLoop:
    """Ops that run one after the other on each block of rows of a domain of one level."""

    level: int
    domain: LoopDomain
    ops: tuple[Op, ...]


Phases = list[list[RowLoop]]


def side_by_side(*chains: Phases) -> Phases:
    """Runs chains of phases that do not depend on each other together: the first phases of all of them, then the
    second ones, and so on."""
    return [[loop for phase in phases for loop in phase] for phases in zip_longest(*chains, fillvalue=[])]


def convolve(
    conv: Convolution,
    source: Matrix,
    target: Matrix,
    *,
    stride: int = 1,
    residual: Matrix | None = None,
    relu: bool = True,
    from_previous: bool = False,
) -> Op:
    """A convolution of 1x1, or of 3x3 with padding 1."""
    taps = conv.weights.shape[0]
    through_map = taps > 1 or stride > 1 or from_previous or source.level != target.level
    return Op(
        OpKind.CONVOLVE,
        source,
        target,
        conv.weights.shape[2],
        conv,
        residual=residual,
        from_previous=from_previous,
        addressing=Addressing.THROUGH_MAP if through_map else Addressing.SAME_ROW,
        stride=stride,
        bias=conv.bias,
        shift=conv.shift,
        relu=relu,
    )


def with_halo(conv: Convolution, loop: RowLoop) -> Phases:
    """`loop`, which computes `conv` at active rows, then the loop that interpolates the halo from the pre-activations
    of its last op. If `conv` is never masked, there is no halo."""
    if conv.halo_weights is None:
        return [[loop]]
    last = loop.ops[-1]
    same = last.shift is None and last.residual is None and not last.relu  # the target holds the pre-activations
    source = last.target if same else Matrix(loop.level, last.channels, RowDomain.ACTIVE)
    halo = Op(
        OpKind.INTERPOLATE,
        source,
        last.target,
        last.channels,
        conv,
        residual=last.residual,
        shift=last.shift,
        relu=last.relu,
    )
    ops = loop.ops if same else (*loop.ops[:-1], replace(last, pre_activation=source))
    return [[replace(loop, ops=ops)], [RowLoop(loop.level, LoopDomain.HALO, (halo,))]]


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
    from_previous: bool = False,
) -> Op:
    """The source's channels at the target's level."""
    return Op(
        OpKind.RESAMPLE,
        source,
        target,
        source.channels,
        residual=residual,
        from_previous=from_previous,
        resampling=(mode, source.level, target.level),
        bias=bias,
        shift=shift,
        relu=relu,
        column=column,
    )


def resample_sum(mode: Mode, sources: Sequence[Matrix], target: Matrix, **after: Any) -> Op:
    """The sum of up to three sources at the target's level. `after`: see `resample`."""
    first, *others = (resample(mode, source, target, **(after if i == 0 else {})) for i, source in enumerate(sources))
    return replace(first, parts=tuple(others))
