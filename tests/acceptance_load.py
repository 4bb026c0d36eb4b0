"""Acceptance tests of a server under load: bursts, a camera at the limit, a large image beside small ones, many
cameras, unequal clients, and a worker that hangs. pytest does not collect them.

`python tests/acceptance_load.py burst --models models/zoo` starts a server, loads it, prints figures, and ends with
status 1 if one of them is out of bounds. No other program should run, since the figures are of the whole machine.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from acceptance import ROOT, Answer, Client, Server, photo, verdict
from websockets.asyncio.client import connect

GRACE_MS = 5.0
REFUSED_MS = 8.0
"""A 504 may come so late: the server waits 6 ms for an exit that is a little late, since that is worth more."""
PNG = "Accept: image/png\r\n"


class Address(Client):
    """A client with a loopback address of its own, which the server therefore counts as another client."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(port)
        self._address = f"127.0.0.{number}"

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))
        return self._streams


async def exit_ms(client: Client, model: str, image: bytes, count: int = 20) -> float:
    """Median milliseconds from a request to the answer of exit 1, of a server that is idle."""
    path = f"/v1/predict?model={model}&deadline_ms=30000&max_exit=1"
    return 1000 * statistics.median([(await client.send(path, image, headers=PNG)).seconds for _ in range(count)])


def in_time(answer: Answer, deadline_ms: float) -> bool:
    return answer.exit > 0 and 1000 * answer.seconds <= deadline_ms + GRACE_MS


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1 / n if one has all."""
    return float(sum(values) ** 2 / (len(values) * sum(value**2 for value in values)))


async def burst(args: argparse.Namespace) -> bool:
    """After a burst of 200 requests, the next one with 1.5 times exit 1's time is answered, 50 times of 50."""
    image = args.image.read_bytes()
    async with Server(args.models, "--max-open", "256") as server:
        client = Client(server.port)
        deadline_ms = 1.5 * await exit_ms(client, args.model, image)
        path = f"/v1/predict?model={args.model}&deadline_ms={deadline_ms}"
        crowd = [Address(server.port, 2 + number % 200) for number in range(200)]
        statuses: Counter[int] = Counter()
        answered = 0
        for _ in range(args.count or 50):
            found = await asyncio.gather(
                *(each.send(f"/v1/predict?model={args.model}&deadline_ms=300", image, headers=PNG) for each in crowd)
            )
            statuses.update(answer.status for answer in found)
            answered += in_time(await client.send(path, image, headers=PNG), deadline_ms)
        print(
            f"deadline {deadline_ms:.1f} ms: {answered} of {args.count or 50} answered; the bursts got {dict(statuses)}"
        )
        return answered == (args.count or 50)


async def camera(args: argparse.Namespace) -> bool:
    """A lone camera whose frame time is exit 1's median gets at least 45 % of its frames by their deadline, and none is
    refused. The machine's speed changes within seconds, so the median is measured anew for each second of frames."""
    image = args.image.read_bytes()
    async with Server(args.models) as server:
        client, answers, late_ms, frames_ms = Client(server.port), [], [], []
        for _ in range(max(1, round((args.count or 1000) / 100))):
            frame_ms = await exit_ms(client, args.model, image, count=100)
            frames_ms.append(frame_ms)
            path = f"/v1/predict?model={args.model}&deadline_ms={frame_ms}"
            for _ in range(100):
                began_s = time.monotonic()
                answers.append(await client.send(path, image, headers=PNG))
                late_ms.append(1000 * answers[-1].seconds - frame_ms)
                await asyncio.sleep(max(0.0, began_s + frame_ms / 1000 - time.monotonic()))
        kept = statistics.fmean(late <= 0 and answer.exit > 0 for late, answer in zip(late_ms, answers, strict=True))
        served = statistics.fmean(answer.exit > 0 for answer in answers)
        refused = [answer.status == 503 for answer in answers]
        print(
            f"a frame every {min(frames_ms):.1f} to {max(frames_ms):.1f} ms: {kept:.0%} by the deadline, {served:.0%} "
            f"with an exit, {sum(refused)} refused; ms after the deadline: median {statistics.median(late_ms):.1f}, "
            f"p99 {np.percentile(late_ms, 99):.1f}"
        )
        return kept >= 0.45 and sum(refused) == 0


