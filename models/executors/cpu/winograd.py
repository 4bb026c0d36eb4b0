"""Winograd's minimal filtering (Lavin and Gray, CVPR 2016) for 3x3 convolutions of stride 1: weights and tile costs.

Tiles of 4x4, tiles of 2x2 and single rows together cover a level's active positions at the least cost. All three
compute the same convolution.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Floats
from models.executors.cpu.ops import RowLoop
from models.executors.cpu.structures import LoopDomain, NativeTileCosts, OpKind

MAX_4X4_WEIGHTS = 192 * 192
"""Input times output channels up to which 4x4 tiles pay. The weights of a larger convolution take longer to come from
memory than the products that the tiles save."""


def tile_costs(channels: int) -> NativeTileCosts:
    """The cost of a tile between features of so many channels, in units of a single position's cost.

    Fitted to one Zen 3 core with AVX2 at 18 to 384 channels: the products, in proportion, and the transforms, whose
    share is smaller the more channels there are. These are constants and not measured when a model is loaded, so that
    the bits of an answer depend on nothing but the input.
    """
    tile_4x4 = 4.7 + 40 / channels if channels * channels <= MAX_4X4_WEIGHTS else math.inf
    return NativeTileCosts(tile_4x4, 1.8 + 15 / channels, first_tile_4x4=36, first_tile_2x2=12)


def tiled(loop: RowLoop, costs: NativeTileCosts) -> list[RowLoop]:
    """Splits a loop that is one 3x3 convolution of stride 1 into loops over singles, 4x4 tiles and 2x2 tiles. Returns
    any other loop as it is."""
    op = loop.ops[0]
    if len(loop.ops) > 1 or op.kind != OpKind.CONVOLVE or op.convolution is None:
        return [loop]
    if op.convolution.weights.shape[0] != 9 or op.stride != 1:
        return [loop]
    parts = [replace(loop, domain=LoopDomain.SINGLES)]
    for domain, axis in (LoopDomain.TILES_4X4, AXIS_4), (LoopDomain.TILES_2X2, AXIS_2):
        if domain == LoopDomain.TILES_4X4 and math.isinf(costs.tile_4x4):
            continue
        weights = replace(op.convolution, weights=transformed(op.convolution.weights, axis))
        tile = replace(op, kind=OpKind.WINOGRAD, convolution=weights)
        parts.append(replace(loop, domain=domain, ops=(tile,)))
    return parts


def _axis(*points: float) -> NDArray[np.float64]:
    """The transform of 3 taps along one axis, (points + 1, 3): one row for each finite point, and one for infinity."""
    rows = []
    for point in points:
        norm = math.prod(point - other for other in points if other != point)
        rows.append([1 / norm, point / norm, point**2 / norm])
    return np.array([*rows, [0, 0, 1]])


# native/winograd.h negates the sources of the first product of a 2x2 tile, so its weights are negated as well.
AXIS_2 = _axis(0, 1, -1) * [[-1], [1], [1], [1]]
AXIS_4 = _axis(0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))


def transformed(weights: Floats, axis: NDArray[np.float64]) -> Floats:
    """Weights of a 3x3 convolution for tiles: (9, in, out) -> (points, in, out)."""
    points = np.kron(axis, axis) @ weights.reshape(9, -1).astype(np.float64)
    return points.reshape(-1, *weights.shape[1:]).astype(np.float32)
