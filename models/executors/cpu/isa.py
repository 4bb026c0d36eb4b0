"""Instruction sets: which kernels this machine can run, and how they read weights."""

import os
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.library import Floats, library
from models.executors.cpu.memory import Value, aligned
from models.executors.cpu.ops import ROW_MULTIPLE, padded


@dataclass(frozen=True)
class Isa:
    """An instruction set.

    `kernels`: address of its kernels. `lanes`: floats of a vector. `panel_vectors`: the most vectors of output channels
    in a panel of packed weights. `dot_parts`, `dot_signed`, `dot_tail`: how it multiplies bytes, see
    native/convolution_u8.h.
    """

    kernels: int
    name: str
    lanes: int
    panel_vectors: int
    dot_parts: int
    dot_signed: bool
    dot_tail: int

    @classmethod
    def find(cls, name: str | None = None) -> "Isa":
        """The one called `name`: avx512vnni, avx512, avxvnni, avx2 or portable, on ARM neondot or neon. Without a name,
        that of the environment variable ADPC_ISA; if this is unset or empty, the best of this machine.

        Raises ValueError if the machine lacks it, OSError if the native library is not built.
        """
        lib = library()
        variable = None if name else os.environ.get("ADPC_ISA")
        name = name or variable or None
        kernels = lib.kernels_find(None if name is None else name.encode())
        if not kernels:
            missing = f"this machine has no {name} kernels"
            if variable:
                raise ValueError(f"ADPC_ISA is {name}, and {missing}; unset it for the best that it has")
            raise ValueError(f"{missing}; leave the name out for the best that it has")
        return cls(
            kernels,
            lib.kernels_name(kernels).decode(),
            lib.kernels_lanes(kernels),
            lib.kernels_panel_vectors(kernels),
            lib.kernels_dot_parts(kernels),
            bool(lib.kernels_dot_signed(kernels)),
            lib.kernels_dot_tail(kernels),
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

    def pack_u8(self, weights: NDArray[np.int8]) -> NDArray[np.signedinteger]:
        """int8 (taps, in, out) -> [panel][tap][group][part][out of the panel][4 / parts], flat, see
        native/convolution_u8.h. The last panel ends at the end of a row, or in a tail, see native/dot_tail.h."""
        taps, channels, out = weights.shape
        rest = out % self.lanes
        tail = -(-rest // 2) * 2 if rest <= self.dot_tail else 0
        end, parts = out - rest if tail else padded(out), self.dot_parts
        whole = np.pad(weights, ((0, 0), (0, -channels % 4), (0, max(0, end - out))))[:, :, :end]
        # Channel 4 * group + parts * place + part.
        parted = whole.reshape(taps, -(-channels // 4), 4 // parts, parts, end).transpose(0, 1, 3, 4, 2)
        panels = [parted[:, :, :, panel].reshape(taps, -1) for panel in self.panels(out)]
        if tail:
            last = np.pad(weights[:, :, end:], ((0, 0), (0, -channels % 16), (0, tail - rest)))
            last = last.reshape(taps, -1, 16, tail).transpose(0, 1, 3, 2).reshape(taps, -1)
            panels[-1] = np.concatenate([panels[-1], last], axis=1)
        return aligned(np.concatenate([panel.ravel() for panel in panels]).astype(f"int{8 * parts}"))

    def first_sums(self, weights: NDArray[np.int8]) -> NDArray[np.int32] | None:
        """Initial accumulator values, (out,), that correct for signed inputs of int8 weights (taps, in, out); None: the
        accumulators begin at 0. See native/dot_neon.h."""
        return self.pad_vector(128 * weights.sum((0, 1), np.int32)) if self.dot_signed else None

    def pad_vector(self, values: NDArray[Value]) -> NDArray[Value]:
        """One value a channel, (channels,), with zeros up to the end of the row and of its last vector."""
        return aligned(np.pad(values, (0, -values.size % max(self.lanes, ROW_MULTIPLE))))