async def large(args: argparse.Namespace) -> bool:
    """A stream of 12-megapixel images beside 10 small requests a second: the small ones are answered in time as often
    as without it, within 2 points."""
    image, huge = args.image.read_bytes(), photo(4000, 3000)
    async with Server(args.models, "--max-pixels", "20000000", "--shared-memory-bytes", str(2**30)) as server:
        client, deadline_ms = Client(server.port), args.deadline_ms
        path = f"/v1/predict?model={args.model}&deadline_ms={deadline_ms}"

        async def small(seconds: float) -> float:
            answers = []
            for _ in range(round(10 * seconds)):
                began_s = time.monotonic()
                answers.append(await client.send(path, image, headers=PNG))
                await asyncio.sleep(max(0.0, began_s + 0.1 - time.monotonic()))
            return statistics.fmean(in_time(answer, deadline_ms) for answer in answers)

        huge_answers: list[Answer] = []

        async def stream() -> None:
            other = Address(server.port, 2)
            while True:
                answer = await other.send(f"/v1/predict?model={args.model}&deadline_ms=20000", huge, headers=PNG)
                huge_answers.append(answer)

        alone = await small(args.seconds)
        task = asyncio.create_task(stream())
        await asyncio.sleep(1)
        beside = await small(args.seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        exits = dict(Counter(answer.exit for answer in huge_answers))
        print(
            f"small ones with {deadline_ms:.0f} ms: {alone:.1%} in time alone, {beside:.1%} beside 12-megapixel "
            f"images, of which {len(huge_answers)} were answered, by exit {exits}"
        )
        return beside >= alone - 0.02 and bool(huge_answers)


async def cameras(args: argparse.Namespace) -> bool:
    """30 cameras at 10 frames a second over WebSockets, each a client of its own: they get like shares."""
    image = args.image.read_bytes()
    async with Server(args.models) as server:

        async def one(number: int) -> Counter[int]:
            exits: Counter[int] = Counter()
            address = (f"127.0.0.{2 + number}", 0)
            async with connect(
                f"ws://127.0.0.1:{server.port}/v1/stream", compression=None, local_addr=address, max_size=None
            ) as socket:

                async def read() -> None:
                    async for message in socket:
                        if isinstance(message, str):
                            fields = json.loads(message)
                            if fields["type"] == "end":
                                exits[fields["exit"]] += 1
                            elif fields["type"] == "error":
                                exits[0] += 1

                reader = asyncio.create_task(read())
                start_s = time.monotonic() + 0.1 * number / 30
                for frame in range(round(10 * args.seconds)):
                    await asyncio.sleep(max(0.0, start_s + 0.1 * frame - time.monotonic()))
                    head = {"type": "predict", "id": str(frame), "model": args.model, "deadline_ms": 100}
                    await socket.send(json.dumps(head))
                    await socket.send(image)
                await asyncio.sleep(0.5)
                reader.cancel()
            return exits

        found = await asyncio.gather(*(one(number) for number in range(30)))
    served = [sum(count for exit_index, count in exits.items() if exit_index) for exits in found]
    depth = [sum(exit_index * count for exit_index, count in exits.items()) for exits in found]
    total = sum(found, Counter())
    print(f"exits of {total.total()} frames: {dict(sorted(total.items()))}")
    print(
        f"frames with an exit, of each camera: {min(served)} to {max(served)}; Jain {jain(served):.3f}, of the sum of"
    )
    print(f"exits {jain(depth):.3f}")
    return jain(served) >= 0.95


async def clients(args: argparse.Namespace) -> bool:
    """Two clients, of which one asks ten times as much. The other keeps at least 90 % of what it gets alone, or of half
    of what both get if that is less."""
    image = args.image.read_bytes()
    async with Server(args.models) as server:
        first_ms = await exit_ms(Client(server.port), args.model, image)
        path = f"/v1/predict?model={args.model}&deadline_ms={4 * first_ms}"
        rate = 0.4 * 1000 / first_ms  # below half of what one machine answers

        async def ask(number: int, rate_per_s: float) -> int:
            """The answers in time, of requests that are sent at even intervals, whatever became of those before."""
            idle: list[Client] = []
            good = 0

            async def once() -> None:
                nonlocal good
                client = idle.pop() if idle else Address(server.port, number)
                answer = await client.send(path, image, headers=PNG)
                good += in_time(answer, 4 * first_ms)
                idle.append(client)

            start_s, tasks = time.monotonic(), []
            for index in range(round(rate_per_s * args.seconds)):
                await asyncio.sleep(max(0.0, start_s + index / rate_per_s - time.monotonic()))
                tasks.append(asyncio.create_task(once()))
            await asyncio.gather(*tasks)
            return good

        alone = await ask(2, rate)
        beside, greedy = await asyncio.gather(ask(2, rate), ask(3, 10 * rate))
    print(f"{rate:.0f} requests a second: {alone} in time alone, {beside} beside one that asks 10x (and got {greedy})")
    return beside >= 0.9 * min(alone, (beside + greedy) / 2)


async def hang(args: argparse.Namespace) -> bool:
    """The worker is stopped (SIGSTOP) under load. Every request is answered by its deadline or refused in words, and
    the server serves again within 5 s."""
    image = args.image.read_bytes()
    async with Server(args.models) as server:
        path = f"/v1/predict?model={args.model}&deadline_ms=1000"
        await exit_ms(Client(server.port), args.model, image)
        users = [asyncio.create_task(Address(server.port, 2 + n).send(path, image)) for n in range(args.users)]
        await asyncio.sleep(0.02)
        stopped, stopped_s = server.worker, time.monotonic()
        os.kill(stopped, signal.SIGSTOP)
        found = await asyncio.gather(*users)
        late_ms = max(1000 * answer.seconds for answer in found) - 1000
        statuses = Counter(f"{answer.status} {json.loads(answer.body).get('code', '')}" for answer in found)
        client = Client(server.port)
        while (await client.send(path, image)).status != 200:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
        back_s = time.monotonic() - stopped_s
        print(
            f"answers {dict(statuses)}, the latest {late_ms:.1f} ms after its deadline; "
            f"served again after {back_s:.2f} s"
        )
        return back_s <= 5 and late_ms <= REFUSED_MS


CHECKS: dict[str, Callable[[argparse.Namespace], Awaitable[bool]]] = {
    function.__name__: function for function in (burst, camera, large, cameras, clients, hang)
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--image", type=Path, default=ROOT / "models" / "zoo" / "camvid-adpc-w18" / "street.jpg")
    parser.add_argument("--count", type=int, help="bursts or frames")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to send, for checks that send at a rate")
    parser.add_argument("--deadline-ms", type=float, default=100.0, help="of the small requests beside a large one")
    parser.add_argument("--users", type=int, default=8, help="requests at once")
    args = parser.parse_args(argv)
    passed = asyncio.run(CHECKS[args.check](args))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
