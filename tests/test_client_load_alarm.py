"""Waiting of the load generator, in real time: never too short, and quiet afterwards."""

import asyncio
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import uvloop
from adpc_client.load.alarm import LoopAlarm, TimerAlarm, make_alarm

RUNS = [asyncio.run, uvloop.run]
ALARMS = [lambda: LoopAlarm(time.perf_counter), lambda: make_alarm(time.perf_counter)]


def descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("make", ALARMS)
def test_no_wait_is_too_short(run, make):
    async def main():
        with closing(make()) as alarm:
            for seconds in (0.0004, 0.0012, 0.00149, 0.0006, 0.0001, 0.003):
                began_s = time.perf_counter()
                await alarm.wait(seconds)
                assert time.perf_counter() - began_s >= seconds

    run(main())


@pytest.mark.parametrize("make", ALARMS)
def test_the_event_loop_goes_on_meanwhile(make):
    async def main():
        async def others():
            done.append("others")

        done = []
        with closing(make()) as alarm:
            task = asyncio.create_task(others())
            await alarm.wait(0.001)
            assert done == ["others"]
            task = asyncio.create_task(others())
            await alarm.wait(-1.0)  # late
            assert done == ["others"] * 2 and task.done()

    asyncio.run(main())


def test_a_wait_by_the_event_loop_keeps_no_core_busy(monkeypatch):
    """It never waits for less than a millisecond, which uvloop rounds to nothing."""
    waits, now_s = [], 0.0

    async def sleep(seconds):
        nonlocal now_s
        waits.append(seconds)
        now_s += 0.7 * seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    waiting = LoopAlarm(lambda: now_s).wait(0.0034)
    with pytest.raises(StopIteration):
        waiting.send(None)
    assert waits == pytest.approx([0, 0.004, 0.001])


def test_an_alarm_is_as_precise_as_the_system_allows(monkeypatch):
    def forbidden(_):
        raise PermissionError

    async def kind():
        with closing(make_alarm(time.perf_counter)) as alarm:
            return type(alarm)

    assert asyncio.run(kind()) is (TimerAlarm if sys.platform == "linux" else LoopAlarm)
    monkeypatch.setattr(TimerAlarm, "__init__", forbidden)
    assert asyncio.run(kind()) is LoopAlarm


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd_create is a system call of Linux")
def test_what_the_system_refuses_is_told(monkeypatch):
    async def main():
        with closing(TimerAlarm()) as alarm:
            monkeypatch.setattr(alarm, "_system", type("", (), {"timerfd_settime": lambda *_: -1})())
            await alarm.wait(0.001)

    with pytest.raises(OSError, match="Errno"):
        asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd_create is a system call of Linux")
@pytest.mark.parametrize("run", RUNS)
def test_a_timer_rings_once_and_its_descriptor_is_closed(run):
    async def main():
        before, rung, faults = descriptors(), [], []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

        class Counted(TimerAlarm):
            def _ring(self):
                rung.append(self)
                super()._ring()

        with closing(Counted()) as alarm:
            await alarm.wait(0.001)
            await alarm.wait(0.9999999999e-9)  # it rounds to no less than a nanosecond
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert len(rung) == 2
            waiting = asyncio.create_task(alarm.wait(0.002))
            await asyncio.sleep(0)
            waiting.cancel()
            await alarm.wait(0.005)  # what is left of the cancelled wait does not end this one
            alarm._ring()  # it was told too late
            waiting = asyncio.create_task(alarm.wait(0.001))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.sleep(0.005)  # it rings, and nobody waits
            timer = alarm._timer
        assert not asyncio.get_running_loop().remove_reader(timer)
        assert descriptors() == before and faults == []

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd_create is a system call of Linux")
def test_a_long_wait_is_set_in_seconds_and_nanoseconds(monkeypatch):
    async def main():
        with closing(TimerAlarm()) as alarm:
            set_to = []
            monkeypatch.setattr(
                alarm, "_system", type("", (), {"timerfd_settime": lambda _, *given: set_to.append(given)})()
            )
            for seconds in (2.25, 0.9999999999):
                waiting = asyncio.create_task(alarm.wait(seconds))
                await asyncio.sleep(0)
                waiting.cancel()
        return [TimerAlarm.SETTING.unpack(given[2]) for given in set_to]

    assert asyncio.run(main()) == [(0, 0, 2, 250_000_000), (0, 0, 1, 0)]
