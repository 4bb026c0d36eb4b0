"""Floods: connections that send tiny frames, or pipelined requests, as fast as the server takes them.

`PYTHONPATH=tests python tests/attack/connections_floods.py` prints a line for each kind: how many ordinary photos were
answered in time beside it, the longest wait of a small request, what the attackers got rid of, and how often they were
closed. It ends with status 1 if a line says FAULT. No other program should run.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from acceptance import ROOT, verdict
from probe import chosen, probe_during, report
from raw import Watched, connect, connect_socket, in_another_process, log_is_clean
from wire import frame

CONNECTIONS = 4
WANTED_MS = 300.0

FRAMES = {
    "nothing": frame(1, b"{}"),
    "empty pings": frame(9),
    "pongs": frame(10, b"abcd"),
    "empty continuation frames": frame(0, final=False),
    "empty binary frames": frame(2),
    "texts of {}": frame(1, b"{}"),
    "cancels of nothing": frame(1, b'{"type": "cancel", "id": "x"}'),
    "predicts without an image": frame(1, b'{"type": "predict", "id": "x"}'),
}
REQUESTS = {
    "GET /health/live": b"GET /health/live HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "GET /metrics": b"GET /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "GET /nothing": b"GET /nothing HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "Upgrade: foo": b"GET /health/live HTTP/1.1\r\nHost: [::1]\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n",
    "empty POST": b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 0\r\n\r\n",
    "empty lines": b"\r\n",
    "tiny chunks": b"1\r\nx\r\n",
}
CHUNKED = b"POST /v1/predict?deadline_ms=30000 HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n"


async def flood(port: int, name: str, until_s: float) -> tuple[int, int]:
    """Send until then, on a new connection after each that is closed. Returns the bytes sent, and how often it was."""
    if name == "nothing":  # to compare with
        await asyncio.sleep(until_s - time.monotonic())
        return 0, 0
    unit = FRAMES.get(name) or REQUESTS[name]
    burst = unit * (2**16 // len(unit))
    sent_bytes = closed = 0
    while time.monotonic() < until_s:
        with suppress(OSError, asyncio.IncompleteReadError):
            raw = await (connect_socket if name in FRAMES else connect)(port)
            reading = asyncio.create_task(raw.closed_within(600))
            if name == "empty continuation frames":
                await raw.send(frame(1, final=False))
            elif name == "tiny chunks":
                await raw.send(CHUNKED)
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(until_s - time.monotonic()):
                    while not reading.done():
                        await raw.send(burst)
            closed += reading.done()
            sent_bytes += raw.written_bytes
            reading.cancel()
            raw.hang_up()
        await asyncio.sleep(0.01)
    return sent_bytes, closed


async def attackers(port: int, name: str, seconds: float) -> None:
    """What the other process does."""
    until_s = time.monotonic() + seconds
    found = await asyncio.gather(*(flood(port, name, until_s) for _ in range(CONNECTIONS)))
    sent_bytes, closed = sum(sent for sent, _ in found), sum(closed for _, closed in found)
    print(f"      {name}: {sent_bytes / 2**20 / seconds:.1f} MiB/s taken, closed {closed} times", flush=True)


async def attack(server: Watched, name: str, seconds: float, model: str) -> bool:
    waits_ms: list[float] = []
    before_s = server.cpu_s()

    async def watched() -> None:
        arguments = (name, str(server.port), str(seconds))
        attacking = asyncio.create_task(in_another_process(__file__, *arguments))
        while not attacking.done():
            waits_ms.append(await server.loop_ms())
            await asyncio.wait({attacking}, timeout=0.1)
        await attacking

    began_s = time.monotonic()
    probe = await probe_during(server, watched(), model=model)
    share = (server.cpu_s() - before_s) / (time.monotonic() - began_s)
    about = f"a small request waits up to {max(waits_ms):.0f} ms; the front end takes {100 * share:.0f} % of a core"
    passed = report(name, probe, about)
    if max(waits_ms) > WANTED_MS:
        print(f"FAULT {name}: more than {WANTED_MS:.0f} ms")
        return False
    return passed


async def run(args: argparse.Namespace) -> bool:
    async with Watched(args.models) as server:
        passed = [
            await attack(server, name, args.seconds, args.model) for name in chosen([*FRAMES, *REQUESTS], args.words)
        ]
    clean = log_is_clean(server)
    return all(passed) and clean


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="words in the names of floods; default: all")
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each flood takes")
    parser.add_argument("--attack", nargs=3, metavar=("KIND", "PORT", "SECONDS"), help="only attack a server")
    args = parser.parse_args(argv)
    if args.attack:
        name, port, seconds = args.attack
        asyncio.run(attackers(int(port), name, float(seconds)))
        return 0
    passed = asyncio.run(run(args))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
