"""Stages that are run on a GPU for minutes: here their runner, and a dry run of them on a CPU."""

import asyncio
import copy
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from models.__main__ import main
from models.anytime import Exit, State
from models.executors.reference import ReferenceExecutor, ReferenceState
from models.gpu_day import bench, compiling, correctness, live, load, served, stages
from models.gpu_day.correctness import Check, Work
from models.gpu_day.plan import stages_of
from models.gpu_day.stages import Report, Stage, run
from models.imaging.geometry import Frame
from models.network.adpc import AdpcNet
from server.engine.messages import JobSpec

GENEROUS_S = 60.0


@pytest.fixture(autouse=True)
def _jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def job(name: str, limit_s: float = GENEROUS_S, **options: object) -> Stage:
    return Stage(name, limit_s, f"gpu_day_jobs:{name}", options)


def ran(output: Path, *planned: Stage, minutes: float = 1.0) -> tuple[bool, list[dict[str, object]]]:
    """Runs the stages. Returns whether all succeeded, and their entries in report.json."""
    report = Report(output, {"gpu": "none"}, say=lambda text: None)
    try:
        right = run(planned, report, minutes, {"output": str(output), "data": None, "device": "cpu"})
    finally:
        report.close()
    return right, json.loads((output / "report.json").read_text())["stages"]


def test_a_stage_that_fails_costs_itself_only(tmp_path: Path) -> None:
    right, found = ran(tmp_path, job("wrong"), job("fail"), job("crash"), job("lack"), job("work", word="bread"))
    assert not right
    assert [(one["name"], one["status"], one["lines"]) for one in found] == [
        ("wrong", "failed", ["the difference is 0.2"]),
        ("fail", "failed", ["ValueError: 12 is more than 8; ask for less"]),
        ("crash", "failed", ["about to crash"]),
        ("lack", "skipped", ["there is no oven"]),
        ("work", "done", ["bread on cpu, True"]),
    ]
    assert "SIGSEGV" in str(found[2]["reason"])
    text = (tmp_path / "report.txt").read_text()
    assert "fail: ValueError: 12 is more than 8; ask for less" in text and "work: done after" in text
    log = (tmp_path / "log.txt").read_text()
    assert "a print goes to the log" in log and "Traceback" in log
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bread.json", "bread.tar", "log.txt", "report.json", "report.txt",
    ]  # fmt: skip
    with tarfile.open(tmp_path / "bread.tar") as archive:
        assert "bread/weights" in archive.getnames()


def test_what_is_missing_is_no_failure(tmp_path: Path) -> None:
    assert ran(tmp_path, job("lack"))[0]


