"""Jobs for the stages of tests/test_gpu_day.py: each runs in a stage's own process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from models.gpu_day.stages import MissingError

Line = Callable[[str], None]


def work(output: Path, deadline: float, line: Line, device: str, word: str) -> bool:
    """Reports its arguments, and leaves a file and a folder in the output."""
    print("a print goes to the log")
    line(f"{word} on {device}, {0 < deadline - time.monotonic() < 60}")
    (output / f"{word}.json").write_text("{}")
    (output / word).mkdir()
    (output / word / "weights").write_text(word)
    return True


def wrong(line: Line) -> bool:
    line("the difference is 0.2")
    return False


def fail() -> None:
    raise ValueError("12 is more than 8;\nask for less")


def crash(line: Line) -> None:
    line("about to crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(line: Line) -> None:
    """Hangs, with a child that hangs too."""
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    line(f"child {child.pid}")
    threading.Event().wait()


def lack() -> None:
    raise MissingError("there is no oven")


def litter(output: Path) -> None:
    for number in range(9):
        (output / f"{number}.txt").write_text("")


def chatter() -> None:
    print("x" * 1000)


def patience(deadline: float, line: Line) -> None:
    """Says how many seconds it has."""
    line(str(int(deadline - time.monotonic())))
