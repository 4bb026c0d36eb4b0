"""The ranges of a network's features over images, and the scales that follow from them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from models.evaluation.observations import BoxedImage
from models.imaging.preprocess import prepare
from models.network.adpc import AdpcNet
from models.network.named import Feature, NamedNetwork
from models.network.network import Progress
from models.quantisation import LARGEST

PERCENTILE = 99.99
"""The percentage of a feature's values that its scale covers; larger values saturate."""
DROPPED_BITS = 15
"""A histogram tells values apart by the first 17 bits of their float32: sign, exponent and 8 bits, 0.4 % of a value."""
BINS = 1 << (31 - DROPPED_BITS)


class RangeObserver(NamedNetwork):
    """The network in float32, under its own masks, which counts the values of every feature.

    `counts`: int64 (BINS,) by feature name: how many values fell into each bin, in ascending order.
    """

    def __init__(self, network: AdpcNet) -> None:
        super().__init__(network)
        self.counts: dict[str, Tensor] = {}

    def feature(self, name: str, values: Tensor) -> Feature:
        # Floats that are not negative sort as their bits do. Adding 0 turns -0 into 0.
        bits = (values + 0.0).flatten().view(torch.int32) >> DROPPED_BITS
        counts = torch.bincount(bits, minlength=BINS)
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts
        return super().feature(name, values)

    def observe(self, images: Iterable[BoxedImage]) -> None:
        """Runs every image through all steps."""
        self.observe_inputs(prepare(image, self.config, box)[0] for image, box in images)

    @torch.inference_mode()
    def observe_inputs(self, inputs: Iterable[Tensor]) -> None:
        """The same for inputs of the network: float32 (N, 3, H, W), normalised and padded."""
        for batch in inputs:
            progress: Progress = self.start(batch)
            for step in self.steps:
                progress = self.advance(progress, step)

    def scales(self, percentile: float = PERCENTILE) -> dict[str, float]:
        """The scale of each feature, by name: its percentile is the largest number of eight bits; 100: its maximum.

        A feature that is 0 on every image gets the scale 1 / LARGEST.
        """
        return {name: scale_of(counts.numpy(), percentile) for name, counts in self.counts.items()}


def scale_of(counts: np.ndarray[tuple[int], np.dtype[np.int64]], percentile: float) -> float:
    """The scale of a feature whose values fell into bins as `counts` says."""
    up_to = counts.cumsum()
    at = int(np.searchsorted(up_to, np.ceil(percentile / 100 * up_to[-1])))
    end = float(np.array((at + 1) << DROPPED_BITS, np.int32).view(np.float32)) if at else 1.0
    return float(f"{end / LARGEST:.6g}")
