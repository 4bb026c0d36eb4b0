"""One entry for each request, open or recently ended: it can be looked up and cancelled by id, and is counted once."""

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from server.engine.messages import Stop
from server.errors import (
    DisconnectedError,
    InvalidError,
    NoExitError,
    NotFoundError,
    RequestCancelledError,
    ServerError,
    UnavailableError,
    unexpected,
)
from server.metrics import UNKNOWN, Metrics
from server.protocols.wire import MAX_ID

logger = logging.getLogger("anytime.ledger")


class Progress(Protocol):
    """What an entry asks of the job that serves it."""

    @property
    def latest(self) -> int:
        """The newest exit that was reached; 0: none yet."""

    @property
    def stop(self) -> Stop | None:
        """Why it ended; None: it has not."""

    def cancel(self, stop: Stop) -> None:
        """End it; nothing if it has ended."""

    def move(self, deadline_s: float) -> None:
        """A new deadline; nothing if it has ended."""


@dataclass
class Entry:
    """A request from its first byte to its last. Whoever serves it writes here what is known so far."""

    id: str
    protocol: str
    arrived_s: float
    model: str = UNKNOWN
    deadline_s: float | None = None
    stop: Stop | None = None
    job: Progress | None = None
    given_up: Stop | None = None
    exit: int = 0
    elapsed_s: float | None = None
    _wait: asyncio.Timeout | None = None

    def cancel(self, stop: Stop = Stop.CANCELLED) -> None:
        """End the job, or what is done before there is one. `stop`: why, cancelled or disconnected."""
        self.given_up = self.given_up or stop
        if self.job is not None:
            self.job.cancel(stop)
        self._end_wait_in_time()

    def move(self, deadline_s: float) -> None:
        """A new deadline, sooner or later."""
        self.deadline_s = deadline_s
        if self.job is not None:
            self.job.move(deadline_s)
        self._end_wait_in_time()

    @asynccontextmanager
    async def preparing(self) -> AsyncIterator[None]:
        """Around all that is waited for before there is a job: ends it at the deadline, wherever that moves, and at a
        cancel. Raises NoExitError, RequestCancelledError or DisconnectedError then."""
        try:
            async with asyncio.timeout(None) as self._wait:
                self._end_wait_in_time()
                yield
        except TimeoutError:
            self.check()
            spent_ms = 1000 * (time.monotonic() - self.arrived_s)
            sentence = f"the image was not received and decoded within {spent_ms:.0f} ms; give a later deadline_ms"
            raise NoExitError(sentence, "no_exit") from None
        finally:
            self._wait = None

    def check(self) -> None:
        """Raises RequestCancelledError or DisconnectedError if it was given up."""
        if self.given_up is Stop.CANCELLED:
            raise RequestCancelledError("the request was cancelled by its id", "cancelled") from None
        if self.given_up is Stop.DISCONNECTED:
            raise DisconnectedError("the client hung up", "disconnected") from None

    def _end_wait_in_time(self) -> None:
        if self._wait is None or self._wait.expired():
            return
        left_s = 0.0
        if self.given_up is None and self.deadline_s is not None:
            left_s = max(0.0, self.deadline_s - time.monotonic())
        self._wait.reschedule(asyncio.get_running_loop().time() + left_s)

    def to_json(self, now_s: float) -> dict[str, Any]:
        budget_s = None if self.deadline_s is None else self.deadline_s - self.arrived_s
        stop = self.stop or (self.job and self.job.stop) or self.given_up  # the first of them ends it
        elapsed_s = now_s - self.arrived_s if self.elapsed_s is None else self.elapsed_s
        return {
            "id": self.id,
            "state": "open" if stop is None else "ended",
            "protocol": self.protocol,
            "model": self.model,
            "exit": self.job.latest if self.job else self.exit,
            "stop": stop,
            "deadline_ms": None if budget_s is None else round(1000 * budget_s, 3),
            "elapsed_ms": round(1000 * elapsed_s, 3),
        }


