"""`python -m models bench --device cuda` as a stage: its rows as they come, its files into the output."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from models.gpu_day.stages import MissingError


def bench(output: Path, deadline: float, line: Callable[[str], None], device: str, options: Sequence[str]) -> bool:
    """`options` of the command. Rows that do not fit into the time are not measured; whether any was."""
    if device == "cpu":
        raise MissingError("rows need a GPU")
    command = [sys.executable, "-m", "models", "bench", "--device", device, "--output", str(output), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
    timer.start()
    rows = 0
    assert process.stdout is not None
    for text in process.stdout:
        rows += " ms" in text
        line(text.rstrip())
    status = process.wait()
    timer.cancel()
    if status < 0:
        line(f"stopped after {rows} rows; the others would have taken too long")
    return rows > 0
