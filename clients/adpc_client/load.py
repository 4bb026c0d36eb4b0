"""A bounded load generator: what a server gives when many ask at once. Imports the async client.

Open loop: requests are sent at Poisson moments whether or not earlier ones have been answered, as independent users
would. Closed loop: a fixed number of users, each asking again once answered.
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
_EXPECTED = {429, 499, 503, 504}
"""Refusals under load are findings; anything else that fails is a fault."""


@dataclass(frozen=True)
class Plan:
    """What to send.

    `rate_per_s`: open loop; None: closed loop of `concurrency` users. `deadline_ms`: drawn evenly from (low, high).
    `cancel_share`: of requests given up at a random moment before their deadline, half by DELETE or a cancel message,
    half by hanging up. `max_open`: requests of an open loop beyond it are not sent, and counted. `grace_ms`: how late
    an answer may be and still be good.
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
class Shot:
    """One request, drawn beforehand. `due_s`: when to send it in an open loop. `give_up_s`: after it was sent."""

    image: bytes
    deadline_ms: float
    due_s: float
    give_up_s: float | None
    hang_up: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a shot. `exit` 0: none. `late_ms`: answer after the deadline, negative before it."""

    exit: int
    stop: str
    late_ms: float
    lag_ms: float
    fault: bool = False


@dataclass(frozen=True)
class Report:
    """Figures of a run; `exits` and `stops` count requests. Percentiles in milliseconds, of answers with an exit.

    `good`: with an exit, in time (but for the grace), and not given up by us; the share is of those not given up.
    `lag_ms`: how late this generator itself sent. Large figures there mean that it, not the server, was the limit.
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


def draw_shots(plan: Plan) -> Iterator[Shot]:
    """The requests of `plan`; the same for the same seed."""
    chance = random.Random(plan.seed)
    due_s = 0.0
    for _ in range(plan.count):
        due_s += chance.expovariate(plan.rate_per_s) if plan.rate_per_s else 0.0
        deadline_ms = chance.uniform(*plan.deadline_ms)
        give_up_s = chance.uniform(0, deadline_ms / 1000) if chance.random() < plan.cancel_share else None
        yield Shot(chance.choice(plan.images), deadline_ms, due_s, give_up_s, chance.random() < 0.5)


async def run(client: AsyncClient, plan: Plan) -> Report:
    """Send the requests of `plan` and wait for all of them."""
    shots = draw_shots(plan)
    start_s = time.perf_counter()
    outcomes = await (_open_loop if plan.rate_per_s else _closed_loop)(client, plan, shots)
    return summarise(outcomes, time.perf_counter() - start_s, plan.grace_ms)


def summarise(outcomes: Sequence[Outcome], seconds: float, grace_ms: float) -> Report:
    """The figures of `outcomes`, which took `seconds` together."""
    answered = [outcome for outcome in outcomes if outcome.exit > 0]
    wanted = [outcome for outcome in outcomes if outcome.stop not in ("cancelled", "hung_up")]
    good = sum(outcome.exit > 0 and outcome.late_ms <= grace_ms for outcome in wanted)
    return Report(
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


def table(report: Report) -> str:
    """`report` for people."""
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


async def _open_loop(client: AsyncClient, plan: Plan, shots: Iterator[Shot]) -> list[Outcome]:
    start_s = time.perf_counter()
    tasks: set[asyncio.Task[Outcome]] = set()
    outcomes: list[Outcome] = []
    for shot in shots:
        await asyncio.sleep(max(0.0, start_s + shot.due_s - time.perf_counter()))
        lag_ms = (time.perf_counter() - start_s - shot.due_s) * 1000
        if len(tasks) >= plan.max_open:
            outcomes.append(Outcome(0, "not_sent", 0.0, lag_ms))
            continue
        task = asyncio.create_task(_shoot(client, plan, shot, lag_ms))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda done: outcomes.append(done.result()))
    await asyncio.gather(*tasks)
    return outcomes


async def _closed_loop(client: AsyncClient, plan: Plan, shots: Iterator[Shot]) -> list[Outcome]:
    async def user() -> list[Outcome]:
        return [await _shoot(client, plan, shot, 0.0) for shot in shots]  # all users draw from the same shots

    return list(chain.from_iterable(await asyncio.gather(*(user() for _ in range(plan.concurrency)))))


async def _shoot(client: AsyncClient, plan: Plan, shot: Shot, lag_ms: float) -> Outcome:
    sent_s = time.perf_counter()

    def outcome(exit: int, stop: str, fault: bool = False) -> Outcome:
        return Outcome(exit, stop, (time.perf_counter() - sent_s) * 1000 - shot.deadline_ms, lag_ms, fault)

    try:
        if shot.give_up_s is not None and shot.hang_up:
            try:
                return outcome(*await asyncio.wait_for(_ask(client, plan, shot), shot.give_up_s))
            except asyncio.TimeoutError:
                return outcome(0, "hung_up")
        return outcome(*await _ask(client, plan, shot))
    except ReplyError as error:
        return outcome(0, error.code, fault=error.status not in _EXPECTED)
    except AdpcError as error:
        return outcome(0, type(error).__name__, fault=True)


async def _ask(client: AsyncClient, plan: Plan, shot: Shot) -> tuple[int, str]:
    """The exit reached and why it stopped there."""
    cancel_s = None if shot.hang_up else shot.give_up_s
    if plan.protocol == "stream":
        async with client.stream(shot.image, model=plan.model, deadline_ms=shot.deadline_ms) as stream:
            canceller = _after(cancel_s, stream.cancel)
            try:
                async for _ in stream:
                    pass
            finally:
                canceller.cancel()
        return (stream.end.exit, stream.end.stop) if stream.end else (0, "no_end")
    identifier = f"load-{secrets.token_hex(8)}"
    canceller = _after(cancel_s, lambda: client.cancel(identifier))
    try:
        answer = await client.predict(shot.image, model=plan.model, deadline_ms=shot.deadline_ms, id=identifier)
    finally:
        canceller.cancel()
    return answer.exit, answer.stop


def _after(delay_s: float | None, act: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    async def later() -> None:
        if delay_s is not None:
            await asyncio.sleep(delay_s)
            with suppress(AdpcError):  # answered first, or refused: the request itself tells
                await act()

    return asyncio.create_task(later())


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = (50, 90, 99, 99.9, 100)
    return {f"p{share:g}": round(float(np.percentile(values, share)), 3) for share in shares}
