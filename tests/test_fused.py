"""The fused interpolation means what the plain one means. On a machine without a GPU, Triton interprets it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:  # not imported here, where it would compile and not interpret
    pytest.skip("Triton is published for Linux only", allow_module_level=True)

COMPARE = """
import torch
from models.masked import fill
from models.training.fused import fill as fused

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

soft = torch.rand(2, 1, 7, 9, generator=generator).requires_grad_()  # learnt masks keep their gradient
fused(torch.randn(2, 5, 7, 9, generator=generator), soft, torch.tensor(1.0), 7).sum().backward()
assert soft.grad.abs().max() > 0
"""


def test_fused_interpolation_and_its_gradients() -> None:
    root = Path(__file__).parent.parent
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
