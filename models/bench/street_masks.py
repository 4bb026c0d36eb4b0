"""Masks for benchmarks, like those of street scenes: positions near the borders of regions are active, others inactive.

They are computed from label maps, either a data set's or drawn ones with the same statistics.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REGIONS = 5
POLES = 4


def draw(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Draws a label map, uint8 (height, width): layered regions with rough borders, and some upright poles.

    The drawing is tuned to CamVid's val labels at 256x512, for masks with active shares of 0.807, 0.616 and 0.370. The
    share of positions with an active one among their 3x3 neighbours is 0.816, 0.632, 0.394 (CamVid: 0.816, 0.631,
    0.396). The share of 8x8 tiles with an active position is 0.837, 0.672, 0.450 (CamVid: 0.837, 0.667, 0.455).
    """
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415  (an optional dependency, wanted only here)

    random = np.random.default_rng(seed)
    row = np.linspace(0, 1, height)[:, None]

    def smooth(down: float, across: float) -> NDArray[np.float64]:
        field = gaussian_filter(random.standard_normal((height, width)), (down * height, across * height))
        return np.asarray(field / field.std())

    fields = np.stack([smooth(0.25, 0.5) + 0.25 * smooth(0.05, 0.05) for _ in range(REGIONS)])
    fields -= 8 * (row - (np.arange(REGIONS)[:, None, None] + 0.5) / REGIONS) ** 2
    labels: NDArray[np.uint8] = fields.argmax(0).astype(np.uint8)
    for _ in range(POLES):
        left, top = int(random.integers(width)), int(random.integers(height // 2))
        tall, wide = int(random.integers(height // 8, height // 2)), int(random.integers(2, 4)) * height // 256
        labels[top : top + tall, left : left + max(wide, 1)] = REGIONS
    return labels


def masks(labels: NDArray[np.uint8], height: int, width: int, shares: Sequence[float]) -> list[NDArray[np.bool_]]:
    """For each share 0..1 a mask, bool (height, width), in which that share of positions is active: those nearest to a
    border between regions.

    `labels`, uint8 (H, W) of any size, are stretched over the mask. A smaller share's mask lies within a larger one's.
    """
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415  (an optional dependency, wanted only here)

    border = np.zeros(labels.shape, bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    distance = distance_transform_edt(~border)
    y = (np.arange(height) + 0.5) * labels.shape[0] // height
    x = (np.arange(width) + 0.5) * labels.shape[1] // width
    nearest_first = np.argsort(distance[np.ix_(y.astype(int), x.astype(int))].ravel(), kind="stable")
    found = []
    for share in shares:
        mask = np.zeros(height * width, bool)
        mask[nearest_first[: round(share * mask.size)]] = True
        found.append(mask.reshape(height, width))
    return found
