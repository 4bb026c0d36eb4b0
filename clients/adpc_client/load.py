"""A load generator, which sends a bounded number of requests and reports how the server answered.

An open loop sends requests at Poisson moments and does not wait for earlier answers, like independent users. A closed
loop has a fixed number of users, each of whom sends the next request once the last is answered.
"""

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from adpc_client.async_client import AsyncClient
from adpc_client.errors import AdpcError, ReplyError

Protocol = Literal["http", "stream"]
_EXPECTED_STATUSES = {429, 499, 503, 504}
"""Statuses with which a loaded server may refuse a request. Any other error counts as a fault."""


@dataclass(frozen=True)
class LoadTestPlan:
    """The requests to send.

    With `rate_per_s` the loop is open; without, it is closed and has `concurrency` users. Deadlines are drawn uniformly
    from `deadline_ms`, (low, high). `cancel_share` of the requests are given up at a random moment before their
    deadline: half by DELETE or a cancel message, half by closing the connection. An open loop with `max_open`
    unanswered requests does not send the next one, and counts it as `not_sent`. An answer is good if it is at most
    `grace_ms` late.
    """

    images: Sequence[bytes]
    count: int = 200
    rate_per_s: float | None = None
    concurrency: int = 4
    deadline_ms: tuple[float, float] = (200.0, 200.0)
    cancel_share: float = 0.0
    model: str | None = None
    protocol: Protocol = "http"
    seed: int = 0
    max_open: int = 512
    grace_ms: float = 5.0


