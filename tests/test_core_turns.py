"""The turns that the processes of a server take on a core."""

import subprocess
import sys
import threading

import pytest

from server.core_turns import SHORT_S, take_short_turns, take_usual_turns, turn_s


@pytest.fixture
def usual_s() -> float:
    """The length of usual turns."""
    seconds: list[float] = []

    def ask() -> None:  # in a thread of its own, whose turns nobody else has
        take_short_turns()
        short_s = turn_s()
        take_usual_turns()
        seconds.extend((short_s, turn_s()))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if seconds[0] != SHORT_S:
        pytest.skip("the length of turns cannot be set here: that needs Linux 6.12")
    return seconds[1]


def test_short_turns_are_inherited_until_a_process_takes_usual_ones(usual_s: float) -> None:
    child = "from server.core_turns import *; print(turn_s()); take_usual_turns(); print(turn_s())"
    parent = (
        "import subprocess, sys; from server.core_turns import *; take_short_turns(); "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    printed = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True).stdout
    assert [float(line) for line in printed.split()] == [SHORT_S, usual_s]
    assert usual_s > SHORT_S


def test_nothing_happens_where_the_system_cannot_set_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    take_short_turns()
    assert turn_s() == 0
