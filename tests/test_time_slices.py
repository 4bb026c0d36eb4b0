"""The length of the time slices of a server's processes."""

import subprocess
import sys
import threading

import pytest

from server.time_slices import SHORT_S, take_short_time_slices, take_usual_time_slices, time_slice_s


@pytest.fixture
def usual_s() -> float:
    """The seconds of a usual time slice."""
    seconds: list[float] = []

    def ask() -> None:  # in a thread of its own, so that other tests keep their time slice
        take_short_time_slices()
        short_s = time_slice_s()
        take_usual_time_slices()
        seconds.extend((short_s, time_slice_s()))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if seconds[0] != SHORT_S:
        pytest.skip("the length of time slices cannot be set here; that needs Linux 6.12")
    return seconds[1]


def test_a_child_process_inherits_short_time_slices_and_can_take_usual_ones(usual_s: float) -> None:
    child = "from server.time_slices import *; print(time_slice_s()); take_usual_time_slices(); print(time_slice_s())"
    parent = (
        "import subprocess, sys; from server.time_slices import *; take_short_time_slices(); "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    printed = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True).stdout
    assert [float(line) for line in printed.split()] == [SHORT_S, usual_s]
    assert usual_s > SHORT_S


def test_nothing_happens_where_the_system_cannot_set_time_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    take_short_time_slices()
    assert time_slice_s() == 0
