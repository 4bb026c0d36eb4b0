"""Two replicas on a real Ray Serve: one is killed under load, and cancels reach the replica that has the request.

pytest does not collect it. The models are tiny.
`pip install '.[ray]'`, then `PYTHONPATH=. python tests/acceptance_ray.py` prints how requests ended, where cancels
came, and whether the arrival counts from the proxy, and fails if a request got no answer and no words.
"""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import live
import ray
from acceptance import ROOT
from adpc_client import AsyncClient
from adpc_client.errors import AdpcError, ConnectionFailedError
from hosts import free_port
from ray import serve

from deploy.ray_serve import Cluster, build

PORT = free_port()
PROXY = f"http://127.0.0.1:{PORT}"
MODEL = "tiny-segmentation"
REQUESTS, AT_ONCE, CANCELS = 500, 8, 50
PATIENCE_S = 90.0
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "ANYTIME_DEFAULT_MODEL": MODEL,
    "ANYTIME_LOG_LEVEL": "warning",
    "ANYTIME_SPARE_WORKERS": "0",
    "ANYTIME_CODEC_THREADS": "1",
    "ANYTIME_SHARED_MEMORY_BYTES": str(2**25),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_proxy:middlewares",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def descendants(pid: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (thread / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def replica_pids() -> list[int]:
    named = ((pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in descendants(os.getpid()))
    return [pid for pid, command in named if command.startswith(b"ray::ServeReplica:")]


async def until(condition: Callable[[], Awaitable[bool]]) -> float:
    """Seconds until it holds."""
    began_s = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - what is waited for is elsewhere
            await asyncio.sleep(0.2)
    return time.monotonic() - began_s


async def replicas(http: httpx.AsyncClient) -> list[str]:
    targets: list[str] = (await http.get("/replicas")).json()[0]["targets"]
    return targets


def worded(response: httpx.Response) -> str:
    """How a request ended: the stop of its answer, or the code of its refusal; '?' if it was neither."""
    try:
        body = response.json()
    except ValueError:
        return f"? {response.status_code} {response.text[:80]!r}"
    return str(body.get("stop") or body.get("code") or f"? {body}")


async def post(http: httpx.AsyncClient, image: bytes, deadline_ms: float) -> str:
    return worded(await http.post("/v1/predict", params={"deadline_ms": deadline_ms}, content=image))


async def events(http: httpx.AsyncClient, image: bytes, deadline_ms: float) -> str:
    headers, last = {"Accept": "text/event-stream"}, ""
    asked = http.stream("POST", "/v1/predict", params={"deadline_ms": deadline_ms}, content=image, headers=headers)
    async with asked as response:
        if response.headers["content-type"].startswith("application/json"):
            await response.aread()
            return worded(response)
        async for line in response.aiter_lines():
            last = line.removeprefix("event: ") if line.startswith("event: ") else last
    return f"event {last}" if last in ("end", "error") else f"? the events stop after {last}"


async def socket(_: httpx.AsyncClient, image: bytes, deadline_ms: float) -> str:
    try:
        async with AsyncClient(PROXY) as client, client.stream(image, deadline_ms=deadline_ms) as stream:
            exits = [found.exit async for found in stream]
    except ConnectionFailedError as error:
        return "socket closed with 1012 and words" if "replica" in str(error) else f"socket ? {error!r}"
    except AdpcError as error:
        return f"socket {getattr(error, 'code', '') or f'? {error!r}'}"
    return f"socket {'answered' if exits else '? without an exit'}"


async def load(http: httpx.AsyncClient, image: bytes) -> tuple[Counter[str], float]:
    """How the requests ended, and after how many seconds the lost replica had been replaced."""
    ended: Counter[str] = Counter()
    kinds = [post, post, post, events, socket]
    rest = iter(range(REQUESTS))
    chance = random.Random(0)
    killed = asyncio.Event()

    async def client() -> None:
        for number in rest:
            if number == REQUESTS // 3:
                os.kill(replica_pids()[0], signal.SIGKILL)
                killed.set()
            try:
                ended[await kinds[number % len(kinds)](http, image, chance.choice([20, 60, 200, 1000]))] += 1
            except httpx.HTTPError as error:
                ended[f"? {error!r}"] += 1

    async def replaced() -> float:
        await killed.wait()
        before = set(await replicas(http))

        async def new() -> bool:
            return bool(set(await replicas(http)) - before)

        return await until(new)

    replacement = asyncio.create_task(replaced())
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return ended, await replacement


async def cancels(http: httpx.AsyncClient, image: bytes) -> Counter[str]:
    """How requests end whose body is still on its way when they are cancelled through the proxy."""
    ended: Counter[str] = Counter()
    for number in range(CANCELS):
        cancelled, name = asyncio.Event(), f"cancel-{number}"

        async def body(cancelled: asyncio.Event = cancelled) -> AsyncIterator[bytes]:
            yield image[:100]
            await cancelled.wait()
            yield image[100:]

        headers = {"X-Request-Id": name}
        asked = asyncio.create_task(http.post("/v1/predict", content=body(), headers=headers))

        async def known(name: str = name) -> bool:
            return (await http.get(f"/v1/requests/{name}")).is_success

        await until(known)
        told = worded(await http.delete(f"/v1/requests/{name}"))
        cancelled.set()
        ended[f"told {told}, ended {worded(await asked)}"] += 1
    return ended


async def arrivals(http: httpx.AsyncClient, image: bytes) -> tuple[str, str]:
    """What a request is told that came to the proxy a second ago, at a replica, and what if a client says so."""
    long_ago = {"X-Ray-Arrived": str(time.time() - 1)}
    asked = {"params": {"deadline_ms": 500}, "content": image, "headers": long_ago}
    waited = await http.post(f"http://{(await replicas(http))[0]}/v1/predict", **asked)  # type: ignore[arg-type]
    return worded(waited), worded(await http.post("/v1/predict", **asked))  # type: ignore[arg-type]


async def measure(image: bytes) -> bool:
    async with httpx.AsyncClient(base_url=PROXY, timeout=30) as http:

        async def both() -> bool:
            return len(await replicas(http)) == 2

        await until(both)
        ended, replaced_s = await load(http, image)
        for how, count in sorted(ended.items(), key=lambda item: -item[1]):
            print(f"{count:4d} {how}")
        print(f"the killed replica was replaced after {replaced_s:.1f} s")
        reached = await cancels(http, image)
        await until(both)  # the lost one is forgotten
        print("cancels:", *(f"{count} {how}" for how, count in reached.items()), sep="\n    ")
        waited, claimed = await arrivals(http, image)
        print(f"a second at the proxy: {waited}; a client that only says so: {claimed}")
        counted = {}
        for target in await replicas(http):
            text = (await http.get(f"http://{target}/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith("anytime_requests_total{")]
            counted[target] = sum(float(line.rsplit(" ", 1)[1]) for line in lines)
        print("requests that replicas counted:", counted)
    good = not any("?" in how for how in ended) and not {"starting"} & ended.keys()
    reached_all = reached == {"told cancelled, ended cancelled": CANCELS}
    return good and reached_all and waited != "complete" and claimed == "complete" and len(counted) == 2


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(ENVIRONMENT, ANYTIME_MODELS=str(live.write_models(Path(folder))))
        ray.init(
            num_cpus=2, include_dashboard=False, namespace="anytime", object_store_memory=10**8, log_to_driver=False
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            serve.run(build(Cluster(cpus=1, min_replicas=2, max_replicas=2)))
            good = asyncio.run(measure(live.photo()))
        finally:
            serve.shutdown()
            ray.shutdown()
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
