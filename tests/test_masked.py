import math

import pytest
import torch

from models.network.confidence import Masks
from models.network.masked import MaskedConv2d, interpolate


def interpolated(z: torch.Tensor, scale: float, window: int, y: int, x: int) -> torch.Tensor:
    """Equations 5 and 6 at one position, term by term. The norm sums all weights, at borders too."""
    radius = window // 2
    total = torch.zeros(z.shape[1])
    norm = 0.0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy == dx == 0:
                continue
            weight = math.exp(-(scale**2) * (dy**2 + dx**2))
            norm += weight
            if 0 <= y + dy < z.shape[2] and 0 <= x + dx < z.shape[3]:
                total += weight * z[0, :, y + dy, x + dx]
    return total / (norm + 1e-5)


@pytest.mark.parametrize("window", [3, 5, 7, 9])
def test_interpolation_is_equation_5(window: int) -> None:
    z = torch.randn(1, 3, 6, 11, generator=torch.Generator().manual_seed(window))
    got = interpolate(z, torch.tensor(0.7), window)
    for y, x in [(0, 0), (5, 10), (3, 4), (0, 7)]:
        torch.testing.assert_close(got[0, :, y, x], interpolated(z, 0.7, window, y, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_active_positions_are_convolved_and_the_others_interpolated(stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = MaskedConv2d(4, 6, 3, stride, padding=1, bias=True, window=7).requires_grad_(False)
    layer.Lambda.fill_(0.5)
    x = torch.randn(1, 4, 16, 24, generator=generator)
    positions = torch.rand(1, 1, 16, 24, generator=generator) > 0.5
    mask = positions[:, :, ::stride, ::stride]
    dense = layer(x)
    got = layer(x, Masks(positions))
    z = dense * mask
    assert torch.equal(got[z != 0], z[z != 0])
    y, x_ = (int(v[0]) for v in torch.where(~mask[0, 0]))
    torch.testing.assert_close(got[0, :, y, x_], interpolated(z, 0.5, 7, y, x_), rtol=1e-4, atol=1e-5)


def test_full_and_empty_masks() -> None:
    layer = MaskedConv2d(4, 6, 3, padding=1, bias=True, window=7)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x, Masks(torch.ones(1, 1, 8, 8, dtype=torch.bool))), layer(x))
    assert not layer(x, Masks(torch.zeros(1, 1, 8, 8, dtype=torch.bool))).any()


def test_lambda_is_trained() -> None:
    layer = MaskedConv2d(4, 6, 3, padding=1, bias=False, window=7)
    positions = torch.arange(64).view(1, 1, 8, 8) % 3 == 0
    layer(torch.ones(1, 4, 8, 8), Masks(positions)).square().sum().backward()  # type: ignore[no-untyped-call]
    assert layer.Lambda.grad is not None
    assert layer.Lambda.grad.abs() > 0
