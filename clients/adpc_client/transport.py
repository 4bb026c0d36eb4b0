"""The server's address, and the translation of HTTP and WebSocket failures into this package's errors.

Both clients use it. It holds no connection.
"""

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, ProxyError

from adpc_client.errors import (
    AdpcError,
    ConnectionFailedError,
    ProtocolError,
    ServerSilentError,
    close_error,
    reply_error,
)
from adpc_client.options import Timeout
from adpc_client.proxy import find_proxy, tls_context
from adpc_client.wire import Json, parse_json

CONNECTION_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32)
"""Open connections are unlimited: a request that waited here for a free one would lose time from its deadline."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110, section 5.6.2)."""


@dataclass(frozen=True)
class Endpoint:
    """A server's address, the headers of every request, and the timeouts.

    `proxy` is the URL of the proxy to go through, if any. Raises ValueError unless `url` is an http or https URL with a
    host and without query or fragment, if a header cannot be sent, and if the environment names a proxy or certificates
    that cannot be used.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # they may hold a key
    timeout: Timeout = field(default_factory=Timeout)
    proxy: str | None = field(init=False)
    tls: ssl.SSLContext = field(init=False)

    def __post_init__(self) -> None:
        complaint = f"the server's URL is {self.url!r}; it must look like http://host:port"
        try:
            parsed = httpx.URL(self.url)
            parsed.host.encode("idna")  # which is how the system resolves it
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"{complaint}: {error}") from error
        port_fits = parsed.port is None or 0 < parsed.port < 1 << 16
        if parsed.scheme not in ("http", "https") or not parsed.host or not port_fits:
            raise ValueError(complaint)
        if parsed.query or parsed.fragment:
            raise ValueError(f"{complaint}, without query or fragment")
        check_headers(self.headers)
        object.__setattr__(self, "url", str(parsed).rstrip("/"))  # scheme and host in lower case
        object.__setattr__(self, "proxy", find_proxy(parsed))
        object.__setattr__(self, "tls", tls_context(parsed.scheme))

    @property
    def stream_url(self) -> str:
        return f"ws{self.url.removeprefix('http')}/v1/stream"

    @property
    def stream_tls(self) -> ssl.SSLContext | None:
        """The certificates to trust for `stream_url`; None if it is not encrypted."""
        return self.tls if self.url.startswith("https") else None

    def http_timeout(self, deadline_ms: float | None = None) -> httpx.Timeout:
        return httpx.Timeout(self.timeout.answer_s(deadline_ms), connect=self.timeout.connect_s)

    @contextmanager
    def http_errors(self) -> Iterator[None]:
        """Raises the failures of httpx as AdpcErrors."""
        try:
            yield
        except httpx.ConnectTimeout as error:
            raise ConnectionFailedError(f"{self._place} did not accept a connection in {self._connect_time}") from error
        except httpx.TimeoutException as error:
            raise ServerSilentError(f"{self.url} sent no answer in {self._silence} beyond the deadline") from error
        except httpx.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx.TransportError as error:
            raise ConnectionFailedError(f"the connection to {self._place} broke: {error}") from error

    @contextmanager
    def stream_errors(self) -> Iterator[None]:
        """Raises the failures of an open WebSocket as AdpcErrors."""
        try:
            yield
        except TimeoutError as error:
            if isinstance(error, AdpcError):
                raise
            raise ServerSilentError(f"{self.url} sent no exit in {self._silence} beyond the deadline") from error
        except ConnectionClosed as error:
            received = error.rcvd
            code, reason = (received.code, received.reason) if received else (None, "")
            raise close_error(code, reason) from error

    @contextmanager
    def connect_errors(self) -> Iterator[None]:
        """Raises the failures to open a WebSocket as AdpcErrors."""
        try:
            yield
        except InvalidStatus as error:
            response = error.response
            raise status_error(response.status_code, response.body or b"", response.headers) from error
        except TimeoutError as error:
            raise ConnectionFailedError(f"{self._place} did not accept a stream in {self._connect_time}") from error
        except ProxyError as error:
            raise self._unreachable(error) from error
        except InvalidHandshake as error:
            raise ProtocolError(f"{self.stream_url} does not speak WebSocket: {error}") from error
        except OSError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ConnectionFailedError:
        remedy = "is the proxy right?" if self.proxy else "is the server running there?"
        return ConnectionFailedError(f"cannot reach {self._place}: {error}; {remedy}")

    @property
    def _place(self) -> str:
        return f"{self.url} through the proxy {self.proxy}" if self.proxy else self.url

    @property
    def _connect_time(self) -> str:
        return f"{self.timeout.connect_s:g} s (Timeout.connect_s)"

    @property
    def _silence(self) -> str:
        return f"{self.timeout.silence_s:g} s (Timeout.silence_s)"


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises ValueError if a header cannot be sent. The sentence does not show its value, which may be secret."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header; a name consists of letters, digits and hyphens")
        if not value.isascii() or not value.isprintable():
            raise ValueError(
                f"the value of the header {name} has a line break or a character outside ASCII; a key that was read "
                "from a file may end in a line break: strip it"
            )


def id_header(id: str | None) -> dict[str, str]:
    """The header that names a request. Raises ValueError if `id` has characters that a header cannot carry."""
    if not id:
        return {}
    if not id.isascii() or not id.isprintable():
        raise ValueError(f"the id is {id!r}; over HTTP it may have printable ASCII characters only")
    return {"X-Request-Id": id}


def request_path(id: str) -> str:
    return f"/v1/requests/{quote(id, safe='')}"


def model_path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}"


def json_body(response: httpx.Response) -> Json:
    """The body of a successful answer. Raises the ReplyError for any other status."""
    if not response.is_success:
        raise status_error(response.status_code, response.content, response.headers)
    return parse_json(response.content)


def status_error(status: int, body: bytes | bytearray, headers: Mapping[str, str]) -> AdpcError:
    """The error for an unsuccessful answer."""
    try:
        explanation = parse_json(bytes(body))
    except ProtocolError:  # perhaps a proxy's own page; the status alone chooses the error
        explanation = {}
    return reply_error(status, explanation, _seconds(headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds; None for a date (RFC 9110, section 10.2.3), which an anytime server never sends."""
    try:
        return None if retry_after is None else float(retry_after)
    except ValueError:
        return None
