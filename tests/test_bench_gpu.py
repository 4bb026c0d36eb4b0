"""The GPU benchmark's way through its rows, which needs no GPU: what fails or hangs costs no other row."""

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from test_bench import arguments

from models.__main__ import main
from models.bench import gpu
from models.bench.gpu import Task, Timing, measured

TASK = Task("torch", "hrnet-w18-cityscapes", (32, 64))


def quick(task: Task) -> Timing:
    return Timing([float(len(task.active) or 5)])


def failing(_: Task) -> Timing:
    raise ValueError("no such layer\nand more")


def dying(_: Task) -> Timing:
    os._exit(7)


def hanging(_: Task) -> Timing:
    threading.Event().wait()
    raise AssertionError


def test_a_row_comes_from_a_process_of_its_own() -> None:
    assert list(measured([TASK, TASK], 60, quick)) == [(TASK, Timing([5.0]))] * 2


@pytest.mark.parametrize(
    "measure, limit_s, message",
    [
        (failing, 60, "^ValueError: no such layer$"),
        (dying, 60, "its process ended with status 7"),
        (hanging, 0, "not done after 0 s; --limit allows more"),
    ],
)
def test_a_row_that_cannot_be_measured_says_why(measure: object, limit_s: float, message: str) -> None:
    ((_, found),) = measured([TASK], limit_s, measure)  # type: ignore[arg-type]
    assert isinstance(found, RuntimeError)
    assert re.search(message, str(found))


def test_rows_are_written_as_they_come_and_those_left_out_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(tasks: Iterable[Task], limit_s: float) -> Iterator[tuple[Task, Timing | RuntimeError]]:
        assert limit_s == 300
        for task in tasks:
            yield task, RuntimeError("its process ended with status -9") if task.runtime == "compile" else quick(task)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(gpu, "measured", some)
    assert gpu.main(arguments(output=tmp_path), {"w18": (0.8, 0.6, 0.4)}) == 0
    report = json.loads((tmp_path / "bench-gpu.json").read_text())
    found = [(row["runtime"], row["network"].split("-")[0], row["active"]) for row in report["rows"]]
    assert found == [
        ("triton", "adpc", [0.8, 0.6, 0.4]), ("triton", "adpc", [1, 1, 1]), ("triton", "hrnet", []),
        ("torch", "hrnet", []), ("triton", "rh", []), ("torch", "rh", []), ("onnxruntime", "hrnet", []),
    ]  # fmt: skip
    assert list(report["left_out"].values()) == ["its process ended with status -9"]
    printed = capsys.readouterr().out
    assert "1.67x faster under masks than the fastest one-exit network (triton)" in printed
    assert gpu.main(arguments(output=tmp_path, json=True), {"w18": (0.8, 0.6, 0.4)}) == 0
    assert json.loads(capsys.readouterr().out) == report
    with pytest.raises(ValueError, match="openvino is measured with --device cpu"):
        gpu.main(arguments(runtimes=["openvino"]), {})


@pytest.mark.parametrize(
    "device, given",
    [
        ("cuda", ["--sweep", "0.5"]), ("cuda", ["--data", "x"]), ("cuda", ["--threads", "2"]), ("cuda", ["--memory"]),
        ("cuda", ["--no-check"]), ("cpu", ["--limit", "9"]),
    ],
)  # fmt: skip
def test_options_for_the_other_device_are_refused(
    device: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--device", device, *given])
    assert ended.value.code == 2
    assert f"{given[0]} means nothing with --device {device}; leave it out" in capsys.readouterr().err


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ValueError, match="--device cpu"):
        gpu.main(arguments(), {})
