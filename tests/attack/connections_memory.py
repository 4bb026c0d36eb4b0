"""Memory: connections that make the front end hold what they sent, or what they do not read.

`PYTHONPATH=tests python tests/attack/connections_memory.py` prints a line for each kind: how many ordinary photos were
answered in time beside it, and how far the memory of the front end went. It ends with status 1 if a line says FAULT.
No other program should run.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from acceptance import ROOT, verdict
from probe import chosen, probe_during, report
from raw import Raw, Watched, connect, connect_socket, in_another_process, log_is_clean
from wire import frame

SECONDS = 8.0
GROWTH_MIB = 400.0
"""One address may make the server hold 128 MiB of unfinished bytes. Buffers that grow take twice as much for a moment,
and the allocator keeps some."""

ANSWERS = b"GET /openapi.json HTTP/1.1\r\nHost: [::1]\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n"
BODY = b"POST /v1/predict?deadline_ms=30000 HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 16000000\r\n\r\n"
NOWHERE = b"POST /v1/models HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 16000000\r\n\r\n"


async def pipeline(port: int, request: bytes) -> Raw:
    raw = await connect(port, buffer_bytes=4096)
    while True:
        await raw.send(request * 100)


async def unfinished(raw: Raw, head: bytes, size_bytes: int) -> None:
    """Send all of a message but its end, and wait."""
    await raw.send(head)
    for _ in range(size_bytes // 2**20):
        await raw.send(bytes(2**20))
    await asyncio.sleep(60)


async def body(port: int, head: bytes) -> None:
    await unfinished(await connect(port), head, 15 * 2**20)


async def message(port: int) -> None:
    await unfinished(await connect_socket(port), frame(2, bytes(32 * 2**20))[:14], 31 * 2**20)


async def fragments(port: int) -> None:
    raw = await connect_socket(port)
    await raw.send(frame(2, final=False))
    for _ in range(31):
        await raw.send(frame(0, bytes(2**20), final=False))
    await asyncio.sleep(60)


async def errors(port: int) -> None:
    """Messages of 60 kB that are refused, where nobody reads the errors."""
    raw = await connect_socket(port, buffer_bytes=4096)
    while True:
        await raw.send(frame(1, b'{"type": "predict", "id": 1, "a": [%b]}' % (b"1," * 30_000 + b"1")))


KINDS: dict[str, tuple[int, Callable[[int], Awaitable[object]]]] = {
    "answers that are not read": (8, lambda port: pipeline(port, ANSWERS)),
    "metrics that are not read": (8, lambda port: pipeline(port, METRICS)),
    "unfinished bodies": (60, lambda port: body(port, BODY)),
    "bodies of requests that have none": (60, lambda port: body(port, NOWHERE)),
    "unfinished messages": (60, message),
    "unfinished messages in fragments": (60, fragments),
    "errors that are not read": (60, errors),
}


async def attackers(port: int, name: str) -> None:
    """What the other process does."""
    count, act = KINDS[name]

    async def one() -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                await act(port)
            await asyncio.sleep(0.5)  # it was closed, and comes again

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    await asyncio.wait(tasks, timeout=SECONDS)


async def attack(server: Watched, name: str, model: str) -> bool:
    before_mib = most_mib = server.memory_mib()

    async def watched() -> None:
        nonlocal most_mib
        attacking = asyncio.create_task(in_another_process(__file__, name, str(server.port)))
        while not attacking.done():
            await asyncio.wait({attacking}, timeout=0.1)
            most_mib = max(most_mib, server.memory_mib())
        await attacking

    probe = await probe_during(server, watched(), model=model)
    passed = report(name, probe, f"front end {before_mib:.0f} -> {most_mib:.0f} MiB")
    if most_mib - before_mib > GROWTH_MIB:
        print(f"FAULT {name}: more than {GROWTH_MIB:.0f} MiB")
        return False
    return passed


async def run(args: argparse.Namespace) -> bool:
    async with Watched(args.models) as server:
        passed = [await attack(server, name, args.model) for name in chosen(list(KINDS), args.words)]
    clean = log_is_clean(server)
    return all(passed) and clean


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="words in the names of kinds; default: all")
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--attack", nargs=2, metavar=("KIND", "PORT"), help="only attack the server at this port")
    args = parser.parse_args(argv)
    if args.attack:
        asyncio.run(attackers(int(args.attack[1]), args.attack[0]))
        return 0
    passed = asyncio.run(run(args))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
