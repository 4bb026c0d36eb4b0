"""Sends the requests of a plan when they are due, and hears what becomes of them."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from operator import itemgetter

from adpc_client.errors import AdpcError
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
        self, transport: LoadTransport, plan: LoadTestPlan, payloads: Payloads, clock: Clock = time.perf_counter
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.open = 0
        self._transport, self._plan, self._payloads, self._clock = transport, plan, payloads, clock
        self._requests = payloads.prepare(plan.requests)
        self._name = f"load-{secrets.token_hex(4)}"  # two generators may send to one server
        self._start_s = 0.0

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
        tasks: set[asyncio.Task[None]] = set()
        for number, request in numbered:
            await self._until(request.at_s)
            if self.open >= self._plan.max_open:
                self._leave_out(request, "not_sent")
                continue
            task = asyncio.create_task(self._exchange(number, request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(0)  # lets it be sent before the next one, which may be due, too
        await asyncio.gather(*tasks)

    async def _camera(self, frames: deque[tuple[int, PlannedRequest]]) -> None:
        free_s = 0.0
        while frames:
            number, frame = frames.popleft()
            await self._until(frame.at_s)
            while frames and frames[0][1].at_s <= free_s:
                self._leave_out(frame, "overtaken")
                number, frame = frames.popleft()
            held_s = max(0.0, free_s - frame.at_s)
            if 1000 * held_s >= frame.deadline_ms:
                self._leave_out(frame, "stale")
                continue
            await self._exchange(number, frame, held_s, frames[0][1].at_s if frames else inf)
            free_s = self.now_s

    async def _user(self, numbered: Iterator[tuple[int, PlannedRequest]]) -> None:
        for number, request in numbered:  # which all users share
            await self._exchange(number, replace(request, at_s=self.now_s))

    async def _until(self, at_s: float) -> None:
        while (wait_s := at_s - self.now_s) > 0:  # noqa: ASYNC110 - a timer may fire early
            await asyncio.sleep(wait_s)

    def _leave_out(self, request: PlannedRequest, why: str) -> None:
        self.outcomes.append(Outcome(request, LoadReply(self.now_s, why), sent=False))

    async def _exchange(
        self, number: int, request: PlannedRequest, held_s: float = 0.0, overtaken_s: float = inf
    ) -> None:
        """Send a request and wait until it has ended. From `overtaken_s` on, a newer frame waits for it."""
        self.open += 1
        lag_s = self.now_s - request.at_s - held_s
        deadline_ms = request.deadline_ms - 1000 * held_s
        sending = LoadRequest(f"{self._name}-{number}", request, deadline_ms, self._payloads.pick(number, request))
        try:
            reply = await self._reply(await self._transport.open(sending), request, overtaken_s)
        except AdpcError as error:
            reply = failed_reply(error, self._clock())
        finally:
            self.open -= 1
        self.outcomes.append(Outcome(request, self._from_start(reply), held_s, lag_s))

    async def _reply(self, opened: OpenRequest, request: PlannedRequest, overtaken_s: float) -> LoadReply:
        give_up = opened.hang_up if request.hang_up else opened.cancel
        given_up_s = inf if request.give_up_s is None else self.now_s + request.give_up_s
        silent_s = self.now_s + request.deadline_ms / 1000 + SILENCE_S
        for at_s, act in sorted([(given_up_s, give_up), (overtaken_s, opened.give_way)], key=itemgetter(0)):
            if at_s < silent_s and not await self._ends_before(opened, at_s):
                act()
        if not await self._ends_before(opened, silent_s):
            opened.hang_up()
            return LoadReply(self._clock(), "silent", tuple(opened.exits), fault=True)
        return opened.reply.result()

    async def _ends_before(self, opened: OpenRequest, at_s: float) -> bool:
        await asyncio.wait([opened.reply], timeout=max(0.0, at_s - self.now_s))
        return opened.reply.done()

    def _from_start(self, reply: LoadReply) -> LoadReply:
        """`reply` with its times in seconds from the start."""
        exits = tuple(ReceivedExit(received.exit, received.at_s - self._start_s) for received in reply.exits)
        return replace(reply, ended_s=reply.ended_s - self._start_s, exits=exits)
