"""Resampling between levels as weighted sums of positions: pooling, upsampling, and both in one."""

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.ops import Mode, Resampling
from models.executors.cpu.structures import MARGIN, NativeResamplingTaps


def resampling_taps(
    resamplings: Sequence[Resampling], shape: tuple[int, int]
) -> tuple[ctypes.Array[NativeResamplingTaps], list[NDArray[np.generic]]]:
    """The native taps of every resampling for inputs of one size (H, W), and the arrays that they point into."""
    taps = (NativeResamplingTaps * max(1, len(resamplings)))()
    alive: list[NDArray[np.generic]] = []
    for number, (mode, source, target) in enumerate(resamplings):
        axes = []
        for side in shape:
            index, weight = axis_taps(mode, side >> source, side >> target)
            axes.append((np.ascontiguousarray(index, np.int32), np.ascontiguousarray(weight, np.float32)))
        (y, weight_y), (x, weight_x) = axes
        # Entries of the source level's map, which has a line and a column before the first position.
        y, x = (y + 1) * ((shape[1] >> source) + MARGIN), x + 1
        alive += [y, x, weight_y, weight_x]
        taps[number] = NativeResamplingTaps(*(array.ctypes.data for array in alive[-4:]), y.shape[1])
    return taps, alive


def axis_taps(mode: Mode, source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Along one axis, the positions (of `source`) and weights that each of `target` positions is the sum of.

    Returns indices and weights, each (target, taps). Bilinear is torch's without aligned corners.
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
            index, weight = axis_taps("bilinear", source, 2 * target)
            index, weight = index.reshape(target, 4), weight.reshape(target, 4) / 2
            taps = np.minimum(index[:, :1] + np.arange(3), source - 1)
            # At the border several taps are the same position: the first of them takes all of their weight.
            owner = (index[:, :, None] == taps[:, None, :]).argmax(2)
            return taps, (weight[:, :, None] * (owner[:, :, None] == np.arange(3))).sum(1)
