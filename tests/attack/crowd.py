"""A crowd: 500 hostile connections of every kind at once, from one address.

`PYTHONPATH=tests python tests/attack/crowd.py` prints how many ordinary photos of another address were answered in
time beside them, how many descriptors and how much memory the front end had at most, and which connections were not
closed in their times. Then SIGTERM comes. It ends with status 1 if a line says FAULT. No other program should run.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import connections_memory
import connections_slow
from acceptance import ROOT, verdict
from connections_floods import FRAMES, REQUESTS
from connections_slow import FLAGS, LATEST_S
from probe import probe_during, report
from raw import Raw, Watched, connect, connect_socket, in_another_process, log_is_clean
from wire import HANDSHAKE, frame

WRONG = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a huge header": b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    "300 headers": HANDSHAKE + b"X: y\r\n" * 300 + b"\r\n",
    "a long header": HANDSHAKE + b"X: " + b"y" * 9000 + b"\r\n\r\n",
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\nHost: [::1]\r\n\r\n" * 400,
    "garbage behind a request": b"GET /health/live HTTP/1.1\r\nHost: [::1]\r\n\r\n\0\0\0\r\n\r\n",
    "bad UTF-8 and a close": HANDSHAKE + b"\r\n" + frame(1, b"\xff\xfe") + frame(8, b"\x03\xe8"),
}
GROWTH_MIB = connections_memory.GROWTH_MIB + 85
"""The limit on unfinished bytes, and answers that are not read: those of 512 connections have about 164 KiB each."""
ATTACKERS_NICE = 10
"""The attackers are elsewhere: what they compute is not to be taken from the server."""
SETTLED_S = 4.0
"""After the last time limit, the server may take so long to close what remains."""


async def wrong(port: int, data: bytes) -> Raw:
    raw = await connect(port)
    await raw.send(data)
    return raw


async def hostile(port: int, number: int, until_s: float) -> str | None:
    """One hostile connection. Returns its kind if the server still holds it open at the end."""
    slow, memory = list(connections_slow.KINDS), list(connections_memory.KINDS)
    kinds = [*FRAMES, *REQUESTS, *slow, *memory, *WRONG]
    name = kinds[number % len(kinds)]
    with suppress(OSError, asyncio.IncompleteReadError):
        if name in slow:
            raw = await connections_slow.KINDS[name][1](port)
            closed_s = await raw.closed_within(until_s - time.monotonic(), name in connections_slow.UNREAD)
            raw.hang_up()
            return None if closed_s is not None else name
        if name in memory:
            with suppress(TimeoutError):
                async with asyncio.timeout(until_s - time.monotonic()):
                    await connections_memory.KINDS[name][1](port)
        elif name in WRONG:
            raw = await wrong(port, WRONG[name])
            return name if await raw.closed_within(until_s - time.monotonic()) is None else None
        else:
            unit = FRAMES.get(name) or REQUESTS[name]
            raw = await (connect_socket if name in FRAMES else connect)(port)
            reading = asyncio.create_task(raw.closed_within(until_s - time.monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(until_s - time.monotonic()):
                    while not reading.done():
                        await raw.send(unit * (2**14 // len(unit)))
            reading.cancel()
            raw.hang_up()
    return None


async def crowd(port: int, count: int) -> None:
    """What the other process does. Prints which kinds were still open at the end."""
    until_s = time.monotonic() + LATEST_S + SETTLED_S
    found = await asyncio.gather(*(hostile(port, number, until_s) for number in range(count)))
    still_open = Counter(kind for kind in found if kind)
    print(f"{'FAULT' if still_open else 'ok   '} open after their times: {dict(still_open) or 'none'}", flush=True)
    sys.exit(bool(still_open))


async def run(args: argparse.Namespace) -> bool:
    async with Watched(args.models, *FLAGS) as server:
        before = server.descriptors()
        before_mib = server.memory_mib()
        most, most_mib, closed = before, before_mib, True
        began_s, before_s = time.monotonic(), server.cpu_s()

        async def watched() -> None:
            nonlocal most, most_mib, closed
            attacking = asyncio.create_task(in_another_process(__file__, str(args.count), str(server.port)))
            while not attacking.done():
                await asyncio.wait({attacking}, timeout=0.1)
                most, most_mib = max(most, server.descriptors()), max(most_mib, server.memory_mib())
            closed = attacking.exception() is None

        probe = await probe_during(server, watched(), model=args.model)
        about = f"descriptors {before} -> {most}, front end {before_mib:.0f} -> {most_mib:.0f} MiB"
        passed = report(f"{args.count} of every kind", probe, about) and closed
        share = (server.cpu_s() - before_s) / (time.monotonic() - began_s)
        print(f"      the front end took {100 * share:.0f} % of a core")
        await asyncio.sleep(SETTLED_S)
        left = server.descriptors() - before
        print(f"{'ok   ' if left < 10 else 'FAULT'} {left} descriptors more than before are left")
    clean = log_is_clean(server)
    if args.log:
        print(server.log)
    bounded = most <= before + args.count + 20 and most_mib - before_mib < GROWTH_MIB
    return passed and clean and bounded and left < 10


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--log", action="store_true", help="print the server's log")
    parser.add_argument("--attack", nargs=2, metavar=("COUNT", "PORT"), help="only attack the server at this port")
    args = parser.parse_args(argv)
    if args.attack:
        os.nice(ATTACKERS_NICE)
        asyncio.run(crowd(int(args.attack[1]), int(args.attack[0])))
        return 0
    passed = asyncio.run(run(args))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
