"""Multiply-adds as the paper counts them: those of convolutions, in units of 1024^3.

A masked convolution with active share p counts dense * p + (1 - p) * p * C_out * window^2 * h * w.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from models.anytime import Step
from models.imaging.geometry import MULTIPLE, Size
from models.network.configs import GIGA, ModelConfig
from models.network.masked import MaskedConv2d
from models.network.network import build_network


@dataclass(frozen=True)
class Cost:
    """The cost of convolutions whose results have one size. Either all of them are masked or none is.

    `dense`: their multiply-adds. `interpolation`: their sum of C_out * window^2 * h * w; 0 where nothing is masked.
    """

    dense: int
    interpolation: int
    masked: bool

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.dense + other.dense, self.interpolation + other.interpolation, self.masked)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.dense * times, self.interpolation * times, self.masked)

    def macs(self, active: float) -> float:
        """Multiply-adds at an active share 0..1 of the mask."""
        return self.dense * active + (1 - active) * active * self.interpolation if self.masked else self.dense


Costs = Mapping[tuple[Size, bool], Cost]
"""Costs by (feature size, whether masked)."""


@lru_cache(maxsize=256)  # executors ask at every exit
def costs(model: ModelConfig, height: int, width: int) -> tuple[Costs, ...]:
    """For every exit, the costs of the steps that lead to it from the exit before.

    `height` and `width` are the input's, padded up to multiples of 32. All feature sizes divide those, so that every
    count is in proportion to the area.
    """
    exits: list[Costs] = []
    sums: dict[tuple[Size, bool], Cost] = {}
    for step, found in step_costs(model, height, width):
        for key, cost in found.items():
            sums[key] = sums[key] + cost if key in sums else cost
        if step.exit is not None:
            exits.append(sums)
            sums = {}
    return tuple(exits)


def step_costs(model: ModelConfig, height: int, width: int) -> tuple[tuple[Step, Costs], ...]:
    """`costs` of every step by itself."""
    rows, columns = (-(-side // MULTIPLE) for side in (height, width))
    return tuple(
        (
            step,
            {((h * rows, w * columns), masked): cost * (rows * columns) for ((h, w), masked), cost in found.items()},
        )
        for step, found in _smallest_costs(model)
    )


@lru_cache(maxsize=64)
def _smallest_costs(model: ModelConfig) -> tuple[tuple[Step, Costs], ...]:
    """`step_costs` at 32x32, by running the network there.

    Not on the meta device: its kernels are Python, and a server would wait seconds for them at its start.
    """
    network = build_network(model).eval()
    sums: dict[tuple[Size, bool], Cost] = {}

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        height, width = output.shape[2:]
        masked = isinstance(layer, MaskedConv2d)
        window = layer.window if isinstance(layer, MaskedConv2d) else 0
        area = height * width
        counted = getattr(layer, "multiply_adds", None)  # of a layer that does not convolve its whole input
        dense = counted(height, width) if counted else layer.weight.numel() * area
        cost = Cost(dense, window**2 * layer.out_channels * area, masked)
        key = ((height, width), masked)
        sums[key] = sums[key] + cost if key in sums else cost

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    image = torch.rand(1, 3, MULTIPLE, MULTIPLE, generator=torch.Generator().manual_seed(0))
    progress = network.start(image)
    steps = []
    for step in network.steps:
        with torch.inference_mode():
            progress = network.advance(progress, step, adaptive=False)
        steps.append((step, dict(sums)))
        sums.clear()
    return tuple(steps)


def gmacs(model: ModelConfig, height: int, width: int, active: tuple[float, ...] = ()) -> list[float]:
    """Multiply-adds / 1024^3 from the image to every exit. `active`: the active shares after exits 1, 2, ..; without
    any, everything is active.

    Raises ValueError unless there is one share for every exit but the last.
    """
    exits = costs(model, height, width)
    shares = (1.0, *(active or (1.0,) * (len(exits) - 1)))
    if len(shares) != len(exits):
        raise ValueError(f"{len(active)} active shares for {len(exits)} exits; give {len(exits) - 1}")
    total, cumulative = 0.0, []
    for exit_costs, share in zip(exits, shares, strict=True):
        total += sum(cost.macs(share) for cost in exit_costs.values())
        cumulative.append(total / GIGA)
    return cumulative


def rows(
    model: ModelConfig, height: int, width: int, active: tuple[float, ...], *, as_printed: bool
) -> list[tuple[int, float]]:
    """The rows of `python -m models flops`: each exit's number and its `gmacs`. `as_printed` changes nothing
    here; with it, `mdeq_flops.rows` counts as the paper does. Raises ValueError as `gmacs` does."""
    return list(zip(model.exit_numbers, gmacs(model, height, width, active), strict=True))


def parameters(model: ModelConfig) -> int:
    """How many trainable parameters the network has, one Lambda per masked convolution among them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(model).parameters())
