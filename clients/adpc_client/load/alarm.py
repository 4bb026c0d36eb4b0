"""Waiting that ends on time.

The timers of event loops count in milliseconds. asyncio's end up to a millisecond late. uvloop's end up to half a
millisecond early, and a caller that waits again for the rest keeps a core busy until it has passed. Linux has precise
timers that an event loop can wait for: timerfd_create(2).
"""

import asyncio
import ctypes
import math
import os
import struct
import sys
from abc import ABC, abstractmethod
from contextlib import suppress

from adpc_client.load.transport import Clock

_MONOTONIC = 1
"""The number of CLOCK_MONOTONIC."""


class Alarm(ABC):
    """A timer that one coroutine at a time can wait for. Make it while the event loop runs, and close it after use."""

    @abstractmethod
    async def wait(self, seconds: float) -> None:
        """Return when so many seconds have passed. If they are not positive, only let other coroutines go on."""

    @abstractmethod
    def close(self) -> None:
        """Give the timer back to the operating system."""


def make_alarm(clock: Clock) -> Alarm:
    """Returns a `TimerAlarm` if the operating system has timer descriptors, else a `LoopAlarm`. `clock`: the present
    time in seconds."""
    if sys.platform == "linux":
        with suppress(OSError):  # it may be forbidden here
            return TimerAlarm()
    return LoopAlarm(clock)


class LoopAlarm(Alarm):
    """Waits by the timers of the event loop: never too short, and up to a millisecond too long."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def wait(self, seconds: float) -> None:
        end_s = self._clock() + seconds
        await asyncio.sleep(0)
        while (left_s := end_s - self._clock()) > 0:  # noqa: ASYNC110 - a timer may end early
            await asyncio.sleep(math.ceil(1000 * left_s) / 1000)

    def close(self) -> None:
        """Does nothing, because the alarm uses no timer of the operating system."""


class TimerAlarm(Alarm):
    """Waits by a timer of Linux, which ends about 0.05 ms late while a core is free. Raises OSError if the system gives
    none."""

    SETTING = struct.Struct("@llll")
    """The C structure itimerspec: an interval and the time to wait, each in whole seconds and nanoseconds."""

    def __init__(self) -> None:
        self._system = ctypes.CDLL(None, use_errno=True)
        self._timer = _checked(self._system.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._timer, self._ring)
        self._rung: asyncio.Future[None] | None = None

    async def wait(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        self._rung = self._loop.create_future()
        setting = self.SETTING.pack(0, 0, *divmod(math.ceil(1e9 * seconds), 10**9))
        _checked(self._system.timerfd_settime(self._timer, 0, setting, None))
        await self._rung

    def close(self) -> None:
        self._loop.remove_reader(self._timer)
        os.close(self._timer)

    def _ring(self) -> None:
        try:
            os.read(self._timer, 8)  # how often it has ended
        except BlockingIOError:  # it was set again meanwhile
            return
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)


def _checked(result: int) -> int:
    """Returns `result`, the result of a system call. Raises OSError if the call has failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
