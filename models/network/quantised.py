"""The same network in eight bits, in plain integers: what the quantised executors are compared with. Slow and exact.

A feature is stored in eight bits if it has a scale. A convolution is quantised if its source is stored in eight bits
and its path is not among `float_layers`. Everything else stays in float32: the image, what is interpolated, sums before
their last ReLU, and scores. Sums of products are exact integers; what follows them is float32.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.network.adpc import AdpcNet
from models.network.named import Feature, FoldedConv, NamedNetwork, feature_names
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
        if x.name not in self.stored or conv.path in self._float_layers:
            return super().products(conv, x, columns)
        _, step = self._quantised(conv)
        return self.sums(conv, x, columns).float() * (step * self.stored[x.name])

    def sums(self, conv: FoldedConv, x: Feature, columns: slice = slice(None)) -> Tensor:
        """The accumulators, whole numbers in float64 (N, out, h, w): of a feature's steps times a weight's steps."""
        weight, _ = self._quantised(conv)
        steps = (x.values / self.stored[x.name]).round().double()
        return F.conv2d(steps, weight[:, columns], None, conv.conv.stride, conv.conv.padding)

    def _quantised(self, conv: FoldedConv) -> tuple[Tensor, Tensor]:
        """The weights in steps, whole numbers in float64, and the value of a step, float32 (out, 1, 1)."""
        if conv.path not in self._weights:
            largest = conv.weight.abs().amax((1, 2, 3), keepdim=True)
            step = torch.where(largest > 0, largest / torch.full_like(largest, WEIGHT_LARGEST), 1.0)
            weight = (conv.weight.double() / step.double()).round().clamp(-WEIGHT_LARGEST, WEIGHT_LARGEST)
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
