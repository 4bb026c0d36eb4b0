"""The probe: ordinary photos with deadlines of a second, sent beside an attack, and how many of them are answered in
time. The programs of this folder attack a real server, each in one kind of way; pytest does not collect them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from acceptance import Client, photo

WANTED_SHARE = 0.95
GRACE_MS = 50.0


class Listening(Protocol):
    """A server, as far as a probe must know it."""

    port: int


@dataclass
class Probe:
    """What became of the photos of one probe. `slowest_ms`: the longest wait for an answer, whatever it was."""

    statuses: Counter[int] = field(default_factory=Counter)
    in_time: int = 0
    slowest_ms: float = 0.0

    @property
    def share(self) -> float:
        return self.in_time / max(1, self.statuses.total())

    @property
    def passed(self) -> bool:
        return self.share >= WANTED_SHARE

    def __str__(self) -> str:
        others = {status: count for status, count in self.statuses.items() if status != 200}
        share = f"{100 * self.share:5.1f} % of {self.statuses.total()} in time, longest wait {self.slowest_ms:6.0f} ms"
        return f"{share}, refused {others}" if others else share


async def probe_during(
    server: Listening,
    attack: Awaitable[object],
    *,
    every_s: float = 0.25,
    deadline_ms: float = 1000.0,
    model: str = "",
    image: bytes | None = None,
) -> Probe:
    """Send a photo every `every_s`, on a connection of its own and whatever became of those before, until `attack` is
    over."""
    path = f"/v1/predict?deadline_ms={deadline_ms:g}" + (f"&model={model}" if model else "")
    found, body, sent = Probe(), image or photo(480, 360), []
    attacking = asyncio.ensure_future(attack)

    async def send_one() -> None:
        client = Client(server.port)
        try:
            answer = await client.send(path, body)
        finally:
            client.hang_up()
        found.statuses[answer.status] += 1
        found.slowest_ms = max(found.slowest_ms, 1000 * answer.seconds)
        found.in_time += answer.status == 200 and 1000 * answer.seconds <= deadline_ms + GRACE_MS

    while not attacking.done():
        sent.append(asyncio.create_task(send_one()))
        await asyncio.wait({attacking}, timeout=every_s)
    await asyncio.gather(*sent)
    await attacking
    return found


async def repeat_for(seconds: float, users: int, act: Callable[[], Awaitable[object]]) -> list[object]:
    """Let `users` attackers `act` again and again for so long. Returns what each act returned, or its error."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds
    found: list[object] = []

    async def user() -> None:
        while loop.time() < until_s:
            try:
                found.append(await act())
            except (OSError, asyncio.IncompleteReadError) as error:  # the server hung up, as it may
                found.append(error)
                await asyncio.sleep(0.01)

    await asyncio.gather(*(user() for _ in range(users)))
    return found


def report(name: str, probe: Probe, about: str = "") -> bool:
    """Print a line, and say whether enough photos were answered in time."""
    print(f"{'ok   ' if probe.passed else 'FAULT'} {name:34} {probe}  {about}", flush=True)
    return probe.passed


def chosen(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names that hold one of the `wanted` words; all if none is wanted."""
    return [name for name in names if not wanted or any(word in name for word in wanted)]