class Ledger:
    """Open requests, at most `max_open`, and the latest `kept` that ended."""

    def __init__(self, metrics: Metrics, max_open: int, kept: int) -> None:
        self._metrics = metrics
        self._max_open = max_open
        self._kept = kept
        self._open: dict[int, Entry] = {}
        self._ended: OrderedDict[str, Entry] = OrderedDict()
        self.idle = asyncio.Event()
        """Set while no request is open."""
        self.idle.set()
        metrics.watch(metrics.inflight, lambda: len(self._open))

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def entry(self, given_id: str | None, protocol: str, arrived_s: float, model: str | None = None) -> Iterator[Entry]:
        """The entry of one request, open in the `with` block, counted when it is left, however it is left.

        `model`: that it is counted under, if it is for one that is served. Its id is the client's, or made. Raises, and
        counts, InvalidError on an unfit id, and UnavailableError when too many requests are open.
        """
        entry = Entry(uuid.uuid4().hex, protocol, arrived_s, model or UNKNOWN)
        self._open[id(entry)] = entry
        self.idle.clear()
        try:
            if given_id:
                entry.id = checked_id(given_id)
            self._check_room()
            yield entry
        except ServerError as error:
            entry.stop = Stop(error.stop)
            error.request_id = entry.id
            raise
        except Exception as error:  # the boundary: whatever it was, the client hears of it and the log has it
            entry.stop = Stop.ERROR
            logger.exception("request %s failed", entry.id)
            fault = unexpected(error)
            fault.request_id = entry.id
            try:
                raise fault from None
            finally:
                del fault  # which would hold itself, and the image with it
        except BaseException:  # a task is cancelled when its connection is gone
            entry.stop = Stop.DISCONNECTED
            raise
        finally:
            del self._open[id(entry)]
            if not self._open:
                self.idle.set()
            self._count(entry)

    def _check_room(self) -> None:
        if len(self._open) > self._max_open:
            sentence = f"{self._max_open} requests are open, which is the limit (--max-open); ask again soon"
            raise UnavailableError(sentence, "overloaded", 1.0)

    def find(self, request_id: str) -> Entry:
        """The newest request with that id. Raises NotFoundError."""
        found = next((e for e in reversed(self._open.values()) if e.id == request_id), None)
        found = found or self._ended.get(request_id)
        if found is None:
            raise NotFoundError(
                f"no request is called {request_id[:MAX_ID]!r}; the open ones and the last {self._kept} are known",
                "unknown_request",
            )
        return found

    def cancel(self, request_id: str) -> Entry:
        """Cancel the open requests with that id. Raises NotFoundError if there never was one."""
        newest = self.find(request_id)
        for entry in list(self._open.values()):
            if entry.id == request_id:
                entry.cancel()
        return newest

    def _count(self, entry: Entry) -> None:
        now_s = time.monotonic()
        entry.stop = entry.stop or Stop.ERROR
        entry.elapsed_s = now_s - entry.arrived_s
        if entry.job is not None:
            entry.exit, entry.job = entry.job.latest, None
        metrics = self._metrics
        metrics.requests.labels(entry.model, entry.protocol, entry.stop).inc()
        metrics.exits_reached.labels(entry.model, entry.exit, entry.stop).inc()
        metrics.request.labels(entry.model, entry.protocol).observe(entry.elapsed_s)
        if entry.deadline_s is not None and entry.stop is not Stop.INVALID:
            metrics.overrun.labels(entry.model).observe(max(0.0, now_s - entry.deadline_s))
        self._ended[entry.id] = entry
        self._ended.move_to_end(entry.id)
        while len(self._ended) > self._kept:
            self._ended.popitem(last=False)


def checked_id(given: str) -> str:
    """Raises InvalidError unless the id is short and printable."""
    if len(given) > MAX_ID or not given.isascii() or not given.isprintable():
        raise InvalidError(
            f"the request's id has {len(given)} characters; at most {MAX_ID} printable ASCII ones are allowed", "bad_id"
        )
    return given
