"""The capacity of one server: the requests that it answers in a second to each exit, in all and for each core. The
figures are those of docs/scaling.md. pytest does not collect this program.

`python tests/acceptance_capacity.py --threads 2` starts a server, keeps `--users` requests open for `--seconds` to each
exit in turn, prints a table, and ends with status 1 if one of them was refused or ended before its exit. The clients
take a part of the same machine, so no other program should run.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

from acceptance import ROOT, Answer, Client, Server, photo, verdict

EXITS = (1, 2, 3, 4)
PNG = "Accept: image/png\r\n"
WARM_UP = 20
"""Requests before the measurement."""


async def closed_loop(port: int, path: str, image: bytes, users: int, until_s: float) -> list[Answer]:
    answers: list[Answer] = []

    async def user() -> None:
        client = Client(port)
        while time.monotonic() < until_s:
            answers.append(await client.send(path, image, headers=PNG))

    await asyncio.gather(*(user() for _ in range(users)))
    return answers


async def measure(args: argparse.Namespace, image: bytes) -> bool:
    whole = True
    async with Server(args.models, "--threads", str(args.threads), "--precision", args.precision) as server:
        print(f"{args.model}, {args.precision}, {args.threads} threads, {args.users} requests at once")
        print("| to exit | requests a second | of one core | median ms |\n|---|---|---|---|")
        for exit_index in EXITS:
            path = f"/v1/predict?model={args.model}&deadline_ms=30000&max_exit={exit_index}"
            for _ in range(WARM_UP):
                await Client(server.port).send(path, image)
            began_s = time.monotonic()
            answers = await closed_loop(server.port, path, image, args.users, began_s + args.seconds)
            rate = len(answers) / (time.monotonic() - began_s)
            median_ms = 1000 * statistics.median(answer.seconds for answer in answers)
            print(f"| {exit_index} | {rate:.1f} | {rate / args.threads:.1f} | {median_ms:.0f} |", flush=True)
            whole &= all(answer.status == 200 and answer.exit == exit_index for answer in answers)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The capacity of one server, in requests a second to each exit.", allow_abbrev=False
    )
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--precision", choices=("auto", "int8", "fp32"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--users", type=int, default=4, help="requests at once")
    parser.add_argument("--seconds", type=float, default=20, help="for each exit")
    parser.add_argument("--image", type=Path, help="a photo; default: a made one of 480x360")
    args = parser.parse_args()
    image = args.image.read_bytes() if args.image else photo(480, 360)
    return verdict(asyncio.run(measure(args, image)))


if __name__ == "__main__":
    sys.exit(main())
