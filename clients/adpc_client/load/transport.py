"""What is common to both transports: the server's address, a request that is open, and the reply to it.

A transport costs the generator as little as it can: images are encoded beforehand, and maps are not decoded.
"""

import asyncio
import ipaddress
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from adpc_client.errors import AdpcError, ConnectionFailedError, ReplyError
from adpc_client.load.payloads import Payload
from adpc_client.load.plan import PlannedRequest
from adpc_client.proxy import is_loopback
from adpc_client.transport import Endpoint

Connection = TypeVar("Connection", bound=asyncio.Protocol)
Clock = Callable[[], float]
CONNECT_S = 5.0
"""How long the server may take to accept a connection."""
_EXPECTED_STATUSES = {429, 499, 503, 504}
"""Statuses with which a loaded server may refuse a request. Any other error is a fault."""


class ReceivedExit(NamedTuple):
    """An exit, and when its last byte came, by the transport's clock."""

    exit: int
    at_s: float


class LoadReply(NamedTuple):
    """How a request ended, at `ended_s` by the transport's clock: `stop` as the server says it, or the code of its
    error, or `hung_up`.

    `unsure` and `elapsed_ms` are the server's own figures. `error` is its sentence if it refused. `fault`: a server
    under load has no reason for this.
    """

    ended_s: float
    stop: str
    exits: tuple[ReceivedExit, ...] = ()
    unsure: float | None = None
    elapsed_ms: float | None = None
    error: str | None = None
    status: int = 200
    retry_after_s: float | None = None
    fault: bool = False


@dataclass(frozen=True)
class LoadRequest:
    """A request as it is sent now: its deadline may be nearer than the planned one."""

    id: str
    planned: PlannedRequest
    deadline_ms: float
    payload: Payload

    def options(self) -> dict[str, str | float]:
        """The options that are its own, by their name on the wire."""
        planned = self.planned
        named = {"deadline_ms": round(self.deadline_ms, 3), "model": planned.model, "priority": planned.priority}
        return {name: value for name, value in named.items() if value is not None}


class OpenRequest(ABC):
    """A request that was sent. `exits`: those that have come. `reply` is set once it has ended."""

    def __init__(self, clock: Clock) -> None:
        self.exits: list[ReceivedExit] = []
        self.reply: asyncio.Future[LoadReply] = asyncio.get_running_loop().create_future()
        self._clock = clock

    @abstractmethod
    def cancel(self) -> None:
        """Ask the server to stop."""

    @abstractmethod
    def hang_up(self) -> None:
        """Close the connection."""

    @abstractmethod
    def give_way(self) -> None:
        """Cancel the request as soon as it has an exit, where the protocol shows that."""

    def fall_silent(self) -> None:
        """End the request because its answer has not come, and close its connection."""
        self._finish(LoadReply(self._clock(), "silent", tuple(self.exits), fault=True))
        self.hang_up()

    def reach(self, exit: int) -> None:
        self.exits.append(ReceivedExit(exit, self._clock()))

    def end(self, stop: str, unsure: float | None = None, elapsed_ms: float | None = None) -> None:
        self._finish(LoadReply(self._clock(), stop, tuple(self.exits), unsure, elapsed_ms))

    def fail(self, error: AdpcError) -> None:
        self._finish(failed_reply(error, self._clock(), tuple(self.exits)))

    def _finish(self, reply: LoadReply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)


class LoadTransport(Protocol):
    """Sends the requests of a load test."""

    async def connect(self, clients: Iterable[str]) -> None:
        """Open one more connection for each client. Raises AdpcError if that fails."""

    def open(self, request: LoadRequest) -> OpenRequest | None:
        """Send a request over a free connection of its client. Returns None if no connection is free."""

    def close(self) -> None:
        """Close every connection."""


def failed_reply(error: AdpcError, ended_s: float, exits: tuple[ReceivedExit, ...] = ()) -> LoadReply:
    """The reply that `error` stands for."""
    if isinstance(error, ReplyError):
        fault = error.status not in _EXPECTED_STATUSES
        return LoadReply(ended_s, error.code, exits, None, None, str(error), error.status, error.retry_after_s, fault)
    stop = "connection_failed" if isinstance(error, ConnectionFailedError) else "protocol_error"
    return LoadReply(ended_s, stop, exits, error=str(error), status=0, fault=True)


@dataclass(frozen=True)
class LoadTarget:
    """Where the requests go, and the headers of each. `address`: that of the URL's host. `sources`: the addresses that
    clients send from."""

    url: str
    address: str
    tls: ssl.SSLContext | None
    sources: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # they may hold a key

    @classmethod
    async def resolve(cls, url: str, clients: Sequence[str], headers: Mapping[str, str] | None = None) -> "LoadTarget":
        """The target at `url`, at the first address that accepts a connection. If it is this machine, each of several
        `clients` gets a loopback address of its own, so that the server can tell them apart.

        Raises ValueError if `url` or a header is malformed, and ConnectionFailedError.
        """
        endpoint = Endpoint(url, dict(headers or {}))
        host = urlsplit(endpoint.url).hostname or ""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectionFailedError(f"cannot reach {endpoint.url}: {error}") from error
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        for address in addresses:
            target = cls(endpoint.url, address, endpoint.stream_tls, _sources(address, clients), endpoint.headers)
            try:
                (await target.connect(_Probe, "")).close()
            except ConnectionFailedError:
                if address == addresses[-1]:
                    raise
            else:
                break
        return target

    @cached_property
    def netloc(self) -> str:
        return urlsplit(self.url).netloc

    @cached_property
    def path(self) -> str:
        """The path that comes before every other."""
        return urlsplit(self.url).path

    async def connect(self, make: Callable[[], Connection], client: str) -> Connection:
        """A new connection of `client`. Raises ConnectionFailedError."""
        parts, source = urlsplit(self.url), self.sources.get(client)
        connecting = asyncio.get_running_loop().create_connection(
            make,
            self.address,
            parts.port or (443 if self.tls else 80),
            ssl=self.tls,
            server_hostname=parts.hostname if self.tls else None,
            local_addr=(source, 0) if source else None,
        )
        try:
            _, connection = await asyncio.wait_for(connecting, CONNECT_S)
        except asyncio.TimeoutError as error:
            raise ConnectionFailedError(f"{self.url} did not accept a connection in {CONNECT_S:g} s") from error
        except OSError as error:
            sender = f" from {source}" if source else ""
            raise ConnectionFailedError(f"cannot reach {self.url}{sender}: {error}") from error
        return connection


class _Probe(asyncio.Protocol):
    """A connection that shows that there is one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.close = transport.close


def _sources(address: str, clients: Sequence[str]) -> dict[str, str]:
    """127.0.0.2, 127.0.0.3, ... for several clients of a server on 127.0.0.1."""
    if len(clients) < 2 or ipaddress.ip_address(address).version != 4 or not is_loopback(address):
        return {}
    first = ipaddress.IPv4Address("127.0.0.2")
    return {client: str(first + index) for index, client in enumerate(clients)}
