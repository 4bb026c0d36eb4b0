"""Connections that hold what they have: places, sockets, descriptors, by saying little or nothing.

`PYTHONPATH=tests python tests/attack/connections_slow.py` prints a line for each kind: how many ordinary photos were
answered in time beside it, and after how long the server closed the attackers' connections. Last, 300 silent ones come
to a server with 256 descriptors, and its worker is killed. It ends with status 1 if a line says FAULT.
No other program should run.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from acceptance import ROOT, photo, verdict
from probe import Probe, chosen, probe_during, report
from raw import Raw, Watched, connect, connect_socket, log_is_clean
from wire import HANDSHAKE, frame

TIMES = {
    "--header-timeout-s": 3,
    "--body-timeout-s": 4,
    "--idle-timeout-s": 5,
    "--socket-idle-timeout-s": 6,
    "--unread-timeout-s": 4,
}
FLAGS = [text for flag, value in TIMES.items() for text in (flag, str(value))]
LATEST_S = max(TIMES.values()) + 6.0
"""By then every connection of an attacker must be closed: the longest time, and 5 s for who does not read the close."""

BODY = b"POST /v1/predict?deadline_ms=30000 HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 100000\r\n\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: [::1]\r\n\r\n"
IMAGE = photo(1600, 1200)
PREDICT = b'{"type": "predict", "id": "a", "deadline_ms": 30000, "encoding": "raw"}'


async def say(port: int, data: bytes) -> Raw:
    raw = await connect(port)
    await raw.send(data)
    return raw


async def drip(port: int, data: bytes, drops: bytes) -> Raw:
    """Send `data`, and then a byte of `drops` again and again."""
    raw = await say(port, data)

    async def drops_forever() -> None:
        with suppress(OSError):
            while not raw.writer.is_closing():
                await raw.send(drops)
                await asyncio.sleep(0.3)

    raw.dripping = asyncio.create_task(drops_forever())
    return raw


async def say_on_socket(port: int, data: bytes) -> Raw:
    raw = await connect_socket(port)
    await raw.send(data)
    return raw


async def unread_stream(port: int) -> Raw:
    """A stream of large raw maps, none of which is read."""
    raw = await connect_socket(port, buffer_bytes=4096)
    for _ in range(4):
        await raw.send(frame(1, PREDICT) + frame(2, IMAGE))
    return raw


KINDS: dict[str, tuple[int, Callable[[int], Awaitable[Raw]]]] = {
    "silent connections": (400, connect),
    "half a request line": (400, lambda port: say(port, b"GET /heal")),
    "a header a second": (100, lambda port: drip(port, GET[:-2], b"X: y\r\n")),
    "half a handshake": (400, lambda port: say(port, HANDSHAKE)),
    "silence after an answer": (400, lambda port: say(port, GET)),
    "POST without a body": (100, lambda port: say(port, BODY)),
    "a byte of a body a second": (100, lambda port: drip(port, BODY.replace(b"=30000", b"=100"), b"x")),
    "silent sockets": (200, connect_socket),
    "half a frame": (100, lambda port: say_on_socket(port, frame(2, b"x" * 1000)[:100])),
    "a predict without an image": (100, lambda port: say_on_socket(port, frame(1, PREDICT))),
    "streams that do not read": (64, unread_stream),
}
UNREAD = ("streams that do not read",)


async def attack(server: Watched, name: str, model: str) -> bool:
    count, begin = KINDS[name]
    refused = 0
    closed_s: list[float | None] = []

    async def attackers() -> None:
        nonlocal refused
        begun = await asyncio.gather(*(begin(server.port) for _ in range(count)), return_exceptions=True)
        raws = [raw for raw in begun if isinstance(raw, Raw)]
        refused = count - len(raws)
        closed_s.extend(await asyncio.gather(*(raw.closed_within(LATEST_S, name in UNREAD) for raw in raws)))
        for raw in raws:
            raw.hang_up()

    probe = await probe_during(server, attackers(), model=model)
    still_open = sum(closed is None for closed in closed_s)
    latest_s = max((closed for closed in closed_s if closed is not None), default=0.0)
    about = f"{count} connections, {refused} refused, closed after {latest_s:.1f} s at the latest, {still_open} open"
    return report(name, probe, about) and not still_open


async def few_descriptors(models: Path, model: str) -> bool:
    """With 256 descriptors and more silent connections, photos are answered, and a killed worker comes back."""
    command = Watched(models, "--header-timeout-s", "60")
    command._command = ["bash", "-c", 'ulimit -n 256; exec "$0" "$@"', *command._command]
    async with command as server:
        silent = await asyncio.gather(*(connect(server.port) for _ in range(300)), return_exceptions=True)
        await asyncio.sleep(1.0)
        held = server.descriptors()
        probe: Probe = await probe_during(server, asyncio.sleep(3.0), model=model)
        os.kill(server.worker, signal.SIGKILL)
        await asyncio.sleep(1.0)  # by then the death has been noticed
        back_s = 1.0 + await server.ready()
        await asyncio.sleep(1.0)
        after: Probe = await probe_during(server, asyncio.sleep(3.0), model=model)
        for raw in silent:
            if isinstance(raw, Raw):
                raw.hang_up()
    passed = report("300 silent, 256 descriptors", probe, f"{held} descriptors are open")
    return report("with a new worker", after, f"which was ready after {back_s:.1f} s") and passed and held < 256


async def run(args: argparse.Namespace) -> bool:
    async with Watched(args.models, *FLAGS) as server:
        passed = [await attack(server, name, args.model) for name in chosen(list(KINDS), args.words)]
    clean = log_is_clean(server)
    if not args.words:
        passed.append(await few_descriptors(args.models, args.model))
    return all(passed) and clean


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="words in the names of kinds; default: all, and few descriptors")
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    passed = asyncio.run(run(parser.parse_args(argv)))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
