"""The same network in eight bits, in plain integers: what the quantised executors are compared with. Slow and exact.

A feature is stored in eight bits if it has a scale. A convolution is quantised if its source is stored in eight bits
and its path is not among `float_layers`. The first one reads the image's pixels as they are and is quantised if its
result is stored in eight bits; normalisation is folded into its weights and its padding is the mean pixel, rounded.
Everything else stays in float32: what is interpolated, sums before their last ReLU, and scores. Sums of products are
exact integers; what follows them is float32.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.imaging.preprocess import mean_pixel, normal, pixels_of
from models.network.adpc import AdpcNet
from models.network.named import IMAGE, Feature, FoldedConv, NamedNetwork, feature_names
from models.quantisation import LARGEST, Scales

WEIGHT_LARGEST = 127
"""Weights are stored as -127, .., 127."""


class QuantisedNetwork(NamedNetwork):
    """See `Stepwise`. `stored`: the scale of each feature that is stored in eight bits.

    Raises ValueError if `scales` names a feature or a convolution that the network does not have.
    """

    def __init__(self, network: AdpcNet, scales: Scales) -> None:
        super().__init__(network)
        check(network, scales)
        self._float_layers = frozenset(scales.float_layers)
        self._mean_pixel = torch.from_numpy(mean_pixel(network.config)).to(next(network.parameters()).device)
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}
        self.stored = {name: float(np.float32(scale)) for name, scale in scales.features.items()}

    def feature(self, name: str, values: Tensor) -> Feature:
        """The values at the nearest steps of the feature's scale, ties to even; the largest is LARGEST steps."""
        scale = self.stored.get(name)
        if scale is None:
            return Feature(name, values)
        steps_in_one = float(1 / np.float32(scale))
        return Feature(name, (values * steps_in_one).round().clamp(0, LARGEST) * scale)

    def products(self, conv: FoldedConv, x: Feature, columns: slice = slice(None)) -> Tensor:
        source = "conv1" if x.name == IMAGE else x.name  # the image is stored if the result of `conv1` is
        if source not in self.stored or conv.path in self._float_layers:
            return super().products(conv, x, columns)
        sums, (weight, step) = self.sums(conv, x, columns), self._quantised(conv)
        if x.name == IMAGE:
            of_mean = (weight.sum((2, 3)) * self._mean_pixel).sum(1)
            return (sums - of_mean[:, None, None]).float() * step
        return sums.float() * (step * self.stored[x.name])

    def sums(self, conv: FoldedConv, x: Feature, columns: slice = slice(None)) -> Tensor:
        """The accumulators, whole numbers in float64 (N, out, h, w): of a feature's steps times a weight's steps."""
        weight, _ = self._quantised(conv)
        if x.name == IMAGE:
            pixels = pixels_of(x.values, self.config).double() - self._mean_pixel.round()[:, None, None]
            padded = F.pad(pixels, (1, 1, 1, 1)) + self._mean_pixel.round()[:, None, None]
            return F.conv2d(padded, weight, None, conv.conv.stride)
        steps = (x.values / self.stored[x.name]).round().double()
        return F.conv2d(steps, weight[:, columns], None, conv.conv.stride, conv.conv.padding)

    def _quantised(self, conv: FoldedConv) -> tuple[Tensor, Tensor]:
        """The weights in steps, whole numbers in float64, and the value of a step, float32 (out, 1, 1)."""
        if conv.path not in self._weights:
            weight = conv.weight
            if conv.path == "conv1":  # of pixels
                weight = weight * torch.from_numpy(normal(self.config)[0]).to(weight.device)[:, None, None]
            largest = weight.abs().amax((1, 2, 3), keepdim=True)
            step = torch.where(largest > 0, largest / torch.full_like(largest, WEIGHT_LARGEST), 1.0)
            weight = (weight.double() / step.double()).round().clamp(-WEIGHT_LARGEST, WEIGHT_LARGEST)
            self._weights[conv.path] = weight, step[0:, 0]
        return self._weights[conv.path]


def check(network: AdpcNet, scales: Scales) -> None:
    """Raises ValueError if `scales` names a feature or a convolution that the network does not have."""
    paths = {path for path, _ in network.named_modules()}
    for what, given, known in (
        ("features", scales.features, feature_names(network)),
        ("float_layers", scales.float_layers, paths),
    ):
        unknown = sorted(set(given).difference(known))
        if unknown:
            raise ValueError(
                f"{len(unknown)} {what} of the scales are not in {network.config.name}, the first is {unknown[0]}; "
                "make the scales anew: python -m models quantise"
            )
