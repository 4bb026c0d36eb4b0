"""Geometries: the native tables of one mask at all levels, which all layers under that mask share."""

import math
import weakref
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.layers import distance_classes
from models.executors.cpu.library import library
from models.executors.cpu.structures import LEVELS, NativeLevel, NativeTileCosts


class Geometry:
    """The tables of `mask`, bool (h, w) at the size of the scores; None if every position is active. `build` makes the
    tables. Raises MemoryError if there is no memory even to begin.
    """

    def __init__(
        self, mask: NDArray[np.bool_] | None, size: tuple[int, int], factory: "GeometryFactory", *, full_halo: bool
    ) -> None:
        self.mask = None if mask is None else np.ascontiguousarray(mask)
        self._size = size
        self._factory = factory  # whose arrays the native code reads until the tables are built
        data = None if self.mask is None else self.mask.ctypes.data
        self.native = library().geometry_begin(
            data, *size, factory.window, factory.classes.ctypes.data, factory.tile_costs, full_halo
        )
        if not self.native:
            raise MemoryError(self._too_large())
        weakref.finalize(self, library().geometry_free, self.native)

    def build(self, slice_s: float = math.inf) -> bool:
        """Goes on building the tables for `slice_s` seconds. Returns whether they are complete, so that they can be
        used. Raises MemoryError if there is no memory for them; the next call begins anew."""
        found: int = library().geometry_build(self.native, slice_s)
        if found < 0:
            raise MemoryError(self._too_large())
        return found == 1

    def _too_large(self) -> str:
        return "no memory for the tables of a mask of {}x{}; send a smaller image".format(*self._size)

    def level(self, level: int) -> NativeLevel:
        found: NativeLevel = self.native.contents.level[level]
        return found

    def active_share(self, level: int) -> float:
        """Share of the level's positions that are active, 0..1."""
        at = self.level(level)
        return float(at.active_rows / (at.height * at.width))


class GeometryFactory:
    """Makes the geometries of one network.

    `window`: side of its interpolation window. `used_classes`: the number of distance classes, the nearest first, that
    have a weight in any of its layers. `tile_costs`: those of each level; None if no layer runs on tiles.
    """

    def __init__(self, window: int, used_classes: int, tile_costs: Sequence[NativeTileCosts] | None) -> None:
        distances = distance_classes(window)
        self.window = window
        self.classes = np.full(distances[-1] + 1, -1, np.int32)
        self.classes[distances[:used_classes]] = np.arange(used_classes)
        self.tile_costs = None if tile_costs is None else (NativeTileCosts * LEVELS)(*tile_costs)
        self.all_active = lru_cache(maxsize=8)(lambda size: Geometry(None, size, self, full_halo=False))
        """The geometry of a size (h, w) where every position is active; still to be built when it is new."""

    def under(self, mask: NDArray[np.bool_], *, full_halo: bool) -> Geometry:
        """The geometry of `mask`, still to be built. `full_halo`: every inactive position is interpolated, because the
        next mask may be active where this one is not."""
        return Geometry(mask, mask.shape, self, full_halo=full_halo)
