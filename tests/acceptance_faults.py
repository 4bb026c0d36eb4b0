"""Acceptance tests of a server under load that meets faults: clients that give up, SIGTERM, a worker without memory,
one of two workers killed, requests of every kind while workers die, and long use. pytest does not collect them.

`python tests/acceptance_faults.py leaks` starts a server, loads it, prints figures, and ends with status 1 if one of
them is out of bounds. No other program should run, since the figures are of the whole machine.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from acceptance import ROOT, Client, Server, photo, verdict
from acceptance_load import GRACE_MS, PNG

PATIENCE_S = 30.0
"""A request that is not answered so long after its deadline is called silent."""
BACK_S = 5.0
SAME = 1.02
"""Memory and descriptors may grow by this factor."""
ENDINGS = (
    "200",
    "499 cancelled",
    "500 model_failed",
    "503 draining",
    "503 overloaded",
    "503 starting",
    "503 worker_lost",
    "504 no_exit",
    "hung up",
    "no server",
)
"""How a request may end. Any other end is a fault."""


class Crowd:
    """Clients that send requests at even intervals, whatever became of those before.

    `share_given_up`: the share of requests that are cancelled, or hung up on, at a random moment; half of each.
    `ends` counts how requests ended; `late_ms` are milliseconds from their deadlines to their answers.
    """

    def __init__(self, server: Server, args: argparse.Namespace, share_given_up: float = 0.0) -> None:
        self.ends: Counter[str] = Counter()
        self.late_ms: list[float] = []
        self._server, self._model, self._share_given_up = server, args.model, share_given_up
        self._images = [args.image.read_bytes(), photo(480, 360), photo(640, 480)]
        self._chance = random.Random(0)
        self._idle: list[Client] = []
        self._numbers = itertools.count()

    async def ask(self, rate: float, seconds: float) -> None:
        start_s, tasks = time.monotonic(), set[asyncio.Task[None]]()
        for index in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, start_s + index / rate - time.monotonic()))
            task = asyncio.create_task(self._once())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _once(self) -> None:
        number, deadline_ms = next(self._numbers), self._chance.uniform(50, 300)
        gives_up = self._chance.random() < self._share_given_up
        client = self._idle.pop() if self._idle else Client(self._server.port)
        sending = asyncio.create_task(self._send(client, number, deadline_ms))
        if gives_up:
            await asyncio.wait([sending], timeout=self._chance.uniform(0.0, deadline_ms / 1000))
            if number % 2 and not sending.done():
                client.hang_up()
                sending.cancel()
                self.ends["hung up"] += 1
                return
            with suppress(OSError, asyncio.IncompleteReadError):
                await Client(self._server.port).send(f"/v1/requests/f{number}", method="DELETE")
        self.ends[await sending] += 1

    async def _send(self, client: Client, number: int, deadline_ms: float) -> str:
        """Send a request and return how it ended."""
        path = f"/v1/predict?model={self._model}&deadline_ms={deadline_ms:.1f}"
        head = f"{PNG}X-Request-Id: f{number}\r\n"
        try:
            async with asyncio.timeout(deadline_ms / 1000 + PATIENCE_S):
                answer = await client.send(path, self._images[number % len(self._images)], headers=head)
        except ConnectionRefusedError:
            return "no server"
        except (OSError, asyncio.IncompleteReadError):
            return "broken"
        except TimeoutError:
            return "silent"
        self._idle.append(client)
        self.late_ms.append(1000 * answer.seconds - deadline_ms)
        return "200" if answer.status == 200 else f"{answer.status} {json.loads(answer.body)['code']}"

    async def hang_up(self) -> None:
        """Close the connections, and give the server time to hear of it."""
        for client in self._idle:
            client.hang_up()
        self._idle.clear()
        await asyncio.sleep(2)

    def report(self) -> bool:
        """Print the figures; returns whether every request ended in words and in time."""
        faults = {end: count for end, count in self.ends.items() if end not in ENDINGS}
        latest_ms = max(self.late_ms, default=0.0)
        print(f"ends {dict(self.ends.most_common())}, the latest {latest_ms:.1f} ms after its deadline")
        return not faults and latest_ms <= 2 * GRACE_MS  # the generator shares the cores


@dataclass(frozen=True)
class Holdings:
    """What the processes of a server hold: memory of the front end and of its children, and descriptors."""

    front_end_mib: float
    children_mib: float
    descriptors: int

    @classmethod
    def of(cls, server: Server) -> "Holdings":
        found = children(server)
        descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (server.pid, *found))  # noqa: PTH208
        return cls(memory_mib(server.pid), sum(map(memory_mib, found)), descriptors)

    def __str__(self) -> str:
        return f"{self.front_end_mib:.0f} + {self.children_mib:.0f} MiB, {self.descriptors} descriptors"


def children(server: Server) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def address_space_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def memory_mib(pid: int) -> float:
    """Resident memory that is not shared."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def left(server: Server) -> dict[str, float]:
    """What is left of requests that have ended."""
    names = ("anytime_inflight_requests", "anytime_shared_memory_bytes", "anytime_queue_depth")
    return {name: sum((await server.metrics(name)).values()) for name in names}


