"""What the front end takes, measured on a live server with a real model. pytest does not collect it.

`python tests/front_end.py service` prints the milliseconds of an answer that are not computation, for one client.
`python tests/front_end.py refusals` prints the front end's CPU for a request that is refused by its head. Either ends
with status 1 if that is more than it should be. No other program should run.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from acceptance import ROOT, Client, Server, photo, verdict

SERVICE_MS = 4.0
REFUSAL_MS = 0.4


async def service(args: argparse.Namespace) -> bool:
    """Receive, decode, schedule, encode and send: what is left of an answer's time without the stages."""
    image = args.image.read_bytes() if args.image else photo(480, 360)
    path = f"/v1/predict?model={args.model}&deadline_ms=30000"
    async with Server(args.models) as server:
        client = Client(server.port)
        rest_ms, parts = [], []
        for _ in range(args.count):
            answer = await client.send(path, image)
            timing = json.loads(answer.body)["timing"]
            rest_ms.append(1000 * answer.seconds - sum(timing["compute_ms"]))
            parts.append([timing[name] for name in ("decode_ms", "queue_ms", "encode_ms")])
    decode_ms, queue_ms, encode_ms = (statistics.median(column) for column in zip(*parts, strict=True))
    median_ms = statistics.median(rest_ms)
    print(f"ms outside of the model: median {median_ms:.2f}, worst {max(rest_ms):.2f}")
    print(f"of these: decoding {decode_ms:.2f}, waiting for the first step {queue_ms:.2f}, encoding {encode_ms:.2f}")
    return median_ms <= SERVICE_MS


async def refusals(args: argparse.Namespace) -> bool:
    """Requests with too short a deadline are sent while the worker computes a large image to the last exit."""
    small, large = args.image.read_bytes() if args.image else photo(480, 360), photo(4000, 3000)
    statuses: Counter[int] = Counter()
    async with Server(args.models, "--max-pixels", str(2**24)) as server:
        exits = json.loads((await Client(server.port).send(f"/v1/models/{args.model}")).body)["exits"]
        path = f"/v1/predict?model={args.model}&deadline_ms={600 * exits[0]['seconds']}"
        slow = f"/v1/predict?model={args.model}&deadline_ms=30000&min_exit={len(exits)}"
        occupied = asyncio.create_task(Client(server.port).send(slow, large))
        while not any((await server.metrics("anytime_queue_depth")).values()):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
        clients = [Client(server.port) for _ in range(args.users)]
        before_s = cpu_s(server)
        for _ in range(args.count // args.users):
            statuses.update(answer.status for answer in await asyncio.gather(*(c.send(path, small) for c in clients)))
        refusal_ms = 1000 * (cpu_s(server) - before_s) / statuses.total()
        still = not occupied.done()
        await occupied
    print(f"answers: {dict(statuses)}; ms of the front end's CPU for each: {refusal_ms:.3f}")
    if not still:
        print("the large image was done before; ask for a smaller --count")
    return still and set(statuses) == {503} and refusal_ms <= REFUSAL_MS


def cpu_s(server: Server) -> float:
    """The CPU seconds of the front end, its threads included (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("check", choices=("service", "refusals"))
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--image", type=Path, help="a photo; default: a made one of 480x360")
    parser.add_argument("--count", type=int, default=None, help="requests; default: 200 service, 2000 refusals")
    parser.add_argument("--users", type=int, default=8, help="refused requests at once")
    args = parser.parse_args(argv)
    args.count = args.count or {"service": 200, "refusals": 2000}[args.check]
    passed = asyncio.run({"service": service, "refusals": refusals}[args.check](args))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
