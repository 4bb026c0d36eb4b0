"""Sends the requests of a plan when they are due, and hears what becomes of them."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import inf
from typing import NamedTuple

from adpc_client.errors import AdpcError, ConnectionFailedError
from adpc_client.load.alarm import Alarm, make_alarm
from adpc_client.load.outcome import Outcome
from adpc_client.load.payloads import Payloads
from adpc_client.load.plan import LoadTestPlan, PlannedRequest
from adpc_client.load.transport import (
    Clock,
    LoadReply,
    LoadRequest,
    LoadTransport,
    OpenRequest,
    ReceivedExit,
    failed_reply,
)

SILENCE_S = 30.0
"""How long after its deadline a request may stay unanswered."""


class LoadRunner:
    """One run of `plan`. `outcomes`: of the requests that have ended. `open`: how many have not been answered yet.

    Latency counts from when a request is due, so that waiting to be sent is part of it: a slow server cannot slow down
    the load that measures it (coordinated omission). Only in a closed loop it counts from the sending.
    """

    def __init__(
        self,
        transport: LoadTransport,
        plan: LoadTestPlan,
        payloads: Payloads,
        clock: Clock = time.perf_counter,
        make_alarm: Callable[[Clock], Alarm] = make_alarm,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.open = 0
        self._transport, self._plan, self._payloads, self._clock = transport, plan, payloads, clock
        self._make_alarm = make_alarm
        self._requests = payloads.prepare(plan.requests)
        self._name = f"load-{secrets.token_hex(4)}"  # two generators may send to one server
        self._start_s = 0.0
        self._none_open = asyncio.Event()

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start_s

    async def run(self) -> None:
        """Send the requests, and wait until all have ended."""
        self._start_s = self._clock()
        numbered = enumerate(self._requests)
        if self._plan.loop == "open":
            await self._open_loop(numbered)
        elif self._plan.loop == "cameras":
            cameras: dict[str, deque[tuple[int, PlannedRequest]]] = {}
            for number, request in numbered:
                cameras.setdefault(request.client, deque()).append((number, request))
            await asyncio.gather(*map(self._camera, cameras.values()))
        else:
            await asyncio.gather(*(self._user(numbered) for _ in range(self._plan.users)))

    async def _open_loop(self, numbered: Iterator[tuple[int, PlannedRequest]]) -> None:
        connecting: set[asyncio.Task[None]] = set()
        with closing(self._make_alarm(self._clock)) as alarm:
            for number, request in numbered:
                await alarm.wait(request.at_s - self.now_s)
                if self.open >= self._plan.max_open:
                    self._leave_out(request, "not_sent")
                    continue
                exchange = self._begin(number, request)
                if (opened := self._transport.open(exchange.sending)) is not None:
                    self._follow(exchange, opened)
                    continue
                connecting = {task for task in connecting if not _succeeded(task)}
                connecting.add(asyncio.create_task(self._complete(exchange)))
        await asyncio.gather(*connecting)
        while self.open:
            self._none_open.clear()
            await self._none_open.wait()

    async def _camera(self, frames: deque[tuple[int, PlannedRequest]]) -> None:
        free_s = 0.0
        with closing(self._make_alarm(self._clock)) as alarm:
            while frames:
                number, frame = frames.popleft()
                await alarm.wait(frame.at_s - self.now_s)
                while frames and frames[0][1].at_s <= free_s:
                    self._leave_out(frame, "overtaken")
                    number, frame = frames.popleft()
                held_s = max(0.0, free_s - frame.at_s)
                if frame.deadline_ms - 1000 * held_s < 0.001:  # a request names its deadline in thousandths
                    self._leave_out(frame, "stale")
                    continue
                await self._complete(self._begin(number, frame, held_s), frames[0][1].at_s if frames else inf)
                free_s = self.now_s

    async def _user(self, numbered: Iterator[tuple[int, PlannedRequest]]) -> None:
        for number, request in numbered:  # which all users share
            await self._complete(self._begin(number, replace(request, at_s=self.now_s)))

    def _leave_out(self, request: PlannedRequest, why: str) -> None:
        self.outcomes.append(Outcome(request, LoadReply(self.now_s, why), sent=False))

    def _begin(self, number: int, request: PlannedRequest, held_s: float = 0.0) -> "_Exchange":
        self.open += 1
        lag_s = self.now_s - request.at_s - held_s
        image = self._payloads.pick(number, request)
        sending = LoadRequest(f"{self._name}-{number}", request, request.deadline_ms - 1000 * held_s, image)
        return _Exchange(sending, held_s, lag_s)

    async def _complete(self, exchange: "_Exchange", overtaken_s: float = inf) -> None:
        """Send a request, over a new connection if none is free, and wait until it has ended. From `overtaken_s` on, a
        newer frame waits for it."""
        try:
            if (opened := self._transport.open(exchange.sending)) is None:
                await self._transport.connect([exchange.sending.planned.client])
                opened = self._transport.open(exchange.sending)
            if opened is None:
                raise ConnectionFailedError("a new connection was lost before a request could be sent")
        except AdpcError as error:
            self._record(exchange, failed_reply(error, self._clock()))
            return
        self._follow(exchange, opened, overtaken_s)
        await asyncio.wait([opened.reply])  # it would be cancelled with this task if it were awaited itself

    def _follow(self, exchange: "_Exchange", opened: OpenRequest, overtaken_s: float = inf) -> None:
        """Set the timers that give a request up, and record its reply when it comes."""
        request, call_later = exchange.sending.planned, asyncio.get_running_loop().call_later
        timers = [call_later(request.deadline_ms / 1000 + SILENCE_S, _unless_ended, opened, opened.fall_silent)]
        if request.give_up_s is not None:
            give_up = opened.hang_up if request.hang_up else opened.cancel
            timers.append(call_later(request.give_up_s, _unless_ended, opened, give_up))
        if overtaken_s < inf:
            timers.append(call_later(overtaken_s - self.now_s, _unless_ended, opened, opened.give_way))
        opened.reply.add_done_callback(partial(self._end, exchange, timers))

    def _end(
        self, exchange: "_Exchange", timers: list[asyncio.TimerHandle], reply: "asyncio.Future[LoadReply]"
    ) -> None:
        for timer in timers:
            timer.cancel()
        self._record(exchange, reply.result())

    def _record(self, exchange: "_Exchange", reply: LoadReply) -> None:
        self.open -= 1
        if not self.open:
            self._none_open.set()
        planned, start_s = exchange.sending.planned, self._start_s
        exits = tuple(ReceivedExit(received.exit, received.at_s - start_s) for received in reply.exits)
        from_start = reply._replace(ended_s=reply.ended_s - start_s, exits=exits)
        self.outcomes.append(Outcome(planned, from_start, exchange.held_s, exchange.lag_s))


class _Exchange(NamedTuple):
    """A request that is sent now. `held_s` and `lag_s`: see `Outcome`."""

    sending: LoadRequest
    held_s: float
    lag_s: float


def _unless_ended(opened: OpenRequest, act: Callable[[], None]) -> None:
    """Call `act` if the request is still open. Once a request has ended, its connection may serve another request."""
    if not opened.reply.done():
        act()


def _succeeded(task: "asyncio.Task[None]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