async def leaks(args: argparse.Namespace) -> bool:
    """10,000 requests, of which 30 % are cancelled or hung up on: no slot, block or descriptor is left, memory stays,
    and the metrics count every request once."""
    count = args.count or 10_000
    async with Server(args.models) as server:
        crowd = Crowd(server, args, 0.3)
        await crowd.ask(args.rate, 0.2 * count / args.rate)
        await asyncio.sleep(10)  # until there is a process in reserve
        await crowd.hang_up()
        before = Holdings.of(server)
        await crowd.ask(args.rate, 0.8 * count / args.rate)
        await crowd.hang_up()
        after, rest = Holdings.of(server), await left(server)
        counted = sum((await server.metrics("anytime_requests_total")).values())
        passed = crowd.report()
    print(f"after a fifth {before}; at the end {after}; left {rest}; {counted:.0f} of {crowd.ends.total()} counted")
    gone_unheard = crowd.ends.total() - counted  # hung up on before the head was read
    return (
        passed
        and not any(rest.values())
        and after.descriptors <= before.descriptors + 2
        and after.front_end_mib <= 1.05 * before.front_end_mib
        and 0 <= gone_unheard <= crowd.ends["hung up"]
    )


async def sigterm(args: argparse.Namespace) -> bool:
    """SIGTERM under load: what is open is answered, what comes is refused in words, and the server ends with status
    0."""
    async with Server(args.models) as server:
        crowd = Crowd(server, args)
        asking = asyncio.create_task(crowd.ask(args.rate, 4.0))
        await asyncio.sleep(2.0)
        os.kill(server.pid, signal.SIGTERM)
        began_s = time.monotonic()
        status = await server._process.wait()
        ended_s = time.monotonic() - began_s
        await asking
        passed = crowd.report()
    print(f"ended with status {status} after {ended_s:.2f} s")
    return passed and status == 0 and ended_s <= BACK_S


async def memory(args: argparse.Namespace) -> bool:
    """The worker may take no more memory, under load and with images that need much: every request is answered or
    refused in words, and the server serves again within 5 s."""
    huge_image = photo(4000, 3000)
    async with Server(args.models, "--max-pixels", "20000000", "--shared-memory-bytes", str(2**30)) as server:
        crowd = Crowd(server, args)
        asking = asyncio.create_task(crowd.ask(args.rate, 10.0))
        await asyncio.sleep(1.0)
        resource.prlimit(server.worker, resource.RLIMIT_AS, (address_space_bytes(server.worker) + 2**24, -1))
        huge = await Client(server.port).send(f"/v1/predict?model={args.model}&deadline_ms=10000", huge_image)
        words = "a map" if huge.status == 200 else json.loads(huge.body)["error"]
        back_s = await server.ready()
        await asking
        passed = crowd.report()
    print(f"the large image: {huge.status}, {words}; ready again after {back_s:.2f} s")
    return passed and huge.status in (500, 503, 504) and back_s <= BACK_S


