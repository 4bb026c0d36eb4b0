"""Images whose structure is the cost: two attackers send a crafted file again and again, with deadlines of 30 s.

`PYTHONPATH=tests python tests/attack/images.py` prints a line for each file: how many ordinary photos were answered in
time beside it, what the attackers were told, and how long a file took. Then a stream of 12-megapixel photos runs beside
small ones of 100 ms, and SIGTERM comes in the middle of an attack. It ends with status 1 if a line says FAULT.
No other program should run. Words on the command line choose files by name.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from acceptance import ROOT, Answer, Client, Server, photo, verdict
from crafted import FILES
from probe import WANTED_SHARE, chosen, probe_during, repeat_for, report

ATTACKERS = 2
DRAIN_S = 2.0
CLOSE_S = 4.0
"""After the time to drain, the server cuts what is open within 2 s, and ends its worker."""
STREAM, TERM = "12 megapixels", "SIGTERM"


async def attack(server: Server, name: str, seconds: float, model: str) -> bool:
    """Send one file for some seconds beside the probe."""
    body = await asyncio.to_thread(FILES[name])

    async def send() -> Answer:
        client = Client(server.port)
        try:
            return await client.send(f"/v1/predict?model={model}&max_exit=1&deadline_ms=30000", body)
        finally:
            client.hang_up()

    sent: list[object] = []

    async def attackers() -> None:
        sent.extend(await repeat_for(seconds, ATTACKERS, send))

    probe = await probe_during(server, attackers(), model=model)
    answers = [answer for answer in sent if isinstance(answer, Answer)]
    told = dict(Counter(answer.status for answer in answers))
    median_ms = 1000 * statistics.median(answer.seconds for answer in answers) if answers else 0.0
    return report(name, probe, f"{len(body) / 2**20:4.1f} MiB: {told}, {median_ms:.0f} ms each")


async def large_stream(server: Server, seconds: float, model: str) -> bool:
    """Small photos with 100 ms, ten a second, alone and then beside a stream of 12-megapixel photos."""
    body = photo(4000, 3000)
    path = f"/v1/predict?model={model}&deadline_ms=30000"

    async def send() -> Answer:
        return await Client(server.port).send(path, body)

    async def probe(beside: float) -> float:
        quiet = asyncio.sleep(seconds) if not beside else repeat_for(seconds, 1, send)
        found = await probe_during(server, quiet, every_s=0.1, deadline_ms=100, model=model)
        print(
            f"      100 ms {'beside 12 megapixels' if beside else 'alone':28} {found}  {dict(found.statuses)}",
            flush=True,
        )
        return found.share

    alone, beside = await probe(0), await probe(1)
    passed = beside >= alone - 0.02 and alone >= WANTED_SHARE
    print(f"{'ok   ' if passed else 'FAULT'} a stream of 12 megapixels takes {100 * (alone - beside):.1f} points")
    return passed


async def ends(models: Path, name: str, model: str) -> bool:
    """SIGTERM while crafted files are decoded: the server ends within the time to drain, and so do its processes."""
    body = FILES[name]()
    async with Server(models, "--drain-ms", f"{1000 * DRAIN_S:.0f}", "--max-decode-ms", "20000") as server:
        path = f"/v1/predict?model={model}&deadline_ms=30000"
        asked = [asyncio.create_task(Client(server.port).send(path, body)) for _ in range(4)]
        await asyncio.sleep(1.0)
        children = children_of(server.pid)
        began_s = time.monotonic()
    took_s = time.monotonic() - began_s
    await asyncio.gather(*asked, return_exceptions=True)
    left = children & running()
    passed = took_s < DRAIN_S + CLOSE_S and not left
    print(f"{'ok   ' if passed else 'FAULT'} SIGTERM during {name}: {took_s:.1f} s, {len(left)} processes left")
    return passed


def children_of(process: int) -> set[str]:
    return set(Path(f"/proc/{process}/task/{process}/children").read_text().split())


def running() -> set[str]:
    return {path.name for path in Path("/proc").glob("[0-9]*") if (path / "cmdline").read_bytes()}


async def run(args: argparse.Namespace) -> bool:
    names = chosen([*FILES, STREAM, TERM], args.words)
    passed = []
    async with Server(args.models) as server:
        print(f"      {'no attack':34} {await probe_during(server, asyncio.sleep(args.seconds), model=args.model)}")
        passed += [await attack(server, name, args.seconds, args.model) for name in names if name in FILES]
        if STREAM in names:
            passed.append(await large_stream(server, 2 * args.seconds, args.model))
    if TERM in names:
        passed.append(await ends(args.models, "JPEG of 60 scans", args.model))
    return all(passed)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help=f"words in the names of files, of {STREAM!r} and {TERM}; default: all")
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each file is sent")
    passed = asyncio.run(run(parser.parse_args(argv)))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
