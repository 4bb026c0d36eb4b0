"""All requests: one record for each, open or recently ended, which can be looked up by id and is counted once."""

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.access.identity import SOMEBODY, Caller
from server.engine.messages import Stop
from server.errors import (
    InvalidError,
    NotFoundError,
    ServerError,
    TooManyRequestsError,
    UnavailableError,
    unexpected,
)
from server.metrics import UNKNOWN, Metrics
from server.protocols.values import MAX_ID
from server.requests.history import History
from server.requests.record import RequestRecord

logger = logging.getLogger("anytime.registry")

UNANSWERED = {Stop.REJECTED, Stop.INVALID, Stop.DISCONNECTED}
"""Requests that end so get no answer that could be late."""


class RequestRegistry:
    """The records of the open requests, and of the last `history` that ended.

    A request is seated once its whole image has arrived; before that, it takes no seat. There are `max_open` seats, of
    which one client may hold `max_open_per_address`.

    A request is looked up and cancelled by who sent it: with the same API key; or else with the token that it carried;
    or else by its id: from anywhere if the server made the id, because such an id cannot be guessed, and from the
    client's address if the client chose it. All others get NotFoundError.

    `ended`: is told of each request that has ended, while its job is still there.
    """

    def __init__(
        self,
        metrics: Metrics,
        max_open: int,
        history: int,
        ended: Callable[[RequestRecord], None] = lambda _: None,
        max_open_per_address: int | None = None,
    ) -> None:
        self._metrics = metrics
        self._tell_ended = ended
        self._max_open = max_open
        self._max_open_per_address = max_open_per_address or max_open
        self._history = history
        self._seated: Counter[str] = Counter()
        self._alone: RequestRecord | None = None
        """The record that was seated last, if no other one was seated by then."""
        self._open: dict[int, RequestRecord] = {}
        self._ended: History[RequestRecord] = History(history)
        self.idle = asyncio.Event()
        """Set while no request is open."""
        self.idle.set()
        metrics.watch(metrics.inflight, lambda: len(self._open))
        metrics.watch(metrics.seated, self._seated.total)

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def open(
        self,
        protocol: str,
        arrived_s: float,
        given_id: str | None = None,
        caller: Caller = SOMEBODY,
        model: str | None = None,
        *,
        listed: bool = True,
    ) -> Iterator[RequestRecord]:
        """The record of one request: open in the `with` block, and counted when the block is left, however it is left.

        `given_id`: the client's id of the request; None or empty: one is made. `model`: the served model that is asked
        for, or None. `listed`: whether it can be looked up by its id. Raises, and counts, InvalidError if the id is
        unfit, and what `seat` would raise now.
        """
        owner = caller.owner(made_id=not given_id) if listed else None
        record = RequestRecord(secrets.token_hex(16), protocol, arrived_s, caller, owner, model or UNKNOWN)
        self._open[id(record)] = record
        self.idle.clear()
        try:
            if given_id:
                record.id = checked_id(given_id)
            self._check_room(record)
            yield record
        except ServerError as error:
            record.stop, record.code = Stop(error.stop), error.code
            error.request_id, error.trace = record.id, record.trace
            raise
        except Exception as error:  # the boundary: the client is told, and the log has the details
            record.stop = Stop.ERROR
            logger.exception("request %s failed", record.id)
            fault = unexpected(error)
            record.code = fault.code
            fault.request_id, fault.trace = record.id, record.trace
            try:
                raise fault from None
            finally:
                del fault  # it and this frame refer to each other, which would keep the image in memory
        except BaseException:  # the task was cancelled, since its connection is gone
            record.stop = Stop.DISCONNECTED
            raise
        finally:
            del self._open[id(record)]
            if record.seated:
                self._leave_seat(record)
            if not self._open:
                self.idle.set()
            self._count(record)

    def seat(self, record: RequestRecord) -> None:
        """Give a seat to a request whose image has arrived. Raises UnavailableError if all seats are taken, and
        TooManyRequestsError if its client holds too many."""
        self._check_room(record)
        self._alone = None if self._seated else record
        record.seated = True
        self._seated[record.caller.network] += 1

    def is_alone(self, record: RequestRecord) -> bool:
        """Whether no other request was seated since this one was; before it is seated, whether none is."""
        return self._alone is record if record.seated else not self._seated

    def _leave_seat(self, record: RequestRecord) -> None:
        record.seated = False
        if self._alone is record:
            self._alone = None
        self._seated[record.caller.network] -= 1
        if not self._seated[record.caller.network]:
            del self._seated[record.caller.network]

    def _check_room(self, record: RequestRecord) -> None:
        if self._seated.total() >= self._max_open:
            sentence = f"{self._max_open} requests are open, which is the limit (--max-open); ask again soon"
            raise UnavailableError(sentence, "overloaded", 1.0)
        if self._seated[record.caller.network] >= self._max_open_per_address:
            sentence = f"{record.caller.network} has {self._max_open_per_address} open requests, which is the limit"
            raise TooManyRequestsError(f"{sentence} (--max-open-per-address); ask again soon", "client_limit", 1.0)

    def open_records(self, request_id: str, caller: Caller) -> list[RequestRecord]:
        """The open requests with that id that `caller` may cancel, the oldest first; clients may give one id to
        several."""
        return [found for found in self._open.values() if found.id == request_id and found.owner in caller.owners]

    def find(self, request_id: str, caller: Caller) -> RequestRecord:
        """Returns the newest request with that id that `caller` may look up. Raises NotFoundError if there is none."""
        found = next(reversed(self.open_records(request_id, caller)), None)
        ended = (self._ended.find((owner, request_id)) for owner in caller.owners)
        found = found or next(filter(None, ended), None)
        if found is None:
            raise NotFoundError(
                f"no request of yours is called {request_id[:MAX_ID]!r}; the open ones and at most the last "
                f"{self._history} are known",
                "unknown_request",
            )
        return found

    def _count(self, record: RequestRecord) -> None:
        now_s = time.monotonic()
        record.stop = record.stop or Stop.ERROR
        record.elapsed_s = now_s - record.arrived_s
        if record.job is not None:
            record.exit = record.job.latest
        self._tell_ended(record)
        record.job = record.place = None
        metrics, model = self._metrics, record.model
        metrics.requests.labels(model, record.protocol, record.stop).inc()
        metrics.exits_reached.labels(model, record.exit, record.stop).inc()
        metrics.request.labels(model, record.protocol).observe(record.elapsed_s)
        if record.stop is Stop.REJECTED:
            metrics.refusals.labels(model, record.code).inc()
        if record.options.deadline_ms is not None:
            metrics.asked_deadline.labels(model).observe(record.options.deadline_ms / 1000)
        if math.isfinite(record.deadline_s) and record.stop not in UNANSWERED:
            metrics.overrun.labels(model).observe(max(0.0, now_s - record.deadline_s))
        if record.owner is not None and record.stop is not Stop.INVALID:  # invalid ones displace none
            self._ended.add(record.caller.network, (record.owner, record.id), record)


def checked_id(given: str) -> str:
    """Raises InvalidError unless the id is short and printable."""
    if len(given) > MAX_ID or not given.isascii() or not given.isprintable():
        raise InvalidError(
            f"the request's id has {len(given)} characters; at most {MAX_ID} printable ASCII ones are allowed", "bad_id"
        )
    return given
