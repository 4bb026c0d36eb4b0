"""The server on Ray Serve: replicas of the same application, on as many machines as the cluster has.

    export ANYTIME_TRUSTED_PROXIES=10.0.0.0/8  # the network of the nodes
    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray_proxy:middlewares  # for `ray start` too
    serve run deploy.ray_serve:build cpus=4 min_replicas=2 max_replicas=20

Each replica reads the settings as `create_app()` does, computes on the CPUs and GPUs that Ray reserves for it, and gets
requests once its models are warm. It listens on a port of its own too: there Prometheus reads its metrics, and the
other replicas ask for requests that it has.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import ray
import uvicorn
from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.util import get_node_ip_address
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.ray_proxy import waited_s
from server.app import create_app
from server.logs import configure_logging
from server.protocols.hop import PATIENCE_S, Address, Hop
from server.protocols.http import ARRIVED_S
from server.settings import Settings, load_settings

DIRECTORY = "anytime-directory"
HEALTH_S = 5.0
"""Between two signs of life of a replica, which Serve asks for."""
FORGET_S = 4 * HEALTH_S
DRAIN_MORE_S = 10.0
"""What Serve waits for a replica beyond its own time to drain."""
BUSY = "busy"


class Cluster(BaseModel):
    """The arguments of `serve run`. `busy`: the share of a replica's device that is used, at which there are enough."""

    cpus: float = Field(2, gt=0)
    gpus: float = Field(0, ge=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    busy: float = Field(0.7, gt=0, lt=1)


@ray.remote(num_cpus=0, max_restarts=-1)
class Directory:
    """The addresses of the replicas that live. A new one learns them from the next signs of life."""

    def __init__(self) -> None:
        self._heard_s: dict[Address, float] = {}

    def hear(self, address: Address) -> None:
        self._heard_s[address] = time.monotonic()

    def addresses(self) -> list[Address]:
        since_s = time.monotonic() - FORGET_S
        self._heard_s = {address: heard_s for address, heard_s in self._heard_s.items() if heard_s > since_s}
        return sorted(self._heard_s)


class Arrival:
    """ASGI middleware: a request arrived when it came to Ray's proxy, if that says so. `longest_s`: the longest
    deadline, beyond which no wait counts."""

    def __init__(self, app: ASGIApp, longest_s: float) -> None:
        self._app = app
        self._longest_s = longest_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[ARRIVED_S] = time.monotonic() - waited_s(scope["headers"], time.time(), self._longest_s)
        await self._app(scope, receive, send)


@serve.ingress()
class Replica:
    """One server. Serve takes the application from it, and waits for the application's start-up."""

    def __init__(self) -> None:
        reserved = ray.get_runtime_context().get_assigned_resources()
        self._host = get_node_ip_address()
        self._directory: Any = Directory.options(name=DIRECTORY, lifetime="detached", get_if_exists=True).remote()
        settings = replica_settings(load_settings([]), reserved.get("CPU", 0.0), self._host)
        configure_logging(settings.log_level, settings.log_format, "anytime")
        self._application = create_app(settings)
        self._hosted = Arrival(self._application, settings.max_deadline_ms / 1000)
        self._application.state.hop = Hop(self._others)
        self._application.add_api_route("/replicas", self._targets, include_in_schema=False)
        self._listener: Listener | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._hosted

    async def check_health(self) -> None:
        """A sign of life. The first one comes when the replica is ready."""
        if self._listener is None:
            self._listener = Listener(self._hosted, self._host)
            await self._listener.start()
        await self._directory.hear.remote(self._listener.address)

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {BUSY: self._application.state.service.engine.busy(time.monotonic())}

    def _others(self) -> Sequence[Address]:
        """The other replicas. Raises ConnectionError if the directory does not answer."""
        own = None if self._listener is None else self._listener.address
        try:
            found = ray.get(self._directory.addresses.remote(), timeout=PATIENCE_S)
        except RayError as error:
            raise ConnectionError("the directory of replicas does not answer") from error
        return [address for address in map(tuple, found) if address != own]

    async def _targets(self) -> list[dict[str, list[str]]]:
        """The replicas, as Prometheus discovers them over HTTP."""
        return [{"targets": [f"{host}:{port}" for host, port in await self._directory.addresses.remote()]}]


def replica_settings(settings: Settings, cpus: float, host: str) -> Settings:
    """The settings of a replica on a node: it computes on what is reserved for it, and believes the replicas of its own
    node where a client is."""
    return settings.model_copy(
        update={
            "host": "0.0.0.0",
            "threads": settings.threads or max(1, int(cpus)),
            "trusted_proxies": ",".join(filter(None, (settings.trusted_proxies, host))),
        }
    )


class Listener:
    """A port of the replica's own, where the same application is."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(app, host, 0, lifespan="off", log_config=None, access_log=False, ws="none")
        )
        self._host = host
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._server.config.load()
        self._server.lifespan = self._server.config.lifespan_class(self._server.config)
        await self._server.startup()
        self._serving = asyncio.create_task(self._server.main_loop())

    @property
    def address(self) -> Address:
        return self._host, self._server.servers[0].sockets[0].getsockname()[1]


def enough_replicas(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """As many replicas as bring the mean load of their devices to the target.

    A device that is always busy hides how much more it should do: then their number grows by the same factor each time.
    """
    reported = (context.aggregated_metrics or {}).get(BUSY, {})
    if not reported:
        return context.target_num_replicas, {}
    target = context.config.policy.policy_kwargs["busy"]
    mean = sum(reported.values()) / len(reported)
    wanted = math.ceil(context.current_num_replicas * mean / target)
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(most, max(least, wanted)), {}


def build(cluster: Cluster) -> serve.Application:
    """The application for `serve run`."""
    settings = load_settings([])
    deployment = serve.deployment(
        Replica,
        name="anytime",
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
        max_ongoing_requests=settings.max_connections,  # the replica refuses in its own words
        graceful_shutdown_timeout_s=settings.drain_ms / 1000 + DRAIN_MORE_S,
        health_check_period_s=HEALTH_S,
        autoscaling_config=AutoscalingConfig(
            min_replicas=cluster.min_replicas,
            max_replicas=cluster.max_replicas,
            upscale_delay_s=10,
            downscale_delay_s=300,
            policy=AutoscalingPolicy(
                policy_function="deploy.ray_serve:enough_replicas", policy_kwargs={"busy": cluster.busy}
            ),
        ),
    )
    return deployment.bind()
