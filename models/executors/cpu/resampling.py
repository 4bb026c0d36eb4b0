"""Resampling between feature sizes as sums of positions: pooling, upsampling, and both in one.

Imports numpy and no network.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu import library as native
from models.executors.cpu.ops import Mode, Resampling


def tables(
    resamplings: Sequence[Resampling], shape: tuple[int, int]
) -> tuple[ctypes.Array[native.Taps], list[NDArray[np.generic]]]:
    """The `Taps` of every resampling for inputs of one size (H, W), and the arrays that they point into."""
    taps = (native.Taps * max(1, len(resamplings)))()
    alive: list[NDArray[np.generic]] = []
    for number, (mode, source, target) in enumerate(resamplings):
        axes = []
        for side in shape:
            index, weight = sources(mode, side >> source, side >> target)
            axes.append((np.ascontiguousarray(index, np.int32), np.ascontiguousarray(weight, np.float32)))
        (y, weight_y), (x, weight_x) = axes
        # Indices are into the map of the source's level; see `Level` in native.h.
        y, x = (y + 1) * ((shape[1] >> source) + native.MARGIN), x + 1
        alive += [y, x, weight_y, weight_x]
        taps[number] = native.Taps(*(array.ctypes.data for array in alive[-4:]), y.shape[1])
    return taps, alive


def sources(mode: Mode, source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Along one axis: which of `source` positions each of `target` positions is the weighted sum of.

    Returns indices and weights, each (target, taps). Bilinear as torch's without aligned corners.
    """
    at = np.arange(target)[:, None]
    match mode:
        case "same":
            return at, np.ones((target, 1))
        case "nearest":
            return at * source // target, np.ones((target, 1))
        case "pool":
            return 2 * at + np.arange(2), np.full((target, 2), 0.5)
        case "bilinear":
            exact = np.maximum((at + 0.5) * source / target - 0.5, 0)
            first = exact.astype(np.int64)
            return np.minimum(first + np.arange(2), source - 1), np.abs(exact - first - np.arange(1, -1, -1))
        case "pool_up":
            index, weight = sources("bilinear", source, 2 * target)
            index, weight = index.reshape(target, 4), weight.reshape(target, 4) / 2
            taps = np.minimum(index[:, :1] + np.arange(3), source - 1)
            # The first of equal (clamped) taps takes all of their weight.
            owner = (index[:, :, None] == taps[:, None, :]).argmax(2)
            return taps, (weight[:, :, None] * (owner[:, :, None] == np.arange(3))).sum(1)
