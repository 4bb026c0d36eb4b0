"""The training kernels compute what torch's own operations do. Triton interprets them, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is published for Linux only")


@pytest.mark.parametrize("check", ["normalisation", "sizes", "loss", "half precision", "network"])
def test_training_kernels(check: str) -> None:
    here = Path(__file__).parent
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(here.parent)}
    command = [sys.executable, here / "interpreted_training.py", check]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
