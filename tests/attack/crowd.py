"""A crowd: 500 hostile connections of every kind at once, from one address.

`PYTHONPATH=tests python tests/attack/crowd.py` prints how many ordinary photos of another address were answered in
time beside them, how many descriptors and how much memory the front end had at most, and which connections were not
closed in their times. Then SIGTERM comes. It ends with status 1 if a line says FAULT. No other program should run.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import connections_memory
import connections_slow
from acceptance import ROOT
from connections_floods import FRAMES, REQUESTS
from connections_slow import FLAGS, LATEST_S
from probe import probe_during, report
from raw import Raw, Watched, connect, connect_socket
from wire import HANDSHAKE, frame

WRONG = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a huge header": b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    "300 headers": HANDSHAKE + b"X: y\r\n" * 300 + b"\r\n",
    "a long header": HANDSHAKE + b"X: " + b"y" * 9000 + b"\r\n\r\n",
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n" * 400,
    "garbage behind a request": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n\0\0\0\r\n\r\n",
    "bad UTF-8 and a close": HANDSHAKE + b"\r\n" + frame(1, b"\xff\xfe") + frame(8, b"\x03\xe8"),
}
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


async def run(args: argparse.Namespace) -> bool:
    async with Watched(args.models, *FLAGS) as server:
        before = server.descriptors()
        before_mib = server.memory_mib()
        most, most_mib, open_kinds = before, before_mib, Counter[str]()

        async def attackers() -> None:
            nonlocal most, most_mib
            until_s = time.monotonic() + LATEST_S + SETTLED_S
            crowd = [asyncio.create_task(hostile(server.port, number, until_s)) for number in range(args.count)]
            while time.monotonic() < until_s:
                await asyncio.sleep(0.1)
                most, most_mib = max(most, server.descriptors()), max(most_mib, server.memory_mib())
            open_kinds.update(kind for kind in await asyncio.gather(*crowd) if kind)

        probe = await probe_during(server, attackers(), model=args.model)
        passed = report(f"{args.count} of every kind", probe, f"descriptors {before} -> {most}")
        print(f"      front end {before_mib:.0f} -> {most_mib:.0f} MiB, open after their times: {dict(open_kinds)}")
        await asyncio.sleep(SETTLED_S)
        left = server.descriptors() - before
        print(f"{'ok   ' if left < 10 else 'FAULT'} {left} descriptors more than before are left")
    lines = server.log.splitlines()
    clean = "Traceback" not in server.log and server.status == 0
    print(f"{'ok   ' if clean else 'FAULT'} the log has {len(lines)} lines and no traceback")
    if args.log:
        print(server.log)
    bounded = most <= before + args.count + 20 and most_mib - before_mib < connections_memory.GROWTH_MIB
    return passed and clean and bounded and left < 10 and not open_kinds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--log", action="store_true", help="print the server's log")
    passed = asyncio.run(run(parser.parse_args(argv)))
    print("PASSED" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