def test_a_stage_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    right, found = ran(tmp_path, job("hang", 3.0), job("work", word="bread"))
    assert not right
    assert [one["status"] for one in found] == ["killed", "done"]
    (line,) = found[0]["lines"]  # type: ignore[misc]
    child = Path(f"/proc/{str(line).removeprefix('child ')}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_all_stages_end_in_time(tmp_path: Path) -> None:
    began_s = time.monotonic()
    right, found = ran(tmp_path, job("hang", GENEROUS_S), job("work", word="bread"), minutes=3.5 / 60)
    assert not right
    assert [one["status"] for one in found] == ["killed", "skipped"]
    assert time.monotonic() - began_s < GENEROUS_S
    assert "0.0 s of 0.0583333 minutes are left" in str(found[1]["reason"])


def test_too_many_or_too_large_files_are_told_of(tmp_path: Path) -> None:
    right, found = ran(tmp_path, job("litter"))
    assert not right and "there are 12 files, more than 8" in str(found[-1]["reason"])
    for path in tmp_path.glob("[0-9].txt"):
        path.unlink()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(stages.FILE_BYTES + 1)
    assert stages.excess_of(tmp_path) == "large has 15728641 bytes, more than 15728640"


def test_the_log_keeps_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LOG_BYTES", 300)
    ran(tmp_path, job("chatter"), job("chatter"))
    log = (tmp_path / "log.txt").read_text()
    assert len(log) < 3 * 300 and log.startswith("\n=== chatter") and "bytes are left out" in log


def test_a_stage_may_take_what_others_left(tmp_path: Path) -> None:
    right, found = ran(tmp_path, job("chatter", 50), job("patience", 5), job("patience", 5))
    assert right
    (lent,), (last,) = (one["lines"] for one in found[1:])  # type: ignore[misc]
    assert 30 < int(lent) < 55 and 30 < int(last) < 60


def test_stages_share_the_minutes() -> None:
    for minutes, names in ((4, None), (1.25, ["bench", "compile", "graphs"])):
        planned = stages_of("check", minutes, names=names)
        assert sum(stage.limit_s for stage in planned) == pytest.approx(60 * minutes)
        assert names is None or [stage.name for stage in planned] == ["compile", "graphs", "bench"]
    assert [stage.name for stage in stages_of("train", 8, names=["profile"])] == ["profile"]


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1"])
def test_a_run_without_an_end_is_refused(minutes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["gpu-day", "--part", "check", "--device", "cpu", "--output", str(tmp_path / "out"), "--minutes", minutes]
    assert main([*call, "--stages", "tune"]) == 1
    assert f"--minutes is {minutes}; give a finite number above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


STAGES = ("compile", "plain", "tune", "graphs", "bench")


def test_the_check_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a tiny network and Triton's interpreter; what needs a GPU is skipped and says so. The server is visited
    below: to start a real one twice takes long."""
    call = ["gpu-day", "--part", "check", "--device", "cpu", "--output", str(tmp_path / "out"), "--stages", *STAGES]
    assert main(call) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["stages"]
    assert {one["name"]: one["status"] for one in found} == dict.fromkeys(STAGES, "skipped") | {"plain": "done"}
    assert "1 cases ran, 0 are wrong" in capsys.readouterr().out


WRONG = {"differences": [0.01, 0.2], "rounding": [0.01, 0.1], "problems": ["exit 2: scores are off"]}
RIGHT = WRONG | {"problems": []}
CASES = f"""
import json, os, signal, sys, threading
asked = json.loads(sys.argv[1])
for kind, mode in asked["cases"]:
    print(json.dumps({{"begins": [kind, mode]}}), flush=True)
    if asked["localise"]:
        print(json.dumps({{"line": "1 of 95 launches are wrong"}}), flush=True)
    if kind == "own":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "empty":
        threading.Event().wait()
    print(json.dumps({RIGHT} if kind == "paper" else {WRONG}), flush=True)
"""
"""Plays `models.gpu_day.cases`: masks called paper are right, dense wrong, own end the process, empty hang."""


def looked_at_by(*kinds: str) -> tuple[Work, list[str], Check]:
    """A check that is to look at these cases, and what it says."""
    lines: list[str] = []
    work = Work("a-network", (32, 64), [(kind, "plain") for kind in kinds])
    check = Check(time.monotonic() + GENEROUS_S, lines.append, "cpu", (sys.executable, "-c", CASES))
    return work, lines, check


def looked_at(*kinds: str) -> tuple[Work, list[str]]:
    work, lines, check = looked_at_by(*kinds)
    check.subject(work)
    return work, lines


def test_cases_that_are_right_show_what_half_precision_differs_by() -> None:
    work, lines = looked_at("paper")
    assert lines == ["a-network 32x64: paper 2.0e-01/1.0e-01"] and not work.left and not work.deaths


def test_a_wrong_case_is_looked_into_launch_by_launch() -> None:
    work, lines = looked_at("paper", "dense")
    assert lines == [
        "WRONG a-network 32x64 dense plain: exit 2: scores are off",
        "a-network 32x64: paper 2.0e-01/1.0e-01, dense 2.0e-01/1.0e-01",
        "again a-network 32x64 dense plain: 1 of 95 launches are wrong",
        "again a-network 32x64 dense plain: exit 2: scores are off",
    ]
    assert work.found["dense", "plain"].problems


def test_a_case_whose_process_dies_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    work, lines = looked_at("own", "paper")
    assert [case for case, _ in work.deaths] == [("own", "plain")] and list(work.found) == [("paper", "plain")]
    assert "DIED a-network 32x64 own plain after 0 s: its process ended with status -11" in lines
    assert "again a-network 32x64 own plain: 1 of 95 launches are wrong" in lines


def test_a_case_that_hangs_ends_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer that ends it goes off as soon as it hangs."""
    timers: list[threading.Timer] = []

    class Timer(threading.Timer):
        def start(self) -> None:
            timers.append(self)

    def told(process: "subprocess.Popen[str]", *, raw: bool = False) -> Iterator[dict[str, Any]]:
        for each in lines_of(process, raw=raw):
            yield each
            if each.get("begins") == ["empty", "plain"]:
                check.deadline = time.monotonic()
                assert 0 < timers[-1].interval <= GENEROUS_S
                timers[-1].function()

    lines_of = correctness._lines
    monkeypatch.setattr("threading.Timer", Timer)
    monkeypatch.setattr(correctness, "_lines", told)
    work, lines, check = looked_at_by("paper", "empty", "dense")
    check.subject(work)
    assert lines == [
        "a-network 32x64 empty plain: not done when the time was up", "a-network 32x64: paper 2.0e-01/1.0e-01",
    ]  # fmt: skip
    assert work.left == [("empty", "plain"), ("dense", "plain")] and not work.deaths


class Halves(ReferenceExecutor):
    """Stands for the `triton` executor: PyTorch in half precision, with last scores that are off by `error`."""

    def __init__(self, network: AdpcNet, error: float) -> None:
        super().__init__(copy.deepcopy(network).half())
        self.error = error

    def start(self, inputs: Tensor, frame: Frame) -> ReferenceState:
        return super().start(inputs.half(), frame)

    def advance(self, states: Sequence[State], slice_s: float | None = None) -> bool:
        super().advance(states)
        for state in states:
            if state.exit is not None and state.exit.index == 4:
                scores = state.exit.scores.clone()
                scores[0, 1, 2] += self.error * scores.abs().max()
                state.exit = replace(state.exit, scores=scores)
        return True


@pytest.mark.parametrize(
    "off, theirs, right",
    [(0.0, 0.0, True), (0.0049, 0.0, True), (0.0051, 0.0, False), (0.079, 0.05, True), (0.081, 0.05, False)],
)
def test_scores_are_right_within_what_half_precision_explains(off: float, theirs: float, right: bool) -> None:
    pytest.importorskip("triton")
    from models.gpu_day import cases  # noqa: PLC0415 - needs Triton

    positions = torch.zeros(4, 4, dtype=torch.uint8)
    true = Exit(1, torch.ones(2, 4, 4), positions, positions.bool(), 0.0, 0)
    scores = true.scores.clone()
    scores[1, 2, 3] += off
    told = list(cases._wrong_scores(replace(true, scores=scores), true, off, theirs))
    assert len(told) == (0 if right else 1)
    assert right or (f"by {off:.1%} of the largest, most at (2, 3)" in told[0] and "which 6.25% of" in told[0])


@pytest.mark.parametrize("error, told", [(0.0, ""), (0.1, r"exit 4: .* at \(1, 2\)"), (math.nan, "nan%")])
def test_scores_may_be_off_as_much_as_half_precision_explains(
    error: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from models.gpu_day import cases  # noqa: PLC0415 - needs Triton

    monkeypatch.setattr(cases, "_miscounted", lambda state, mask: ())
    trial = cases.Trial(cases.Subject("adpc-w18-cityscapes", (32, 64), tiny=True), "cpu")
    monkeypatch.setattr(trial, "executor", lambda kind, mode: Halves(trial.networks["masked"], error))
    found = trial.compare("full", "plain")
    assert 1e-4 < found.rounding[3] < 0.01
    if not told:
        assert not found.problems
    else:
        assert len(found.problems) == 1 and re.search(told, found.problems[0])


SCRIPT = """
import sys
print(" ".join(sys.argv[1:]))
print("512x1024  torch: 6.438 ms (least 6.401)")
"""


def test_the_bench_is_told_its_time_and_the_layers_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "TUNED", tmp_path / "tuned.json")
    (tmp_path / "tuned.json").write_text("{}")
    (tmp_path / "out").mkdir()
    for script, right in ((SCRIPT, True), ("print('left out')", False)):
        lines: list[str] = []
        program = (sys.executable, "-c", script)
        deadline = time.monotonic() + 60
        assert bench.bench(tmp_path / "out", deadline, lines.append, "cuda", ["--widths", "w48"], program) is right
        if right:
            given = re.fullmatch(r"bench --device cuda --output \S+ --within (\S+) --widths w48", lines[0])
            assert given and 50 < float(given[1]) <= 59
    assert (tmp_path / "out" / "tuned.json").read_text() == "{}"


def test_a_bench_that_is_ended_does_not_wait_for_the_process_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That process has the same standard output, and lives until the test writes into a pipe."""
    os.mkfifo(tmp_path / "pipe")
    row = f"open({str(tmp_path / 'pipe')!r}).read()"
    script = f"""
import subprocess, sys, threading
subprocess.Popen([sys.executable, "-c", {row!r}])
print("512x1024  torch: 6.438 ms (least 6.401)", flush=True)
threading.Event().wait()
"""
    heard = threading.Event()

    class Process(subprocess.Popen[str]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                assert heard.wait(GENEROUS_S) and timeout <= GENEROUS_S
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait()

    def hear(text: str) -> None:
        lines.append(text)
        heard.set()

    lines: list[str] = []
    ended = threading.Timer(GENEROUS_S, (tmp_path / "pipe").write_text, [""])
    ended.start()
    program = (sys.executable, "-c", script)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", Process)
        assert bench.bench(tmp_path, time.monotonic() + GENEROUS_S, hear, "cuda", [], program)
    assert not ended.finished.is_set()
    ended.cancel()
    (tmp_path / "pipe").write_text("")
    assert lines[1:] == ["stopped after 1 rows; the others would have taken too long"]


def test_the_gpu_is_named_without_loading_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert compiling.gpu() == ("NVIDIA H200", "90")


def test_a_server_is_visited(tmp_path: Path) -> None:
    """All that is asked of one, whose workers the test plays: they finish every request at once, and one is killed."""
    import live as servers  # noqa: PLC0415 - loads the server

    config = replace(tiny.SEGMENTATION, name=live.MODEL)
    lines: list[str] = []
    over, killed = threading.Event(), threading.Event()
    players: list[threading.Thread] = []
    with servers.scripted(servers.write_configs(tmp_path, (config,))) as (server, next_worker):

        def play() -> None:
            while not over.is_set():
                worker = next_worker()
                worker.say_ready()
                with suppress(EOFError):  # the server is done with it
                    while not over.is_set():
                        command = worker.hear()
                        if killed.is_set():
                            killed.clear()
                            worker.die()
                            break
                        if isinstance(command, JobSpec):
                            worker.finish(command)

        players.append(threading.Thread(target=play, daemon=True))
        players[-1].start()
        visit = live.Visit(
            server.port, time.monotonic() + GENEROUS_S, lines.append, small=True, ended=lambda: None, kill=killed.set
        )
        assert asyncio.run(visit.ready(GENEROUS_S))
        asyncio.run(visit.all())
        over.set()
    players[-1].join(GENEROUS_S)
    said = "\n".join(lines)
    for pattern in (
        r"^ready after .* s: .*\"executor\":\"scripted\"",
        r"^ms to the answer of each exit \[.*, .*, .*, .*\], of which computing \[.*\]$",
        r"^20 deadlines: exits \{.*4: .*\}, the median exit falls . times; ms after the deadline: median",
        r"^2 cameras at 30 frames a second for 0.5 s: .* were overtaken; by last exit \{.*4: ",
        r"^[0-9]+ requests a second with deadlines of 50-300 ms: .* in time .*, exits \{.*'4': .*, faults 0, ",
        r"^worker killed: \{.*503: [1-4].*\}, the next answer came after ",
    ):
        assert re.search(pattern, said, re.MULTILINE), (pattern, said)


def test_a_load_that_does_not_fit_into_the_time_is_left_out() -> None:
    lines: list[str] = []
    asyncio.run(load.offer(1, (5.0, 7.0), 3.0, time.monotonic(), lines.append))
    assert lines == [f"{rate} requests a second: no time left" for rate in (5, 7)]


def test_the_worker_of_a_server_is_killed() -> None:
    code = "import subprocess, sys, threading; {}; threading.Event().wait()"
    worker = code.format("print(flush=True)")
    start = f"subprocess.Popen([sys.executable, '-c', {worker!r}, 'server.worker'])"
    with subprocess.Popen([sys.executable, "-c", code.format(start)], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()  # of the worker, which therefore runs
            served.kill_worker(server.pid)
        finally:
            server.kill()
    with pytest.raises(RuntimeError, match=f"the server, process {server.pid}, has no worker to kill"):
        served.kill_worker(server.pid)


def test_options_that_cannot_be_met_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["gpu-day", "--output", str(tmp_path), "--part"]
    assert main([*call, "train"]) == 1
    assert "give --data" in capsys.readouterr().err
    assert main([*call, "check", "--stages", "baking"]) == 1
    assert "no stage is called baking; there are compile, plain" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*call, "check"]) == 1
    assert "has files already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
