"""LoadingProgress: what a worker tells the front end while it loads."""

import threading
from collections.abc import Callable
from contextlib import suppress

from server.engine.messages import Beat, Event, Loading

BEAT_S = 0.5
"""How often a worker that loads says that it is alive."""


class LoadingProgress:
    """Tells which part of the loading has begun, and from `begin` to `end`, from a thread, that the worker is alive.

    A worker that is stopped gives no sign of life; one that computes without end gives signs and begins no part. The
    front end replaces either. Once it is ready, the worker answers pings between its steps instead.
    """

    def __init__(self, send: Callable[[Event], None]) -> None:
        self.doing = "starting"
        self._send = send
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def part(self, doing: str, limit_s: float) -> None:
        """The worker begins a part, which takes at most `limit_s`."""
        self.doing = doing
        with self._lock:  # so that a message that is sent in two pieces stays whole
            self._send(Loading(doing, limit_s))

    def end(self) -> None:
        """Return once the last sign of life is sent."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        with suppress(OSError):  # the front end is gone, and the lifeline ends this process
            while not self._over.wait(BEAT_S):
                with self._lock:
                    self._send(Beat())
