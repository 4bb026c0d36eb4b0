"""Stages that are run on a GPU for minutes: here their runner, and a dry run of them on a CPU."""

import json
import tarfile
import time
from pathlib import Path

import pytest

from models.__main__ import main
from models.gpu_day import stages
from models.gpu_day.stages import Report, Stage, run

GENEROUS_S = 60.0


@pytest.fixture(autouse=True)
def _jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def job(name: str, limit_s: float = GENEROUS_S, **options: object) -> Stage:
    return Stage(name, limit_s, f"gpu_day_jobs:{name}", options)


def ran(output: Path, *planned: Stage, minutes: float = 1.0) -> tuple[bool, list[dict[str, object]]]:
    """Whether all succeeded, and what report.json says of each stage."""
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


def test_the_check_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages, with a tiny network and Triton's interpreter; what needs a GPU is skipped and says so."""
    assert main(["gpu-day", "--part", "check", "--device", "cpu", "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["stages"]
    assert {one["name"]: one["status"] for one in found} == {
        "compile": "skipped",
        "plain": "done",
        "tune": "skipped",
        "graphs": "skipped",
        "bench": "skipped",
        "server": "done",
    }
    said = " ".join(line for one in found for line in one["lines"])
    assert "1 cases ran, 0 are wrong" in said and "worker killed" in said and "cameras" in said
    assert "server: worker killed" in capsys.readouterr().out


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
