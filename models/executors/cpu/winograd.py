"""Winograd's minimal filtering (Lavin and Gray, CVPR 2016) for 3x3 convolutions of stride 1: weights, prices of tiles.

A level's active positions are covered by tiles of 4x4 and of 2x2 and by single rows at the least price; all three
compute the same convolution. Imports ops, no network.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu import library as native
from models.executors.cpu.library import CONVOLVE, SINGLES, TILES_2, TILES_4, WINOGRAD, Floats
from models.executors.cpu.ops import Job

FOUR_WEIGHTS = 192 * 192
"""Channels in times out up to which the tile of 4x4 pays: the weights of larger ones take longer to come from memory
than the products that they save."""


def prices(channels: int) -> native.Prices:
    """What a tile costs between features of `channels`, where a single position costs 1.

    Fitted to one Zen 3 core with AVX2 at 18 to 384 channels: the products, in proportion, and the transforms, which
    weigh less the more channels there are. Constants, not measured when a model is loaded, so that an answer's bits
    depend on nothing but the input.
    """
    four = 4.7 + 40 / channels if channels * channels <= FOUR_WEIGHTS else math.inf
    return native.Prices(four, 1.8 + 15 / channels, 36, 12)


def tiled(job: Job, price: native.Prices) -> list[Job]:
    """`job` in up to three parts, for the tiles and singles of its level, if it is nothing but such a convolution."""
    op = job.ops[0]
    if len(job.ops) > 1 or op.kind != CONVOLVE or op.convolution is None:
        return [job]
    if op.convolution.weights.shape[0] != 9 or op.step != 1:
        return [job]
    parts = [replace(job, rows=SINGLES)]
    for rows, axis in (TILES_4, FOUR), (TILES_2, TWO):
        if rows == TILES_4 and math.isinf(price.four):
            continue
        weights = replace(op.convolution, weights=filtered(op.convolution.weights, axis))
        parts.append(replace(job, rows=rows, ops=(replace(op, kind=WINOGRAD, convolution=weights),)))
    return parts


def _axis(*points: float) -> NDArray[np.float64]:
    """(points + 1, 3): what takes 3 taps along one axis to the products at finite points, and at infinity."""
    rows = []
    for point in points:
        norm = math.prod(point - other for other in points if other != point)
        rows.append([1 / norm, point / norm, point**2 / norm])
    return np.array([*rows, [0, 0, 1]])


TWO = _axis(0, 1, -1) * [[-1], [1], [1], [1]]  # winograd.h has the sign of the first product in the other matrix
FOUR = _axis(0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))


def filtered(weights: Floats, axis: NDArray[np.float64]) -> Floats:
    """(9, in, out) -> (points, in, out)."""
    points = np.kron(axis, axis) @ weights.reshape(9, -1).astype(np.float64)
    return points.reshape(-1, *weights.shape[1:]).astype(np.float32)
