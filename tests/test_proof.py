"""Faster executors serve only if a process of its own has shown that they are right and faster."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
import torch

from models import executors
from models.checkpoint import save_directory
from models.executors.cpu.executor import SparseExecutor
from models.executors.reference import ReferenceExecutor
from models.executors.verify import Findings, Verdict, command, judge, measure, prove

GOOD = Findings((1e-3, 2e-3), (0.001, 0.002), (0.002, 0.004))


def python(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(("import os, sys", *lines))]


def printing(found: Findings) -> list[str]:
    return python("print('compiling')", f"print({json.dumps(asdict(found))!r})")


@pytest.mark.parametrize(
    "child, expected",
    [
        (printing(GOOD), Verdict("triton", "triton takes 2.00 ms to exit 2, reference 4.00 ms, and differs by 2.0e-03 "
                                 "of the largest score")),
        (printing(replace(GOOD, differences=(1e-3, 0.26))),
         Verdict("reference", "triton is off by 26.0% of the largest score at exit 2; 5% may be", sound=False)),
        (printing(replace(GOOD, differences=(float("nan"), 0.0))),
         Verdict("reference", "triton is off by nan% of the largest score at exit 1; 5% may be", sound=False)),
        (printing(replace(GOOD, seconds=(0.001, 0.005))),
         Verdict("reference", "triton takes 5.00 ms to exit 2, reference 4.00 ms")),
        (python("os.kill(os.getpid(), 11)"),
         Verdict("reference", "triton died of SIGSEGV when it was tried", sound=False)),
        (python("sys.exit('CUDA error: an illegal memory access was encountered')"),
         Verdict("reference", "triton failed with status 1 when it was tried: CUDA error: an illegal memory access was "
                 "encountered", sound=False)),
        (python("pass"),
         Verdict("reference", "triton failed with status 0 when it was tried: it said nothing", sound=False)),
    ],
    ids=["good", "wrong", "nan", "slow", "signal", "error", "silent"],
)  # fmt: skip
def test_what_a_proof_leads_to(child: list[str], expected: Verdict) -> None:
    assert prove("triton", child) == expected


def test_a_proof_that_hangs_is_ended() -> None:
    hangs = python("sys.stdin.read()")
    assert prove("triton", hangs, 0.1) == Verdict("reference", "triton was not proved right within 0.1 s", sound=False)


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
    assert judge(found, "sparse").reason.endswith("of the largest score at exit 4; 5% may be")
    with torch.no_grad():
        last.fill_(float("nan"))
    found = measure(SparseExecutor(tiny.network(), 1), ReferenceExecutor(net), (64, 96), repeats=1)
    assert not judge(found, "sparse").sound


def test_a_proof_as_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    save_directory(tmp_path / "model", tiny.network())
    verdict = prove("sparse", command(tmp_path / "model", "sparse", "cpu"))
    assert verdict.sound and "to exit 4, reference" in verdict.reason
    missing = prove("sparse", command(tmp_path / "none", "sparse", "cpu"))
    assert not missing.sound and "status 1" in missing.reason and "none" in missing.reason


@pytest.mark.parametrize(
    "asked, verdict, runs",
    [
        ("auto", Verdict("triton", "twice as fast"), "triton"),
        ("auto", Verdict("reference", "off by 26%", sound=False), "reference"),
        ("triton", Verdict("reference", "slower"), "triton"),
    ],
)
def test_what_a_gpu_runs(
    asked: str, verdict: Verdict, runs: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executors, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(executors, "prove", lambda *_: verdict)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    found = executors.decide(Path("model"), "auto", asked)
    assert (found.executor, found.reason) == (runs, verdict.reason)
    assert (verdict.reason in caplog.text) == (runs == "reference")


def test_a_wrong_executor_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(executors, "prove", lambda *_: Verdict("reference", "triton is off by 26%", sound=False))
    with pytest.raises(ValueError, match="triton is off by 26%; use executor reference"):
        executors.decide(Path("model"), "cuda", "triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert executors.decide(Path("model"), "cuda", "auto").executor == "reference"
