"""Geometries: a mask's native tables, which every convolution under the mask shares. Imports no network."""

import weakref
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu import library as native
from models.executors.cpu.library import library
from models.executors.cpu.ops import Matrix, distance_classes


class Geometry:
    """Native tables for one mask (bool (h, w) at the size of the scores; None: all active)."""

    def __init__(
        self, mask: NDArray[np.bool_] | None, size: tuple[int, int], makers: "Geometries", *, everywhere: bool
    ) -> None:
        self.mask = None if mask is None else np.ascontiguousarray(mask)
        data = None if self.mask is None else self.mask.ctypes.data
        self.native = library().geometry_create(
            data, *size, makers.window, makers.classes.ctypes.data, makers.prices, everywhere
        )
        if not self.native:
            raise MemoryError(f"no memory for the tables of a mask of {size[0]}x{size[1]}")
        weakref.finalize(self, library().geometry_free, self.native)

    def rows(self, matrix: Matrix) -> int:
        level = self.native.contents.level[matrix.level]
        match matrix.rows:
            case "needed":
                return int(level.needed)
            case "active":
                return int(level.active)
            case "positions":
                return int(level.height * level.width)
            case "pixels":
                return int((level.height + 2) * (level.width + 2))
        return 0

    def share(self, level: int) -> float:
        """Active share of a level."""
        at = self.native.contents.level[level]
        return float(at.active / (at.height * at.width))


class Geometries:
    """Makes the geometries of one network.

    `window`: of its interpolation; `near`: how many classes of distance weigh anything in any of its layers.
    `prices`: of the tiles of every level.
    """

    def __init__(self, window: int, near: int, prices: Sequence[native.Prices]) -> None:
        distances = distance_classes(window)
        self.window = window
        self.classes = np.full(distances[-1] + 1, -1, np.int32)
        self.classes[distances[:near]] = np.arange(near)
        self.prices = (native.Prices * native.LEVELS)(*prices)
        self.dense = lru_cache(maxsize=8)(lambda size: Geometry(None, size, self, everywhere=False))
        """The geometry of a size (h, w) where everything is active."""

    def under(self, mask: NDArray[np.bool_], *, everywhere: bool) -> Geometry:
        """`everywhere`: every inactive position is interpolated, for masks that may grow again at the next exit."""
        return Geometry(mask, mask.shape, self, everywhere=everywhere)
