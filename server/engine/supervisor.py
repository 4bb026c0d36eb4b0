"""The supervisor: keeps one worker running, and replaces it when it has died or is stuck."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from server.engine.channel import Channel
from server.engine.messages import Command, Event, Loading, Ping, Ready
from server.engine.usage import Usage, usage
from server.engine.watchdog import TICK_S, Watchdog
from server.engine.worker_process import WorkerProcess

logger = logging.getLogger("anytime.supervisor")


class Supervisor:
    """Keeps one worker running.

    `launch` starts a worker. `hear` is called with each of its events, `lost` once it is lost, `ended` once it has
    ended, and so no longer touches the shared memory, and `unloadable` with the reason when `GIVE_UP` workers in a row
    were lost before any was ready. `step_s` tells the longest time that it is expected to compute without a look at its
    mailbox. `load_s`: the longest time that a worker may take until it is ready.
    """

    GIVE_UP = 5
    """After this many workers in a row were lost before any was ready, `unloadable` is called, which ends the server.
    Until the server has ended, further workers are started all the same."""
    QUICK_S = 10.0
    """A worker that dies before it was ready for so many seconds counts as a quick death, see `BACKOFF_S`."""
    BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
    """The n-th value is the wait after n workers in a row could not be started or died so soon; the last value is also
    the wait after more."""
    BURY_S = 0.005
    """The interval, in seconds, between checks whether a killed worker has ended. The system first takes back its
    memory."""
    CLOSE_S = 5.0
    """When the server ends, it waits at most this many seconds until its killed worker has ended."""

    def __init__(
        self,
        *,
        launch: Callable[[], WorkerProcess],
        hear: Callable[[Event], None],
        lost: Callable[[], None],
        ended: Callable[[], None],
        unloadable: Callable[[str], None],
        step_s: Callable[[], float],
        load_s: float,
    ) -> None:
        self.starts = 0
        self._launch = launch
        self._tell = hear
        self._lost = lost
        self._ended = ended
        self._unloadable = unloadable
        self._step_s = step_s
        self._load_s = load_s
        self._worker: WorkerProcess | None = None
        self._channel: Channel | None = None
        self._watchdog = Watchdog(load_s)
        self._quick_deaths = 0
        self._overdue = False
        self._patience = 1.0
        self._was_ready = False
        self._started_s = 0.0
        self._ready_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start a worker at once."""
        self.starts += 1
        self._started_s, self._ready_s = monotonic(), None
        self._watchdog, self._overdue = Watchdog(self._load_s, self._patience), False
        try:
            self._worker = self._launch()
        except OSError as error:
            logger.exception("the worker could not be started")
            self._quick_deaths += 1
            self._tell_if_hopeless(f"could not be started: {error}")
            self._start_later()
            return
        self._channel = Channel(self._worker.connection, self._hear, self._hung_up)
        self._later(TICK_S, self._watch)

    @property
    def answers(self) -> bool:
        """Whether the worker is ready, and no sign of life is overdue."""
        return self._channel is not None and self._watchdog.ready and not self._overdue

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
        dog = self._watchdog
        dog.heard()
        self._overdue = False
        match event:
            case Loading():
                dog.began(event)
            case Ready():
                dog.now_ready()
                self._patience, self._was_ready = 1.0, True
                self._ready_s = monotonic()
                logger.info("the worker was ready after %.1f s", self._ready_s - self._started_s)
                self._tell(event)
            case _:
                self._tell(event)

    def _watch(self) -> None:
        """Ask the worker for a sign of life, or replace it if it is stuck."""
        dog = self._watchdog
        dog.tick()
        step_s = self._step_s()
        self._overdue = dog.overdue(step_s)
        why = dog.stuck(step_s)
        if why is not None:
            logger.error("the worker %s", why)
            if not dog.ready:
                self._patience *= 2
            self._replace(why)
            return
        if dog.asks:
            self.say(Ping())
        self._later(TICK_S, self._watch)

    def _hung_up(self) -> None:
        why = "is gone" if self._watchdog.ready else f"is gone while {self._watchdog.part.doing}"
        logger.error("the worker %s", why)
        self._replace(why)

    def _replace(self, why: str) -> None:
        quick = self._ready_s is None or monotonic() - self._ready_s < self.QUICK_S
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        self._drop()
        self._tell_if_hopeless(why)
        self._bury()

    def _tell_if_hopeless(self, why: str) -> None:
        """Call `unloadable` if `GIVE_UP` workers in a row were lost before any was ready. `why`: the reason for which
        the last one was lost."""
        if not self._was_ready and self._quick_deaths >= self.GIVE_UP:
            self._unloadable(f"{self._quick_deaths} workers in a row were lost before one was ready; the latest {why}")

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
            self._ended()
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
