"""What the interpreter cannot show of the GPU's kernels: they compile to machine code for tensor cores, and registers
hold all that they compute with. This needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_for_gpu.py")
SHARED = 101376
"""Bytes that a block may have on the smallest GPUs since 2020 (capability 8.6)."""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux only")
def test_every_kernel_compiles(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "90"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == {
        "update_mask", "compact_rows", "convolve", "interpolate", "add_resampled", "_stencil"
    }  # fmt: skip
    for kernel in kernels:
        assert kernel["stack"] == kernel["local"] == 0, kernel
        assert kernel["shared"] <= SHARED, kernel
        assert kernel["found_in_cache"] == (kernel["kernel"] != "_stencil"), kernel  # training's is not compiled before
        assert (kernel["mma"] > 0) == (kernel["kernel"] == "convolve"), kernel