@dataclass(frozen=True)
class PlannedRequest:
    """One request of a plan.

    An open loop sends it at `due_s`, counted from the start. It is given up `give_up_s` after it is sent, unless that
    is None: by closing the connection if `hang_up`, else by cancelling it.
    """

    image: bytes
    deadline_ms: float
    due_s: float
    give_up_s: float | None
    hang_up: bool


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request.

    `exit` is the exit reached, 0 for none. `late_ms` is the time from the deadline to the answer, negative if the
    answer was early. `lag_ms` is the time from when the request was due to when it was sent.
    """

    exit: int
    stop: str
    late_ms: float
    lag_ms: float
    fault: bool = False


@dataclass(frozen=True)
class LoadReport:
    """The figures of a run. `exits` and `stops` count requests.

    An answer is good if it has an exit, is in time (but for the grace) and was not given up here. `good_share` is the
    share of good answers among the requests not given up. `late_ms` holds percentiles over the answers with an exit,
    `lag_ms` over all requests. A large lag means that the generator, not the server, was the limit.
    """

    requests: int
    seconds: float
    answered_per_s: float
    good_per_s: float
    good_share: float
    exits: dict[str, int]
    stops: dict[str, int]
    late_ms: dict[str, float]
    lag_ms: dict[str, float]
    faults: int


def draw_requests(plan: LoadTestPlan) -> Iterator[PlannedRequest]:
    """The requests of `plan`. The same plan gives the same requests."""
    chance = random.Random(plan.seed)
    due_s = 0.0
    for _ in range(plan.count):
        due_s += chance.expovariate(plan.rate_per_s) if plan.rate_per_s else 0.0
        deadline_ms = chance.uniform(*plan.deadline_ms)
        give_up_s = chance.uniform(0, deadline_ms / 1000) if chance.random() < plan.cancel_share else None
        yield PlannedRequest(chance.choice(plan.images), deadline_ms, due_s, give_up_s, chance.random() < 0.5)


async def run(client: AsyncClient, plan: LoadTestPlan) -> LoadReport:
    """Send the requests of `plan` and wait for all of their answers."""
    requests = draw_requests(plan)
    start_s = time.perf_counter()
    outcomes = await (_open_loop if plan.rate_per_s else _closed_loop)(client, plan, requests)
    return summarise(outcomes, time.perf_counter() - start_s, plan.grace_ms)


def summarise(outcomes: Sequence[Outcome], seconds: float, grace_ms: float) -> LoadReport:
    """The figures of a run that took `seconds` and had these outcomes."""
    answered = [outcome for outcome in outcomes if outcome.exit > 0]
    wanted = [outcome for outcome in outcomes if outcome.stop not in ("cancelled", "hung_up")]
    good = sum(outcome.exit > 0 and outcome.late_ms <= grace_ms for outcome in wanted)
    return LoadReport(
        requests=len(outcomes),
        seconds=round(seconds, 3),
        answered_per_s=round(len(answered) / seconds, 2),
        good_per_s=round(good / seconds, 2),
        good_share=round(good / len(wanted), 4) if wanted else 0.0,
        exits={str(exit): count for exit, count in sorted(Counter(outcome.exit for outcome in outcomes).items())},
        stops=dict(Counter(outcome.stop for outcome in outcomes).most_common()),
        late_ms=_percentiles([outcome.late_ms for outcome in answered]),
        lag_ms=_percentiles([outcome.lag_ms for outcome in outcomes]),
        faults=sum(outcome.fault for outcome in outcomes),
    )


def table(report: LoadReport) -> str:
    """`report` as lines of text."""
    lines = [
        f"{report.requests} requests in {report.seconds:.1f} s: {report.answered_per_s:.1f}/s answered, "
        f"{report.good_per_s:.1f}/s in time, {report.good_share:.1%} of those wanted"
    ]
    widest = max(report.exits.values(), default=1)
    for exit, count in report.exits.items():
        name = f"exit {exit}" if exit != "0" else "no exit"
        lines.append(f"  {name:8} {count:6}  {'█' * round(40 * count / widest)}")
    lines.append("  ended:    " + ", ".join(f"{count} {stop}" for stop, count in report.stops.items()))
    for name, figures in (("late_ms", report.late_ms), ("lag_ms", report.lag_ms)):
        lines += [f"  {name:9} " + "  ".join(f"{key} {value:.1f}" for key, value in figures.items())]
    return "\n".join(lines)


async def _open_loop(client: AsyncClient, plan: LoadTestPlan, requests: Iterator[PlannedRequest]) -> list[Outcome]:
    start_s = time.perf_counter()
    tasks: set[asyncio.Task[Outcome]] = set()
    outcomes: list[Outcome] = []
    for request in requests:
        await asyncio.sleep(max(0.0, start_s + request.due_s - time.perf_counter()))
        lag_ms = (time.perf_counter() - start_s - request.due_s) * 1000
        if len(tasks) >= plan.max_open:
            outcomes.append(Outcome(0, "not_sent", 0.0, lag_ms))
            continue
        task = asyncio.create_task(_send(client, plan, request, lag_ms))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda done: outcomes.append(done.result()))
    await asyncio.gather(*tasks)
    return outcomes


async def _closed_loop(client: AsyncClient, plan: LoadTestPlan, requests: Iterator[PlannedRequest]) -> list[Outcome]:
    async def user() -> list[Outcome]:
        return [await _send(client, plan, request, 0.0) for request in requests]  # all users share one iterator

    return list(chain.from_iterable(await asyncio.gather(*(user() for _ in range(plan.concurrency)))))


async def _send(client: AsyncClient, plan: LoadTestPlan, request: PlannedRequest, lag_ms: float) -> Outcome:
    """Send `request` and wait until it is answered or given up."""
    sent_s = time.perf_counter()

    def outcome(exit: int, stop: str, fault: bool = False) -> Outcome:
        return Outcome(exit, stop, (time.perf_counter() - sent_s) * 1000 - request.deadline_ms, lag_ms, fault)

    try:
        if request.give_up_s is not None and request.hang_up:
            try:
                return outcome(*await asyncio.wait_for(_exit_and_stop(client, plan, request), request.give_up_s))
            except asyncio.TimeoutError:
                return outcome(0, "hung_up")
        return outcome(*await _exit_and_stop(client, plan, request))
    except ReplyError as error:
        return outcome(0, error.code, fault=error.status not in _EXPECTED_STATUSES)
    except AdpcError as error:
        return outcome(0, type(error).__name__, fault=True)


async def _exit_and_stop(client: AsyncClient, plan: LoadTestPlan, request: PlannedRequest) -> tuple[int, str]:
    """The exit that `request` reaches and why it stops there. Cancels it after `give_up_s`, unless it is to hang up."""
    cancel_s = None if request.hang_up else request.give_up_s
    if plan.protocol == "stream":
        async with client.stream(request.image, model=plan.model, deadline_ms=request.deadline_ms) as stream:
            canceller = _start_later(cancel_s, stream.cancel)
            try:
                async for _ in stream:
                    pass
            finally:
                canceller.cancel()
        return (stream.end.exit, stream.end.stop) if stream.end else (0, "no_end")
    identifier = f"load-{secrets.token_hex(8)}"
    canceller = _start_later(cancel_s, lambda: client.cancel(identifier))
    try:
        answer = await client.predict(request.image, model=plan.model, deadline_ms=request.deadline_ms, id=identifier)
    finally:
        canceller.cancel()
    return answer.exit, answer.stop


def _start_later(delay_s: float | None, cancel: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """A task that calls `cancel` after `delay_s`; None never does."""

    async def later() -> None:
        if delay_s is not None:
            await asyncio.sleep(delay_s)
            with suppress(AdpcError):  # the request was answered or refused first
                await cancel()

    return asyncio.create_task(later())


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = (50, 90, 99, 99.9, 100)
    return {f"p{share:g}": round(float(np.percentile(values, share)), 3) for share in shares}
