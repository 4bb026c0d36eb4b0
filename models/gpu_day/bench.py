"""`python -m models bench --device cuda` as a stage: it reports each row as it comes, and keeps the files."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from models.gpu_day.stages import ROOT, MissingError

TUNED = ROOT / "models" / "executors" / "gpu" / "tuned.json"
"""The file of measured layers. It is named here again because the module that names it loads Triton."""
CLOSING_S = 1.0
"""The time kept for the last lines, after the last row is measured."""
LAST_WORDS_S = 0.5
"""The time in which lines are still read that were written before the command was ended."""


def bench(  # noqa: PLR0917 - a job is given them by name
    output: Path,
    deadline: float,
    line: Callable[[str], None],
    device: str,
    options: Sequence[str],
    program: Sequence[str] = (sys.executable, "-m", "models"),
) -> bool:
    """Runs the command `program` with `options`. Rows that do not fit into the time are left out. Returns whether a row
    was measured."""
    if device == "cpu":
        raise MissingError("rows need a GPU")
    if TUNED.exists() and not (output / TUNED.name).exists():
        shutil.copy(TUNED, output / TUNED.name)  # else every row would measure all its layers again
    within_s = max(0.0, deadline - time.monotonic() - CLOSING_S)
    command = [*program, "bench", "--device", device, "--output", str(output), "--within", f"{within_s:.1f}", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    said: list[str] = []

    def hear() -> None:
        assert process.stdout is not None
        with process.stdout:
            for text in process.stdout:
                said.append(text)
                line(text.rstrip())

    hearing = threading.Thread(target=hear, daemon=True)
    hearing.start()
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
        hearing.join()
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        hearing.join(LAST_WORDS_S)  # not to the end: the process of a row lives on, and could still write
    rows = sum(" ms (least " in text for text in said)
    if process.returncode < 0:
        line(f"stopped after {rows} rows; the others would have taken too long")
    return rows > 0
