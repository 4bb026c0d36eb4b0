"""The GPU benchmark runs its rows one after the other, and a row that fails or hangs ends no other. Needs no GPU."""

import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_bench import arguments

from models.__main__ import main
from models.bench import gpu
from models.bench.gpu import GpuCase, GpuTiming, measured

TASK = GpuCase("torch", "hrnet-w18-cityscapes", (32, 64))


def quick(task: GpuCase) -> GpuTiming:
    return GpuTiming([float(len(task.active) or 5)], [2.5])


def failing(_: GpuCase) -> GpuTiming:
    raise ValueError("no such layer\nand more")


def dying(_: GpuCase) -> GpuTiming:
    os._exit(7)


def hanging(_: GpuCase) -> GpuTiming:
    threading.Event().wait()
    raise AssertionError


def test_a_row_comes_from_a_process_that_nothing_else_disturbs() -> None:
    begun = []

    def planned() -> Iterator[GpuCase]:
        for number in range(3):
            begun.append(number)
            yield TASK

    for number, (task, timing) in enumerate(measured(planned(), 60, quick)):
        assert (task, timing) == (TASK, GpuTiming([5.0], [2.5]))
        assert begun == list(range(number + 1)) and multiprocessing.active_children() == []


def test_rows_for_which_no_time_is_left_are_left_out() -> None:
    clock = iter([100.0, 101.0, 105.0, 109.0]).__next__
    compiled = replace(TASK, runtime="compile")
    (_, first), (_, second), (_, third) = measured([TASK, compiled, TASK], 60, quick, within_s=12, clock=clock)
    assert isinstance(first, GpuTiming)
    assert str(second) == "7 s are left; --within 12 allows no more"
    assert str(third) == "3 s are left; --within 12 allows no more"


def test_the_headline_comes_first_and_what_is_slow_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[GpuCase] = []

    def none(tasks: Iterable[GpuCase], limit_s: float, within_s: float) -> Iterator[tuple[GpuCase, RuntimeError]]:
        asked.extend(tasks)
        return iter(())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(gpu, "measured", none)
    args = arguments(output=tmp_path, widths=["w48", "w18"], sizes=[(64, 96), (32, 64)], runtimes=["torch", "compile"])
    assert gpu.main(args, {"w18": (0.8, 0.6, 0.4), "w48": (0.8, 0.6, 0.4)}) == 1
    assert [(task.runtime, task.network.split("-")[1], task.size[0]) for task in asked[:6]] == [
        ("torch", "w48", 64), ("torch", "w48", 32), ("compile", "w48", 64),
        ("torch", "w18", 64), ("torch", "w18", 32), ("compile", "w18", 64),
    ]  # fmt: skip
    assert [task.runtime for task in asked].count("compile") == 4 and asked[-1].network == "rh-w18-cityscapes"


def test_a_row_whose_asker_is_gone_ends_quietly() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    gpu._measure(theirs, quick, TASK)
    theirs.close()


@pytest.mark.parametrize(
    "measure, limit_s, message",
    [
        (failing, 60, "^ValueError: no such layer$"),
        (dying, 60, "its process ended with status 7"),
        (hanging, 0, "not done after 0 s; --limit and --within allow more"),
    ],
)
def test_a_row_that_cannot_be_measured_says_why(measure: object, limit_s: float, message: str) -> None:
    ((_, found),) = measured([TASK], limit_s, measure)  # type: ignore[arg-type]
    assert isinstance(found, RuntimeError)
    assert re.search(message, str(found))


def test_rows_are_written_as_they_come_and_those_left_out_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(
        tasks: Iterable[GpuCase], limit_s: float, within_s: float
    ) -> Iterator[tuple[GpuCase, GpuTiming | RuntimeError]]:
        assert (limit_s, within_s) == (300, float("inf"))
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
        ("torch", "hrnet", []), ("onnxruntime", "hrnet", []), ("eager", "hrnet", []), ("torch", "rh", []),
        ("triton", "rh", []),
    ]  # fmt: skip
    assert list(report["left_out"].values()) == ["its process ended with status -9"]
    printed = capsys.readouterr().out
    assert "torch, fp16, no graph           hrnet-w18-cityscapes: 5.000 ms (least 2.500)" in printed
    assert "W18 32x64: 3.000 ms under masks: 1.67x faster than the fastest dense one-exit network (Triton" in printed
    assert gpu.main(arguments(output=tmp_path, json=True), {"w18": (0.8, 0.6, 0.4)}) == 0
    assert json.loads(capsys.readouterr().out) == report
    with pytest.raises(ValueError, match="openvino is measured with --device cpu"):
        gpu.main(arguments(runtimes=["openvino"]), {})


@pytest.mark.parametrize(
    "device, given",
    [
        ("cuda", ["--sweep", "0.5"]), ("cuda", ["--data", "x"]), ("cuda", ["--threads", "2"]), ("cuda", ["--memory"]),
        ("cuda", ["--no-check"]), ("cpu", ["--limit", "9"]), ("cpu", ["--within", "9"]),
    ],
)  # fmt: skip
def test_options_for_the_other_device_are_refused(
    device: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--device", device, *given])
    assert ended.value.code == 2
    assert f"{given[0]} means nothing with --device {device}; leave it out" in capsys.readouterr().err


def test_the_speed_up_names_its_peers() -> None:
    masked = replace(TASK, runtime="triton", network="adpc-w18-cityscapes", active=(0.8, 0.6, 0.4))
    rows = [
        (masked, GpuTiming([1.0, 4.0], [1.0, 4.0])),
        (replace(TASK, runtime="triton"), GpuTiming([5.0], [5.0])),
        (replace(TASK, runtime="compile"), GpuTiming([6.0], [6.0])),
        (TASK, GpuTiming([8.0], [8.0])),
    ]
    assert gpu.speed_up(rows) == (
        "4.000 ms under masks: 1.25x faster than the fastest dense one-exit network (Triton, fp16, CUDA graphs: "
        "5.000 ms), 1.50x faster than the fastest by another runtime (torch.compile, fp16, CUDA graph: 6.000 ms)"
    )
    assert gpu.speed_up(rows[:1]) is None and gpu.speed_up(rows[1:]) is None


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ValueError, match="--device cpu"):
        gpu.main(arguments(), {})
