"""The fused interpolation computes what the plain one does. Triton interprets its GPU kernel."""

import importlib
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from interpreter import interpreting

from models.network import masked
from models.training import fused

FILLED = [
    (2, 5, 7, 9, 7, 3.0, 0.0), (2, 5, 7, 9, 7, 3.0, 0.5), (2, 5, 7, 9, 7, 3.0, 1.0), (1, 18, 8, 11, 7, 0.6, 0.5),
    (2, 3, 6, 5, 3, 0.4, 0.5), (1, 70, 9, 9, 9, 1.0, 0.5), (1, 2, 3, 3, 7, 0.5, 0.5),
]  # fmt: skip
"""Images, channels, height and width of what is interpolated, window, scale, active share."""
generator = torch.Generator()


@pytest.fixture(params=["cpu", "gpu"], autouse=True)
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "gpu":
        pytest.importorskip("triton", reason="Triton is published for Linux only")
    kernel = importlib.import_module(f"models.training.fused.{request.param}")
    monkeypatch.setattr(fused, "_launch", lambda like: kernel.launch)
    generator.manual_seed(0)
    with interpreting() if request.param == "gpu" else nullcontext():
        yield


def test_fused_interpolation_and_its_gradients() -> None:
    for count, channels, height, width, window, scale, share in FILLED:
        y, gradient = (torch.randn(count, channels, height, width, generator=generator) for _ in range(2))
        mask = (torch.rand(count, 1, height, width, generator=generator) < share).float()
        results = []
        for function in (masked.fill, fused.fill):
            leaf, lam = y.clone().requires_grad_(), torch.tensor(scale, requires_grad=True)
            out = function(leaf, mask, lam, window)
            out.backward(gradient)
            results.append((out.detach(), leaf.grad, lam.grad))
        for plain, found in zip(*results, strict=True):
            torch.testing.assert_close(found, plain, atol=2e-5, rtol=2e-5)


def test_fused_interpolation_in_half_precision() -> None:
    y, gradient = (torch.randn(2, 8, 9, 12, generator=generator).bfloat16() for _ in range(2))
    mask = (torch.rand(2, 1, 9, 12, generator=generator) < 0.5).bfloat16()
    results = []
    for kind, function in ((torch.bfloat16, fused.fill), (torch.float32, masked.fill)):
        leaf, lam = y.to(kind, copy=True).requires_grad_(), torch.tensor(0.7, requires_grad=True)
        out = function(leaf, mask.to(kind), lam, 7)
        out.backward(gradient.to(kind))
        assert leaf.grad is not None and out.dtype == leaf.grad.dtype == kind
        results.append((out.detach().float(), leaf.grad.float(), lam.grad))
    for found, plain in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, atol=0.02, rtol=0.01)


def test_learnt_masks_keep_their_gradient() -> None:
    soft = torch.rand(2, 1, 7, 9, generator=generator).requires_grad_()
    fused.fill(torch.randn(2, 5, 7, 9, generator=generator), soft, torch.tensor(1.0), 7).sum().backward()
    assert soft.grad is not None and soft.grad.abs().max() > 0
