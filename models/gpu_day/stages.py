"""Runs stages in order of value, each in its own process with a time limit, so that a failure ends one stage only.

A stage is a function `job(...)` in a module that is imported in the stage's own process; see `models.gpu_day.__main__`
for its arguments. The report is written while the stages run, so that it is kept whatever ends the run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
FILES = 8
"""How many files the output may have."""
FILE_BYTES = 15 * 2**20
"""How many bytes each of them may have."""
LOG_BYTES = 4 * 2**20
"""How many bytes are kept of the beginning and of the end of the log."""
LEAST_S = 3.0
"""A stage is skipped if less time than this is left, because starting its process takes longer."""
MISSING = 3
"""The status of a stage's process that lacks an optional package or a GPU."""


class MissingError(Exception):
    """An optional package or a GPU is missing, so the stage has nothing to do."""


@dataclass(frozen=True)
class Stage:
    """A part of the run. `job`: "module:function". `options`: arguments of the function. `limit_s`: its time, including
    the start of its process."""

    name: str
    limit_s: float
    job: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """The outcome of a stage. `status`: done, failed, killed (at its limit) or skipped (which counts as a success)."""

    name: str
    status: str
    seconds: float
    reason: str = ""
    lines: list[str] = field(default_factory=list)


class Report:
    """Writes report.txt, report.json and log.txt of a run. They are complete on disk after every call."""

    def __init__(self, output: Path, about: Mapping[str, object], say: Callable[[str], object] = print) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.about, self.say = output, about, say
        self.results: list[Result] = []
        self._began_s = time.monotonic()
        self._text = (output / "report.txt").open("w")
        self.log = (output / "log.txt").open("a+b")
        self._lock = threading.Lock()
        self.line("run", json.dumps(about))

    def line(self, name: str, text: str) -> None:
        stamped = f"{time.monotonic() - self._began_s:7.1f} s  {name}: {text}"
        with self._lock:
            self.say(stamped)
            self._text.write(f"{stamped}\n")
            _to_disk(self._text)

    def add(self, result: Result) -> None:
        self.results.append(result)
        reason = f" ({result.reason})" if result.reason else ""
        self.line(result.name, f"{result.status} after {result.seconds:.1f} s{reason}")
        self._shorten_log()
        found = {"about": self.about, "stages": [asdict(result) for result in self.results]}
        part = self.output / "report.json.part"
        with part.open("w") as file:
            json.dump(found, file, indent=1)
            _to_disk(file)
        part.replace(self.output / "report.json")

    def close(self) -> None:
        self._text.close()
        self.log.close()

    def _shorten_log(self) -> None:
        size = self.log.seek(0, os.SEEK_END)
        if size > 2 * LOG_BYTES:
            self.log.seek(size - LOG_BYTES)
            end = self.log.read()
            self.log.truncate(LOG_BYTES)
            self.log.write(b"\n... %d bytes are left out ...\n" % (size - 2 * LOG_BYTES) + end)
        _to_disk(self.log)


def run(
    stages: Sequence[Stage],
    report: Report,
    minutes: float,
    arguments: Mapping[str, object],
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Runs `stages` within `minutes`, with `arguments` for every job. Returns whether all that ran succeeded.

    A stage may also use the time that earlier stages left of their limits. All share a folder for compiled kernels,
    which is removed at the end.
    """
    end_s = time.monotonic() + 60 * minutes
    spare_s = 0.0
    scratch = Path(tempfile.mkdtemp(prefix="gpu-day-"))
    environ = {
        **os.environ,
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "PYTHONUNBUFFERED": "1",
        **(environment or {}),
    }
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environ.get("PYTHONPATH"))))
    try:
        for stage in stages:
            left_s = end_s - time.monotonic()
            if left_s < LEAST_S:
                reason = f"{max(left_s, 0.0):.1f} s of {minutes:g} minutes are left; give more --minutes"
                report.add(Result(stage.name, "skipped", 0.0, reason))
                continue
            result = _run_one(stage, report, min(stage.limit_s + spare_s, left_s), arguments, environ)
            spare_s = max(0.0, spare_s + stage.limit_s - result.seconds)
            report.add(result)
            pack(report.output)
            if excess := excess_of(report.output):
                report.add(Result(stage.name, "failed", 0.0, f"{excess}; the output may have no such files"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return all(result.status in ("done", "skipped") for result in report.results)


def pack(output: Path) -> None:
    """Packs every folder of `output` into a tar file, so that there are few files."""
    for folder in [path for path in output.iterdir() if path.is_dir()]:
        shutil.make_archive(str(folder), "tar", output, folder.name)
        shutil.rmtree(folder)


def excess_of(output: Path) -> str:
    """A sentence that says which limit the files of `output` exceed; empty if none."""
    files = [path for path in output.rglob("*") if path.is_file() and not path.name.endswith(".part")]
    found = [
        f"{path.relative_to(output)} has {path.stat().st_size} bytes, more than {FILE_BYTES}"
        for path in files
        if path.stat().st_size > FILE_BYTES
    ]
    if len(files) > FILES:
        found.append(f"there are {len(files)} files, more than {FILES}")
    return "; ".join(found)


def _run_one(
    stage: Stage, report: Report, limit_s: float, arguments: Mapping[str, object], environ: Mapping[str, str]
) -> Result:
    began_s = time.monotonic()
    seconds = limit_s - min(2.0, 0.1 * limit_s)  # a job that keeps its deadline ends before it is killed
    call = {**arguments, **stage.options, "seconds": seconds}
    command = [sys.executable, "-m", "models.gpu_day", stage.job, json.dumps(call)]
    report.log.write(f"\n=== {stage.name}, {limit_s:.0f} s ===\n".encode())
    report.log.flush()
    report.line(stage.name, f"begins, has {limit_s:.0f} s")
    lines: list[str] = []
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=report.log, env=environ, start_new_session=True
    )

    def hear() -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            text = raw.decode(errors="replace").rstrip()
            lines.append(text)
            report.line(stage.name, text)

    hearing = threading.Thread(target=hear, daemon=True)
    hearing.start()
    killed = False
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        killed = True
    finally:
        _end(process)
        hearing.join(5)
        assert process.stdout is not None
        process.stdout.close()
    spent_s = time.monotonic() - began_s
    status, reason = _verdict(process.returncode, killed, limit_s)
    if status == "failed" and lines and process.returncode > 0:
        reason = lines[-1]
    return Result(stage.name, status, round(spent_s, 1), reason, lines)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a stage's process and its children, which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _verdict(status: int, killed: bool, limit_s: float) -> tuple[str, str]:
    if killed:
        return "killed", f"not done after {limit_s:.0f} s"
    if status == 0:
        return "done", ""
    if status == MISSING:
        return "skipped", "an optional package or a GPU is missing, see the line above"
    if status < 0:
        return "failed", f"its process died of {signal.Signals(-status).name}"
    return "failed", f"its process ended with status {status}"


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
