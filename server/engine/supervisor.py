"""The supervisor: keeps one worker running, and replaces it when it has died or is stuck."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from server.engine.channel import Channel
from server.engine.messages import Command, Event, Ping, Ready
from server.engine.usage import Usage, usage
from server.engine.watchdog import TICK_S, Watchdog
from server.engine.worker_process import WorkerProcess

logger = logging.getLogger("anytime.supervisor")


class Supervisor:
    """Keeps one worker running.

    `launch` starts a worker. `hear` is called with each of its events, `lost` once it is lost, and `buried` once it has
    ended, and so no longer touches the shared memory. `step_s` tells the longest time that it is expected to compute
    without a look at its mailbox. `load_s`: the longest time that the first worker may take until it is ready.
    """

    RELOAD_LEAST_S = 60.0
    RELOAD_FACTOR = 5.0
    """A worker that follows another may take longer than that took until it was ready by this factor, and at least
    `RELOAD_LEAST_S`: the cores may be busier. If it takes longer still, the next one has twice the time."""
    QUICK_S = 10.0
    """A worker that dies before it has been ready for this long may do so again and again."""
    BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
    """The n-th value is the wait after n workers in a row could not be started or died so soon; the last value is also
    the wait after more."""
    BURY_S = 0.005
    """How often it is looked whether a killed worker has ended, which takes it as long as the system needs to take back
    its memory."""
    CLOSE_S = 5.0
    """The longest wait for that when the server ends."""

    def __init__(
        self,
        *,
        launch: Callable[[], WorkerProcess],
        hear: Callable[[Event], None],
        lost: Callable[[], None],
        buried: Callable[[], None],
        step_s: Callable[[], float],
        load_s: float,
    ) -> None:
        self.starts = 0
        self._launch = launch
        self._tell = hear
        self._lost = lost
        self._buried = buried
        self._step_s = step_s
        self._load_s = self._longest_load_s = load_s
        self._worker: WorkerProcess | None = None
        self._channel: Channel | None = None
        self._watchdog = Watchdog(load_s)
        self._quick_deaths = 0
        self._started_s = 0.0
        self._ready_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start a worker at once."""
        self.starts += 1
        self._started_s, self._ready_s = monotonic(), None
        self._watchdog = Watchdog(self._load_s)
        try:
            self._worker = self._launch()
        except OSError:
            logger.exception("the worker could not be started")
            self._quick_deaths += 1
            self._start_later()
            return
        self._channel = Channel(self._worker.connection, self._hear, self._hung_up)
        self._later(TICK_S, self._watch)

    def stop(self) -> None:
        """End the worker for good."""
        if self._timer is not None:
            self._timer.cancel()
        if self._channel is not None:
            self._drop()
        if self._worker is not None and not self._worker.gone(self.CLOSE_S):
            logger.error("the worker has not ended %.0f s after it was killed", self.CLOSE_S)

    def usage(self) -> Usage:
        """What the worker uses of the machine; nothing while there is none."""
        return Usage() if self._worker is None else usage(self._worker.pid)

    def say(self, command: Command) -> None:
        """Send a command. A command to a worker that is gone is dropped: `lost` ends the job that it belongs to."""
        if self._channel is not None:
            self._channel.say(command)

    def _hear(self, event: Event) -> None:
        self._watchdog.heard()
        if isinstance(event, Ready):
            self._watchdog.ready = True
            self._ready_s = monotonic()
            took_s = self._ready_s - self._started_s
            self._load_s = min(self._longest_load_s, max(self.RELOAD_LEAST_S, self.RELOAD_FACTOR * took_s))
            logger.info("the worker was ready after %.1f s", took_s)
        self._tell(event)

    def _watch(self) -> None:
        """Ask the worker for a sign of life, or replace it if it is stuck."""
        dog = self._watchdog
        dog.tick()
        limit_s = dog.limit_s(self._step_s())
        if dog.silent_s > limit_s:
            doing = "said nothing" if dog.ready else "been loading"
            logger.error("the worker has %s for %.1f s; the limit is %.1f s", doing, dog.silent_s, limit_s)
            if not dog.ready:
                self._load_s = min(self._longest_load_s, 2 * self._load_s)
            self._replace()
            return
        if dog.asks:
            self.say(Ping())
        self._later(TICK_S, self._watch)

    def _hung_up(self) -> None:
        logger.error("the worker is gone")
        self._replace()

    def _replace(self) -> None:
        quick = self._ready_s is None or monotonic() - self._ready_s < self.QUICK_S
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        self._drop()
        self._bury()

    def _drop(self) -> None:
        assert self._worker is not None and self._channel is not None
        self._channel.close()
        self._channel = None
        self._worker.kill()
        self._lost()

    def _bury(self) -> None:
        """Wait for the end of a worker that was killed, without blocking the event loop, and start another."""
        assert self._worker is not None
        if self._worker.gone():
            self._worker = None
            self._buried()
            self._start_later()
        else:
            self._later(self.BURY_S, self._bury)

    def _start_later(self) -> None:
        wait_s = self.BACKOFF_S[min(max(0, self._quick_deaths - 1), len(self.BACKOFF_S) - 1)]
        logger.error("starting another worker in %.1f s", wait_s)
        self._later(wait_s, self.start)

    def _later(self, wait_s: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(wait_s, call)
