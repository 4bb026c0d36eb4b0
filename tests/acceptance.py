"""Acceptance tests of a server with a real model: deadlines, cancels, a worker that is killed, and what its executor
saves. pytest does not collect them.

`python tests/acceptance.py deadlines --models models/zoo` starts a server, sends requests, prints figures, and ends
with status 1 if one of them is out of bounds. No other program should run, since the figures are of the whole machine.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
LATE_MS = 5.0
REPEATS = 15
NOISE_MS = 2.0
"""Deadlines that differ by less may get either exit, as the time of a stage varies by as much."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def exit(self) -> int:
        return int(self.headers.get("x-anytime-exit", 0))


class Client:
    """A minimal HTTP/1.1 client over one open connection. It shares the cores with the server, so it does little."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, path: str, body: bytes | None = None, method: str = "", headers: str = "") -> Answer:
        reader, writer = await self._connected()
        method = method or ("GET" if body is None else "POST")
        began_s = time.monotonic()
        body = body or b""
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: [::1]\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        data = await reader.readexactly(int(found["content-length"]))
        return Answer(int(lines[0].split()[1]), found, data, time.monotonic() - began_s)

    def hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[0].at_eof():  # the server has closed the connection meanwhile
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams


class Server:
    """`python -m server` on a free port."""

    def __init__(self, models: Path, *flags: str) -> None:
        self._command = [sys.executable, "-m", "server", "--port", "0", "--models", str(models.resolve()), *flags]

    async def __aenter__(self) -> "Server":
        self._process = await asyncio.create_subprocess_exec(
            *self._command, cwd=ROOT, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        assert self._process.stderr is not None
        while b"running on" not in (line := await self._process.stderr.readline()):
            if not line:
                raise RuntimeError("the server did not start")
        self.port = int(line.split(b"(")[0].rsplit(b":", 1)[1])
        self._log = asyncio.create_task(self._process.stderr.read())
        await self.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        await self._process.wait()
        print(f"server ended with status {self._process.returncode}")

    async def log(self) -> str:
        """What the server has written to its log, once it has ended."""
        return (await self._log).decode()

    async def ready(self) -> float:
        """Wait until it is ready; returns the seconds that took."""
        began_s = time.monotonic()
        while (await Client(self.port).send("/health/ready")).status != 200:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def worker(self) -> int:
        """The process id of the oldest worker."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return next(int(child) for child in children if b"server.worker" in Path(f"/proc/{child}/cmdline").read_bytes())

    def worker_memory_mib(self) -> float:
        pages = int(Path(f"/proc/{self.worker}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def metrics(self, name: str) -> dict[str, float]:
        text = (await Client(self.port).send("/metrics")).body.decode()
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        return {labels: float(value) for labels, value in rows}


def photo(width: int, height: int) -> bytes:
    """A JPEG with regions and edges, without anybody's picture in it."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    file = BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


async def deadlines(args: argparse.Namespace) -> bool:
    """As deadlines grow, the exit never falls, and answers are in time.

    Each deadline is sent several times, in a random order, so that a slow moment of the machine does not hit all
    requests with the same deadline. Its median exit counts. Below exit 1's time it is luck whether exit 1 comes within
    the grace.
    """
    image = args.image.read_bytes() if args.image else photo(480, 360)
    async with Server(args.models) as server:
        client = Client(server.port)
        accept = "Accept: image/png\r\n"
        exits = json.loads((await client.send(f"/v1/models/{args.model}")).body)["exits"]
        times_ms = []
        for exit_index in range(1, len(exits) + 1):
            path = f"/v1/predict?model={args.model}&deadline_ms=30000&max_exit={exit_index}"
            runs = [(await client.send(path, image, headers=accept)).seconds for _ in range(10)]
            times_ms.append(1000 * statistics.median(runs))
        print("median ms to each exit:", [round(value, 1) for value in times_ms])
        grid_ms = np.linspace(times_ms[0] - 5, times_ms[-1] + 50, max(2, args.count // REPEATS)).round(1).tolist()
        exits_at: dict[float, list[int]] = {deadline_ms: [] for deadline_ms in grid_ms}
        late_ms = []
        order_ms = REPEATS * grid_ms
        random.Random(0).shuffle(order_ms)
        for deadline_ms in order_ms:
            path = f"/v1/predict?model={args.model}&deadline_ms={deadline_ms}"
            answer = await client.send(path, image, headers=accept)
            exits_at[deadline_ms].append(answer.exit)
            if answer.exit:
                late_ms.append(1000 * answer.seconds - deadline_ms)
        typical = [(deadline_ms, statistics.median_low(found)) for deadline_ms, found in exits_at.items()]
        sure = [(deadline_ms, exit_index) for deadline_ms, exit_index in typical if deadline_ms >= times_ms[0]]
        pairs = itertools.combinations(sure, 2)
        falls = [(*one, *other) for one, other in pairs if other[0] >= one[0] + NOISE_MS and other[1] < one[1]]
        split = sum(min(found) != max(found) for found in exits_at.values())
        median, high = np.percentile(late_ms, 50), np.percentile(late_ms, 99)
        print("answers by exit:", dict(sorted(Counter(itertools.chain(*exits_at.values())).items())))
        print("first deadline with each exit:", {e: d for d, e in reversed(typical)})
        print(f"ms after the deadline: median {median:.1f}, p99 {high:.1f}, worst {max(late_ms):.1f}")
        print(f"falls of the median exit: {falls or 'none'}; {split} of {len(grid_ms)} deadlines got different exits")
        return not falls and high <= LATE_MS and median < 0


async def cancels(args: argparse.Namespace) -> bool:
    """Sends many requests, of which 30 % hang up or are cancelled at random moments. Nothing is lost, miscounted or
    leaked."""
    rng = random.Random(0)
    image = args.image.read_bytes() if args.image else photo(480, 360)
    outcomes: Counter[str] = Counter()
    async with Server(args.models, "--max-open", "32") as server:
        reference = (await Client(server.port).send(f"/v1/predict?model={args.model}&deadline_ms=30000", image)).body
        expected = json.loads(reference)["mask"]["data"]
        gone = 3 * args.count // 20
        plans = ["stay"] * (args.count - 2 * gone) + ["hang up", "delete"] * gone
        rng.shuffle(plans)
        queue = iter(enumerate(plans))
        memory_mib: list[float] = []

        async def user() -> None:
            client = Client(server.port)
            for number, plan in queue:
                if number % max(1, args.count // 10) == 0:
                    memory_mib.append(server.worker_memory_mib())
                path, header = f"/v1/predict?model={args.model}&deadline_ms=30000", f"X-Request-Id: r{number}\r\n"
                task = asyncio.create_task(client.send(path, image, headers=header))
                if plan != "stay":
                    await asyncio.sleep(rng.uniform(0, 2 * args.users * exit_s))
                    if plan == "delete":
                        await Client(server.port).send(f"/v1/requests/r{number}", method="DELETE")
                    else:
                        client.hang_up()
                        task.cancel()
                        outcomes["hung up"] += 1
                        continue
                answer = await task
                body = json.loads(answer.body)
                right = answer.status in (200, 499)
                if answer.status == 200 and body["final"]:
                    right = body["mask"]["data"] == expected
                outcomes[f"{plan}: {answer.status}{'' if right else ' WRONG'}"] += 1

        exit_s = json.loads((await Client(server.port).send(f"/v1/models/{args.model}")).body)["exits"][0]["seconds"]
        await asyncio.gather(*(user() for _ in range(args.users)))
        await asyncio.sleep(2)  # for the server to hear of the last hang-ups
        inflight = await server.metrics("anytime_inflight_requests")
        counted = {k: v for k, v in (await server.metrics("anytime_requests_total")).items() if v}
        shared = await server.metrics("anytime_shared_memory_bytes")
        depth = await server.metrics("anytime_queue_depth")
        print("outcomes:", dict(outcomes))
        print("counted:", counted)
        print(f"left: {inflight} {depth} {shared}")
        print("worker MiB:", [round(value) for value in memory_mib])
        total = sum(counted.values()) - 1  # the first was the reference
        stayed = sum(value for key, value in outcomes.items() if key.startswith("stay"))
        return (
            total == args.count
            and stayed == outcomes["stay: 200"]
            and not any("WRONG" in key for key in outcomes)
            and not any([*inflight.values(), *shared.values(), *depth.values()])
            and memory_mib[-1] < 1.1 * memory_mib[len(memory_mib) // 2]
        )


async def kill(args: argparse.Namespace) -> bool:
    """The worker is killed under load: everyone is answered, and service is back within 5 s."""
    image = args.image.read_bytes() if args.image else photo(480, 360)
    answers: Counter[str] = Counter()
    async with Server(args.models) as server:

        async def user() -> None:
            path = f"/v1/predict?model={args.model}&deadline_ms=30000"
            answer = await asyncio.wait_for(Client(server.port).send(path, image), 40)
            answers[f"{answer.status} {json.loads(answer.body).get('code', '')}"] += 1

        users = [asyncio.create_task(user()) for _ in range(args.users)]
        exit_s = json.loads((await Client(server.port).send(f"/v1/models/{args.model}")).body)["exits"][0]["seconds"]
        await asyncio.sleep(exit_s * args.users / 2)
        os.kill(server.worker, signal.SIGKILL)
        killed_s = time.monotonic()
        await asyncio.gather(*users)
        answered_s = time.monotonic() - killed_s
        await server.ready()
        again = await Client(server.port).send(f"/v1/predict?model={args.model}&deadline_ms=30000", image)
        back_s = time.monotonic() - killed_s
        print("answers:", dict(answers))
        print(f"all answered {answered_s:.2f} s after the kill; served again ({again.status}) after {back_s:.2f} s")
        return sum(answers.values()) == args.users and again.status == 200 and back_s < 5


async def exits(args: argparse.Namespace) -> bool:
    """Milliseconds to every exit of a live server under the sparse executor and under the reference."""
    image = args.image.read_bytes() if args.image else photo(480, 360)
    last_ms = {}
    for executor in ("reference", "sparse"):
        async with Server(args.models, "--executor", executor) as server:
            client, path = Client(server.port), f"/v1/predict?model={args.model}&deadline_ms=30000"
            count = len(json.loads((await client.send(f"/v1/models/{args.model}")).body)["exits"])
            answers = [json.loads((await client.send(path, image)).body) for _ in range(args.count)]
            unsure = [
                json.loads((await client.send(f"{path}&max_exit={k}", image)).body)["unsure"] for k in range(1, count)
            ]
            compute_ms = [np.cumsum(answer["timing"]["compute_ms"]) for answer in answers]
            last_ms[executor] = statistics.median(answer["elapsed_ms"] for answer in answers)
            print(
                f"{args.model}, {executor}: ms of compute to every exit",
                np.median(compute_ms, axis=0).round(1).tolist(),
            )
            print(
                f"  to the answer {last_ms[executor]:.1f}; inactive for the next exit", [f"{1 - x:.0%}" for x in unsure]
            )
    print(f"exit {count} is {last_ms['reference'] / last_ms['sparse']:.2f}x faster than the reference")
    return last_ms["sparse"] < last_ms["reference"]


def verdict(passed: bool) -> int:
    """Print whether a check has passed, and return the exit status of its program."""
    print("PASSED" if passed else "FAILED")
    return 0 if passed else 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("check", choices=("deadlines", "cancels", "kill", "exits"))
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--image", type=Path, help="a photo; default: a made one of 480x360")
    parser.add_argument(
        "--count", type=int, default=None, help="requests; default: 900 deadlines, 1000 cancels, 20 exits"
    )
    parser.add_argument("--users", type=int, default=8, help="requests at once")
    args = parser.parse_args(argv)
    args.count = args.count or {"deadlines": 900, "cancels": 1000, "kill": 0, "exits": 20}[args.check]
    check = {"deadlines": deadlines, "cancels": cancels, "kill": kill, "exits": exits}[args.check]
    passed = asyncio.run(check(args))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
