"""Which executor runs a model on a device."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from models.checkpoint import save_directory
from models.directory import ZOO
from models.executors import selection
from models.executors.registry import EXECUTORS
from models.executors.selection import build, load, resolve_device
from models.executors.verify import ExecutorChoice

SHIPPED = ZOO / "camvid-adpc-w18"


def test_executors_and_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="no executor is called 'quantum'"):
        build(tiny.network(), executor="quantum")
    assert resolve_device("cpu:0") == "cpu"


@pytest.mark.parametrize("gpus", [0, 2])
def test_devices_are_told_before_anything_is_done(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for device in ("cuda:x", "cuda:", "cuda:-1", "tpu", "cpu:x", ""):
        with pytest.raises(ValueError, match=f"device '{device}' is unknown; use auto, cpu, cuda or cuda:N"):
            resolve_device(device)
    with pytest.raises(ValueError, match=f"device cuda:2 is not there: torch sees {gpus} CUDA devices; use cpu"):
        resolve_device("cuda:2")
    assert resolve_device("auto") == ("cuda" if gpus else "cpu")
    with pytest.raises(ValueError, match="device 'tpu'"):
        build(tiny.network(), "tpu", "quantum", threads=-1)
    with pytest.raises(ValueError, match="device 'tpu'"):
        load(Path("nowhere"), "tpu")


def test_load_from_a_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("model")
    save_directory(directory, tiny.network())
    model = load(directory, executor="reference", threads=1)
    assert (model.executor, model.device) == ("reference", "cpu")
    assert [step.exit for step in model.steps if step.exit] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("executor", "device", "message"),
    [
        ("sparse", "cuda", "the sparse executor does not run on cuda; use device cpu or executor triton"),
        ("triton", "cpu", "the triton executor does not run on cpu; use device cuda or executor sparse"),
    ],
)
def test_an_executor_on_another_device_is_refused(
    executor: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "resolve_device", lambda device: device)
    with pytest.raises(ValueError, match=message):
        build(tiny.network(), device, executor)


def test_every_executor_says_its_own_name() -> None:
    one_exit = replace(tiny.SEGMENTATION, masking=None, heads="one")  # is exported soonest
    for name, kind in EXECUTORS.items():
        if kind.runs_on("cpu"):
            assert build(tiny.network(one_exit), "cpu", name).executor == name


@pytest.mark.parametrize(
    "asked, choice, runs",
    [
        ("auto", ExecutorChoice("triton", "twice as fast"), "triton"),
        ("auto", ExecutorChoice("reference", "off by 26%", right=False), "reference"),
        ("triton", ExecutorChoice("reference", "slower"), "triton"),
    ],
)
def test_what_a_gpu_runs(
    asked: str, choice: ExecutorChoice, runs: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(selection, "verify", lambda *_: choice)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    found = selection.choose_executor(SHIPPED, "auto", asked)
    assert (found.executor, found.reason) == (runs, choice.reason)
    assert (choice.reason in caplog.text) == (runs == "reference")


def test_a_wrong_executor_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(
        selection, "verify", lambda *_: ExecutorChoice("reference", "triton is off by 26%", right=False)
    )
    with pytest.raises(ValueError, match="triton is off by 26%; use executor reference"):
        selection.choose_executor(SHIPPED, "cuda", "triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert selection.choose_executor(SHIPPED, "cuda", "auto").executor == "reference"
