"""Faster executors serve only if a process of its own has shown that they are right and faster."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
import torch

from models.checkpoint import save_directory
from models.directory import ZOO
from models.executors.cpu.executor import SparseExecutor
from models.executors.reference import ReferenceExecutor
from models.executors.verify import ExecutorChoice, Findings, choose, measure, verification_command, verify

SHIPPED = ZOO / "camvid-adpc-w18"
GOOD = Findings((1e-3, 2e-3), (0.001, 0.002), (0.002, 0.004))


def python(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(("import os, sys", *lines))]


def printing(found: Findings) -> list[str]:
    return python("print('compiling')", f"print({json.dumps(asdict(found))!r})")


@pytest.mark.parametrize(
    "child, expected",
    [
        (printing(GOOD),
         ExecutorChoice("triton", "triton takes 2.00 ms to exit 2, reference 4.00 ms, and differs by 2.0e-03 of the "
                        "largest score")),
        (printing(replace(GOOD, differences=(1e-3, 0.26))),
         ExecutorChoice(
            "reference", "triton is off by 26.0% of the largest score at exit 2; the limit is 5%", right=False
         )),
        (printing(replace(GOOD, differences=(float("nan"), 0.0))),
         ExecutorChoice(
            "reference", "triton is off by nan% of the largest score at exit 1; the limit is 5%", right=False
         )),
        (printing(replace(GOOD, seconds=(0.001, 0.005))),
         ExecutorChoice("reference", "triton takes 5.00 ms to exit 2, reference 4.00 ms")),
        (python("os.kill(os.getpid(), 11)"),
         ExecutorChoice("reference", "triton died of SIGSEGV when it was tried", right=False)),
        (python("sys.exit('CUDA error: an illegal memory access was encountered')"),
         ExecutorChoice("reference", "triton failed with status 1 when it was tried: CUDA error: an illegal memory "
                        "access was encountered", right=False)),
        ([*printing(GOOD)[:-1], f"{printing(GOOD)[-1]}\nsys.exit('the device is lost')"],
         ExecutorChoice("reference", "triton failed with status 1 when it was tried: the device is lost", right=False)),
        (python("sys.stderr.buffer.write(bytes([97, 255]))", "sys.exit(1)"),
         ExecutorChoice("reference", "triton failed with status 1 when it was tried: a\ufffd", right=False)),
        (python("pass"),
         ExecutorChoice("reference", "triton failed with status 0 when it was tried: it said nothing", right=False)),
    ],
    ids=["good", "wrong", "nan", "slow", "signal", "error", "late error", "no text", "silent"],
)  # fmt: skip
def test_what_a_verification_leads_to(child: list[str], expected: ExecutorChoice) -> None:
    assert verify("triton", child) == expected


def test_a_verification_that_hangs_is_ended() -> None:
    hangs = python("sys.stdin.read()")
    assert verify("triton", hangs, 0.1) == ExecutorChoice(
        "reference", "triton was not verified within 0.1 s", right=False
    )


def test_both_are_compared_at_every_exit() -> None:
    net = tiny.network()
    found = measure(SparseExecutor(tiny.network(), 1), ReferenceExecutor(net), (64, 96), repeats=1)
    assert max(found.differences) < 1e-4 and len(found.differences) == 4
    assert sorted(found.seconds) == list(found.seconds) and len(found.reference_s) == 4
    last = [p for name, p in net.named_parameters() if name.startswith("last_layer") and name.endswith("bias")][-1]
    with torch.no_grad():
        last += 3
    found = measure(SparseExecutor(tiny.network(), 1), ReferenceExecutor(net), (64, 96), repeats=1)
    assert max(found.differences[:3]) < 1e-4
    assert choose(found, "sparse").reason.endswith("of the largest score at exit 4; the limit is 5%")
    with torch.no_grad():
        last.fill_(float("nan"))
    found = measure(SparseExecutor(tiny.network(), 1), ReferenceExecutor(net), (64, 96), repeats=1)
    assert not choose(found, "sparse").right


def test_a_verification_as_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    save_directory(tmp_path / "model", tiny.network())
    choice = verify("sparse", verification_command(tmp_path / "model", "sparse", "cpu"))
    assert choice.right and "to exit 4, reference" in choice.reason
    missing = verify("sparse", verification_command(tmp_path / "none", "sparse", "cpu"))
    assert not missing.right and "status 1" in missing.reason and "none" in missing.reason
