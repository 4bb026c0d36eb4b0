"""Instruction sets: which kernels this machine can run, and how they read weights."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from models.executors.cpu.library import Floats, library
from models.executors.cpu.memory import aligned
from models.executors.cpu.ops import ROW_MULTIPLE, padded


@dataclass(frozen=True)
class Isa:
    """An instruction set.

    `kernels`: address of its kernels. `lanes`: floats of a vector. `panel_vectors`: the most vectors of output channels
    in a panel of packed weights.
    """

    kernels: int
    name: str
    lanes: int
    panel_vectors: int

    @classmethod
    def find(cls, name: str | None = None) -> "Isa":
        """The best of this machine, or the one called `name`. Raises ValueError if the machine lacks it, OSError if the
        native library is not built."""
        lib = library()
        kernels = lib.kernels_find(None if name is None else name.encode())
        if not kernels:
            raise ValueError(f"this machine has no {name} kernels; leave the name out for the best that it has")
        return cls(
            kernels,
            lib.kernels_name(kernels).decode(),
            lib.kernels_lanes(kernels),
            lib.kernels_panel_vectors(kernels),
        )

    def panels(self, channels: int) -> list[slice]:
        """The output channels of each panel, a whole number of vectors; the same cut as `Panels` in
        native/accumulate.h."""
        vectors = -(-padded(channels) // self.lanes)
        count = -(-vectors // self.panel_vectors)
        edges = [vectors * i // count * self.lanes for i in range(count + 1)]
        return [slice(*pair) for pair in pairwise(edges)]

    def pack(self, weights: Floats) -> Floats:
        """(taps, in, out) -> [panel][tap][in][out of the panel], flat, with zeros up to the end of the last vector."""
        panels = self.panels(weights.shape[2])
        whole = np.pad(weights, ((0, 0), (0, 0), (0, panels[-1].stop - weights.shape[2])))
        return aligned(np.concatenate([whole[:, :, panel].ravel() for panel in panels]))

    def pad_vector(self, values: Floats) -> Floats:
        """One value a channel, (channels,), with zeros up to the end of the row and of its last vector."""
        return aligned(np.pad(values, (0, -values.size % max(self.lanes, ROW_MULTIPLE))))
