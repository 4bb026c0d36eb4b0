"""One load test, from the first connection to the last answer."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from adpc_client.load.http_transport import HttpTransport
from adpc_client.load.outcome import LoadMeasurement
from adpc_client.load.payloads import Payloads
from adpc_client.load.plan import LoadTestPlan
from adpc_client.load.runner import LoadRunner
from adpc_client.load.transport import Clock, LoadTarget, LoadTransport
from adpc_client.load.websocket_transport import WebSocketTransport

_WATCH_S = 0.5


async def measure(
    url: str,
    plan: LoadTestPlan,
    watch: Callable[[LoadRunner], None] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> LoadMeasurement:
    """Send the requests of `plan` to the server at `url`, each with `headers`, and hear all answers.

    `watch` is called twice a second.

    Raises AdpcError if the server cannot be reached before the start; what fails later is an outcome.
    """
    clock = time.perf_counter
    clients = list(dict.fromkeys(request.client for request in plan.requests))
    transport = _transport(await LoadTarget.resolve(url, clients, headers or {}), plan, clock)
    runner = LoadRunner(transport, plan, Payloads(plan.images), clock)
    watcher = asyncio.create_task(_watch(runner, watch)) if watch else None
    try:
        await transport.connect(clients)
        began_s, began_cpu_s = clock(), time.process_time()
        with _collector_off():
            await runner.run()
        return LoadMeasurement(runner.outcomes, clock() - began_s, time.process_time() - began_cpu_s)
    finally:
        transport.close()
        if watcher:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        await asyncio.sleep(0)  # lets the connections close


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without Python's garbage collector, which stops the load generator for longer the more outcomes there are. What
    it would free can wait until the run is over."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _transport(target: LoadTarget, plan: LoadTestPlan, clock: Clock) -> LoadTransport:
    if plan.protocol == "stream":
        return WebSocketTransport(target, plan.encoding or "delta", plan.options, clock, plan.connections_per_client)
    return HttpTransport(target, plan.encoding or "png", plan.options, clock)


async def _watch(runner: LoadRunner, watch: Callable[[LoadRunner], None]) -> None:
    while True:
        await asyncio.sleep(_WATCH_S)
        watch(runner)
