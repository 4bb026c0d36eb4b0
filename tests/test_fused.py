"""The fused interpolation computes what the plain one does. Without a GPU, Triton interprets its kernel."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPARE = """
import importlib, sys, torch
from models.network.masked import fill
from models.training import fused as module
from models.training.fused import fill as fused

kernel = importlib.import_module(f"models.training.fused.{sys.argv[1]}")
module._launch = lambda like: kernel.launch
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
for count, channels, height, width, window, scale in (
    (2, 5, 7, 9, 7, 3.0), (1, 18, 8, 11, 7, 0.6), (2, 3, 6, 5, 3, 0.4), (1, 70, 9, 9, 9, 1.0), (1, 2, 3, 3, 7, 0.5)
):
    for share in (0.0, 0.5, 1.0):
        y, gradient = (torch.randn(count, channels, height, width, generator=generator) for _ in range(2))
        mask = (torch.rand(count, 1, height, width, generator=generator) < share).float()
        results = []
        for function in (fill, fused):
            leaf, lam = y.clone().requires_grad_(), torch.tensor(scale, requires_grad=True)
            out = function(leaf, mask, lam, window)
            out.backward(gradient)
            results.append((out.detach(), leaf.grad, lam.grad))
        for plain, found in zip(*results):
            torch.testing.assert_close(found, plain, atol=2e-5, rtol=2e-5)

y, gradient = (torch.randn(2, 8, 9, 12, generator=generator).bfloat16() for _ in range(2))
mask = (torch.rand(2, 1, 9, 12, generator=generator) < 0.5).bfloat16()
results = []
for kind, function in ((torch.bfloat16, fused), (torch.float32, fill)):
    leaf, lam = y.to(kind, copy=True).requires_grad_(), torch.tensor(0.7, requires_grad=True)
    out = function(leaf, mask.to(kind), lam, 7)
    out.backward(gradient.to(kind))
    assert out.dtype == leaf.grad.dtype == kind
    results.append((out.detach().float(), leaf.grad.float(), lam.grad))
for found, plain in zip(*results):
    torch.testing.assert_close(found, plain, atol=0.02, rtol=0.01)

soft = torch.rand(2, 1, 7, 9, generator=generator).requires_grad_()  # learnt masks keep their gradient
fused(torch.randn(2, 5, 7, 9, generator=generator), soft, torch.tensor(1.0), 7).sum().backward()
assert soft.grad.abs().max() > 0
"""


@pytest.mark.parametrize("kernel", ["cpu", "gpu"])
def test_fused_interpolation_and_its_gradients(kernel: str) -> None:
    if kernel == "gpu" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is published for Linux only")
    root = Path(__file__).parent.parent
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, kernel], env=environment, capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
