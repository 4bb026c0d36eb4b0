"""From lowered steps in float32 to steps in eight bits. models/network/quantised.py says the same in plain integers.

A feature is stored in eight bits if it has a scale. A convolution is quantised if its source is stored in eight bits
and its name is not among the layers that stay in float. The first one reads the image's pixels as they are and is
quantised if its result is stored in eight bits. Everything else stays in float32: sums before their last ReLU,
pre-activations that are interpolated, and scores. A float convolution reads a feature in eight bits through a copy in
float32. Geometry, halo, loops and phases are the same in both precisions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from models.executors.cpu.layers import Convolution, weight_steps
from models.executors.cpu.lowering import LoweredStep
from models.executors.cpu.ops import Matrix, Op, Phases, RowLoop, resample
from models.executors.cpu.structures import Addressing, LoopDomain, OpKind, RowDomain
from models.imaging.preprocess import mean_pixel, normal
from models.network.configs import ModelConfig
from models.quantisation import Scales


def quantise(steps: Sequence[LoweredStep], scales: Scales, config: ModelConfig) -> list[LoweredStep]:
    """All steps of a network, in eight bits where `scales` says so."""
    return [_Step(scales, config).quantise(step) for step in steps]


def of_pixels(conv: Convolution, config: ModelConfig) -> Convolution:
    """The first convolution, (3, 9, out), of pixels of 0..255: their normalisation folded into it."""
    pixels = conv.weights.shape[1] // 3  # of a line that is one tap
    weights = conv.weights * np.tile(normal(config)[0], pixels)[:, None]
    found = replace(conv, weights=weights, weight_steps=weight_steps(weights))
    of_mean = np.tensordot(np.tile(mean_pixel(config), pixels), found.quantised().sum(0, np.int64), 1)
    shift = (0 if conv.shift is None else conv.shift) - of_mean * found.weight_steps.astype(np.float64)
    return replace(found, shift=shift.astype(np.float32))


class _Step:
    """Quantises one step."""

    def __init__(self, scales: Scales, config: ModelConfig) -> None:
        self._scales = scales
        self._config = config
        self._matrices: dict[Matrix, Matrix] = {}

    def quantise(self, step: LoweredStep) -> LoweredStep:
        phases: Phases = []
        for phase in step.phases:
            copies: dict[Matrix, Op] = {}  # of this phase's sources, made in a phase before it
            loops = [replace(loop, ops=tuple(self._ops(loop.ops, copies))) for loop in phase]
            if copies:
                phases.append([RowLoop(x.level, LoopDomain.NEEDED, (copy,)) for x, copy in copies.items()])
            phases.append(loops)
        inputs, outputs = (tuple(self._matrix(m) for m in matrices) for matrices in (step.inputs, step.outputs))
        return LoweredStep(inputs, outputs, phases)

    def _matrix(self, matrix: Matrix) -> Matrix:
        if matrix not in self._matrices:
            scale = 0.0 if matrix.name is None else self._scales.features.get(matrix.name, 0.0)
            if matrix.domain == RowDomain.PADDED_PIXELS and "conv1" not in self._scales.float_layers:
                scale = float("conv1" in self._scales.features)
            over = None if matrix.over is None else self._matrix(matrix.over)
            if over is not None and bool(over.scale) != bool(scale):
                over = None  # rows of another size
            changed = scale or over is not matrix.over
            self._matrices[matrix] = replace(matrix, scale=scale, over=over) if changed else matrix
        return self._matrices[matrix]

    def _ops(self, ops: Iterable[Op], copies: dict[Matrix, Op]) -> Iterable[Op]:
        for op in ops:
            source, target = self._matrix(op.source), self._matrix(op.target)
            residual = None if op.residual is None else self._matrix(op.residual)
            parts = tuple(replace(part, source=self._matrix(part.source), target=target) for part in op.parts)
            new = replace(op, source=source, target=target, residual=residual, parts=parts)
            if op.resampling is not None and op.resampling[0] == "same" and 0 < source.scale == target.scale:
                new = replace(new, kind=OpKind.COPY)
            if source.domain == RowDomain.PADDED_PIXELS and source.scale and op.convolution is not None:
                conv = of_pixels(op.convolution, self._config)
                new = replace(new, convolution=conv, shift=conv.shift)
            if op.kind != OpKind.CONVOLVE or op.convolution is None or not source.scale:
                yield new
            elif op.convolution.name not in self._scales.float_layers:
                yield replace(new, kind=OpKind.CONVOLVE_U8)
            elif op.addressing == Addressing.SAME_ROW:
                copy = replace(source, scale=0.0, name=None, over=None, scratch=True)
                yield resample("same", source, copy)
                yield replace(new, source=copy)
            else:
                if source not in copies:
                    copy = replace(source, scale=0.0, name=None, over=None)
                    copies[source] = resample("same", source, copy, from_previous=op.from_previous)
                yield replace(new, source=copies[source].target, from_previous=False)
