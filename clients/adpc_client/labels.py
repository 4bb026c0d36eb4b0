"""`Labels`: the names and colours of what a model finds."""

import colorsys
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def _no_palette() -> NDArray[np.uint8]:
    return np.zeros((0, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class Labels:
    """The names and colours of a model's classes or joints.

    `names` has one entry for each class number or joint. `palette`, uint8 (C, 3), is the RGB colour of each name.
    `skeleton` holds the pairs of joints that a limb connects; it is empty for segmentation.
    """

    names: tuple[str, ...] = ()
    palette: NDArray[np.uint8] = field(default_factory=_no_palette)
    skeleton: tuple[tuple[int, int], ...] = ()

    def colours(self, count: int) -> NDArray[np.uint8]:
        """`count` colours, uint8 (`count`, 3): the palette, then further hues that are easy to tell apart."""
        given = self.palette[:count]
        more = [colorsys.hsv_to_rgb(index * 0.618 % 1, 0.65, 0.9) for index in range(len(given), count)]
        return np.concatenate([given, (np.array(more).reshape(-1, 3) * 255).astype(np.uint8)])