async def two(args: argparse.Namespace) -> bool:
    """Two workers share the cores, and one is killed under load. Only its own requests are lost, and both serve again
    within 5 s."""
    async with Server(args.models, "--device", "cpu,cpu") as server:

        async def both_ready() -> float:
            began_s = time.monotonic()
            while True:
                found = json.loads((await Client(server.port).send("/health/ready")).body)["devices"]
                if all(device["ready"] for device in found):
                    return time.monotonic() - began_s
                await asyncio.sleep(0.02)

        await both_ready()
        crowd = Crowd(server, args)
        await crowd.ask(args.rate, args.seconds)
        before = crowd.ends.copy()
        asking = asyncio.create_task(crowd.ask(args.rate, args.seconds))
        await asyncio.sleep(0.5)
        os.kill(server.worker, signal.SIGKILL)
        await asyncio.sleep(0.1)  # for the front end to hear of it
        back_s = await both_ready()
        await asking
        passed = crowd.report()
    print(f"answered {before['200'] / args.seconds:.1f} a second before; both ready again after {back_s:.2f} s")
    return passed and back_s <= BACK_S and crowd.ends["503 worker_lost"] <= args.rate


KINDS = {
    "--rate": "150",
    "--arrivals": "mmpp:5,0.3,1",
    "--deadline-ms": "20-60,100-400,3000",
    "--size": "480x360:6,1280x720:2,160x120:3,33x21,1920x1080",
    "--priority": "0,1:3,2",
    "--clients": "5,1,1,1",
    "--cancel": "0.1",
    "--hang-up": "0.1",
}
"""What `adpc load` sends for `mixed`: far more than two cores can do."""


async def mixed(args: argparse.Namespace) -> bool:
    """Requests of every kind, in bursts, over HTTP and WebSockets, while one of two workers is killed every ten
    seconds: every answer is one that the protocol has, the log has no traceback, and nothing is left."""
    faults, stops = 0, Counter[str]()
    async with Server(args.models, "--device", "cpu,cpu") as server:
        for protocol in ("http", "stream"):
            await server.ready()
            options = {**KINDS, "--protocol": protocol, "--model": args.model, "--seconds": str(3 * args.seconds)}
            loading = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "adpc_client", "load", "--url", f"http://127.0.0.1:{server.port}", "--json",
                *itertools.chain.from_iterable(options.items()), cwd=ROOT, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            told = asyncio.create_task(loading.communicate())
            while not (await asyncio.wait([told], timeout=args.seconds))[0]:
                os.kill(server.worker, signal.SIGKILL)
            report = json.loads((await told)[0])
            faults += report["faults"]
            stops.update(report["stops"])
        await server.ready()
        await asyncio.sleep(5)  # the longest deadline passes
        rest = await left(server)
    tracebacks = (await server.log()).count("Traceback")
    print(f"ends {dict(stops.most_common())}; {faults} faults, {tracebacks} tracebacks; left {rest}")
    return not (faults or stops["internal"] or tracebacks or any(rest.values()))


async def soak(args: argparse.Namespace) -> bool:
    """Minutes of load, of which a tenth is given up: after the first five minutes, or the first sixth, memory and
    descriptors grow by 2 % at most."""
    found: list[Holdings] = []
    async with Server(args.models) as server:
        crowd = Crowd(server, args, 0.1)
        asking = asyncio.create_task(crowd.ask(args.rate, 60 * args.minutes))
        pause_s = 60 * args.minutes / 60
        while not asking.done():
            await asyncio.wait([asking], timeout=pause_s)
            found.append(Holdings.of(server))
            print(f"{len(found) * pause_s / 60:5.1f} min: {found[-1]}", flush=True)
        passed = crowd.report()
    settled = min(len(found) // 2, max(len(found) // 6, round(300 / pause_s)))
    growths = {}
    for name in ("front_end_mib", "children_mib", "descriptors"):
        values = [float(getattr(each, name)) for each in found]
        growths[name] = statistics.median(values[-5:]) / statistics.median(values[settled : settled + 5])
    print("growth:", {name: f"{100 * (growth - 1):+.1f} %" for name, growth in growths.items()})
    return passed and max(growths.values()) <= SAME


CHECKS: dict[str, Callable[[argparse.Namespace], Awaitable[bool]]] = {
    function.__name__: function for function in (leaks, sigterm, memory, two, mixed, soak)
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--image", type=Path, default=ROOT / "models" / "zoo" / "camvid-adpc-w18" / "street.jpg")
    parser.add_argument("--count", type=int, help="requests of leaks; default: 10,000")
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="how long two workers are loaded before the fault, and the time between two faults of mixed",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of a soak")
    args = parser.parse_args(argv)
    passed = asyncio.run(CHECKS[args.check](args))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
