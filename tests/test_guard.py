"""The guard, around an application that only notes what it sees."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.access.guard import Guard
from server.access.identity import Caller, caller_of, token_digest
from server.access.keys import KeyRing, key_digest
from server.protocols.bodies import MapHeaders
from server.protocols.http import ARRIVED_S
from server.protocols.open_inference.routes import JSON_LENGTH
from server.settings import ROOT, Settings

KEY = "robot.secret-of-the-robot"
TOKEN = "a secret of its own"
PREFLIGHT = {"Access-Control-Request-Method": "POST"}


@dataclass
class Clock:
    """Stands in for the module `time` of the guard."""

    unix_s: float
    monotonic_s: float

    def time(self) -> float:
        return self.unix_s

    def monotonic(self) -> float:
        return self.monotonic_s


@dataclass
class Answer:
    """What came back: an HTTP answer, or a WebSocket's `accept` or `close`. `seen`: what the application got."""

    messages: list[Any] = field(default_factory=list)
    seen: Scope | None = None

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def code(self) -> str:
        return str(json.loads(self.messages[1]["body"])["code"])

    @property
    def headers(self) -> dict[str, str]:
        found = [(name.decode(), value.decode()) for name, value in self.messages[0]["headers"]]
        assert len(found) == len(dict(found)), "a header came twice"
        return dict(found)

    @property
    def caller(self) -> Caller:
        assert self.seen is not None
        return caller_of(self.seen)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.robot]\nsha256 = "{key_digest(KEY)}"\n')
    return path


def ask(
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    kind: str = "http",
    keys: Path | None = None,
    **more: Any,
) -> Answer:
    """Send one request through the guard. `more`: settings, and fields of the scope; `below`: its root path."""
    settings = {name: more.pop(name) for name in list(more) if name in Settings.model_fields}
    answer = Answer()
    given = list(headers.items()) if isinstance(headers, dict) else headers or []
    if "Host" not in dict(given) and not isinstance(headers, list):
        given.append(("Host", "localhost:8000"))
    scope: Scope = {
        "type": kind,
        "http_version": "1.1",
        "path": "/v1/predict",
        "client": ("192.0.2.1", 4711),
        "scheme": kind.replace("websocket", "ws"),
        "root_path": more.pop("below", ""),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given],
        **({"method": "POST"} if kind == "http" else {"extensions": {"websocket.http.response": {}}}),
        **more,
    }

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        answer.seen = scope
        if kind == "http":
            await Response("served", headers={"Referrer-Policy": "its own"})(scope, receive, send)
        else:
            await send({"type": "websocket.accept"})

    async def receive() -> Any:
        return {"type": "websocket.connect" if kind == "websocket" else "http.request"}

    async def send(message: Any) -> None:
        answer.messages.append(message)

    guard = Guard(application, Settings.model_validate(settings), KeyRing(keys, 0.0) if keys else None)
    asyncio.run(guard(scope, receive, send))
    return answer


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([], 400, "bad_host"),
        ([("Host", "localhost"), ("Host", "localhost")], 400, "bad_host"),
        ({"Host": "rebound.test"}, 421, "unknown_host"),
        ({"Host": "rebound.test:8000", "Origin": "http://rebound.test:8000"}, 421, "unknown_host"),
        ({"Origin": "http://localhost:3000"}, 403, "foreign_origin"),
        ({"Origin": "null"}, 403, "foreign_origin"),
        (
            [("Host", "localhost"), ("Origin", "http://localhost"), ("Origin", "http://app.example")],
            400,
            "bad_origin",
        ),
        ({"X-Request-Token": "short"}, 400, "bad_token"),
        ({"Accept": "," * 8193}, 431, "headers_too_large"),
        ([("Host", "localhost"), *[("X", "y")] * 128], 431, "headers_too_large"),
    ],
)
def test_what_is_refused(kind: str, headers: Any, status: int, code: str) -> None:
    answer = ask(headers, kind)
    assert (answer.status, answer.code, answer.seen) == (status, code, None)
    assert answer.messages[0]["type"] == ("http" if kind == "http" else "websocket.http") + ".response.start"
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "192.0.2.7:8000"},
        {"Origin": "http://localhost:8000"},
        {"Host": "127.0.0.1:9", "Origin": "http://127.0.0.1:9"},
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_what_is_served(kind: str, headers: dict[str, str]) -> None:
    assert ask(headers, kind).caller == Caller("192.0.2.1")


def test_a_target_has_so_many_bytes_and_cookies_may_have_more() -> None:
    for target in ({"raw_path": b"/" * 8193}, {"raw_path": b"/" * 4000, "query_string": b"a" * 4193}):
        answer = ask(**target)
        assert (answer.status, answer.code) == (431, "headers_too_large")
    at_most = {"raw_path": b"/" * 4000, "query_string": b"a" * 4192}
    assert ask({"Cookie": "a" * 20_000, "Accept": "," * 8192}, **at_most).status == 200
    assert ask([("Host", "localhost"), *[("X", "y")] * 127]).status == 200, "so many fields, and no more"


def test_a_refusal_echoes_the_id_of_the_request() -> None:
    answer = ask({"Host": "rebound.test", "X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == json.loads(answer.messages[1]["body"])["id"] == "mine"


def test_a_host_without_answers_to_handshakes_closes_the_socket() -> None:
    answer = ask({"Host": "rebound.test"}, "websocket", extensions={})
    assert answer.messages == [{"type": "websocket.close", "code": 1008}]


def test_every_answer_tells_browsers_what_they_may_do() -> None:
    headers = ask().headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "its own"  # what the application says stands
    assert not {name for name in headers if name.startswith(("access-control", "vary"))}


def test_answers_are_shared_with_configured_origins() -> None:
    allowed = {"allowed_origins": "https://app.example"}
    headers = ask({"Origin": "https://app.example"}, **allowed).headers
    assert headers["access-control-allow-origin"] == "https://app.example" and headers["vary"] == "Origin"
    assert "X-Anytime-Exit," in headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in headers
    alone = ask(**allowed).headers
    assert "access-control-allow-origin" not in alone and alone["vary"] == "Origin"
    assert ask({"Origin": "https://other.example"}, **allowed).status == 403


def test_a_browser_is_told_what_a_page_may_send(key_file: Path) -> None:
    asked = {"Origin": "https://app.example", **PREFLIGHT}
    answer = ask(asked, method="OPTIONS", allowed_origins="https://app.example", keys=key_file)
    assert (answer.status, answer.seen) == (204, None)
    assert answer.headers["access-control-allow-methods"] == "GET, POST, DELETE"
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert ask(asked, method="OPTIONS").status == 403
    assert ask({}, method="OPTIONS").seen is not None  # no preflight, which the application answers


def test_a_token_goes_with_the_request() -> None:
    assert ask({"X-Request-Token": TOKEN}).caller == Caller("192.0.2.1", token=token_digest(TOKEN))


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({}, "no_key"),
        ({"Authorization": f"Basic {KEY}"}, "no_key"),
        ({"Authorization": KEY}, "no_key"),
        ({"Authorization": "Bearer robot.wrong"}, "bad_key"),
        ({"Authorization": "Bearer "}, "bad_key"),
    ],
)
def test_without_its_key_nobody_is_served(key_file: Path, kind: str, header: dict[str, str], code: str) -> None:
    answer = ask(header, kind, keys=key_file)
    assert (answer.status, answer.code, answer.seen) == (401, code, None)
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["", "/", "/health/live", "/health/ready", "/static/app.js", "/docs", "/openapi.json"])
def test_pages_and_health_need_no_key(key_file: Path, path: str) -> None:
    assert ask(path=path, method="GET", keys=key_file).caller.key is None
    assert ask(path=f"/below{path}", below="/below", method="GET", keys=key_file).caller.key is None


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/healthy", "/statics"])
def test_all_else_needs_a_key(key_file: Path, path: str) -> None:
    assert ask(path=path, method="GET", keys=key_file).status == 401


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/docs/swagger-ui.css", "/openapi.json"])
def test_what_operators_have_an_address_for_is_there_alone(key_file: Path, path: str) -> None:
    admin = {"admin": "127.0.0.1:9000", "path": path, "method": "GET", "keys": key_file}
    assert ask(**admin, server=("127.0.0.1", 9000)).caller.key is None
    for server in (("127.0.0.1", 8000), ("/run/socket", None), None):
        answer = ask(**admin, server=server)
        assert (answer.status, answer.code, answer.seen) == (404, "not_found", None)


def test_at_the_operators_address_requests_need_a_key_as_elsewhere(key_file: Path) -> None:
    assert ask(admin="127.0.0.1:9000", keys=key_file, server=("127.0.0.1", 9000)).status == 401
    assert ask(path="/health/ready", method="GET", admin="127.0.0.1:9000", server=("127.0.0.1", 8000)).seen is not None


def test_a_key_is_a_header_or_a_subprotocol(key_file: Path) -> None:
    bearer = {"Authorization": f"bearer  {KEY} "}
    assert (
        ask(bearer, keys=key_file).caller
        == ask(bearer, "websocket", keys=key_file).caller
        == Caller("192.0.2.1", "robot")
    )
    answer = ask(kind="websocket", keys=key_file, subprotocols=["anytime", f"anytime.key.{KEY}"])
    assert answer.caller.key == "robot"
    assert answer.messages == [{"type": "websocket.accept", "subprotocol": "anytime"}]  # the key is not echoed
    assert ask(kind="websocket", subprotocols=["other"]).messages == [{"type": "websocket.accept"}]


@pytest.mark.parametrize(
    ("trusted", "start", "waited_s"),
    [
        ("192.0.2.1", "t=1700000000.25", 0.75),
        ("192.0.2.1", "1700000000", 1.0),
        ("192.0.2.1", "t=1", 30.0),
        ("192.0.2.1", "t=1700000007", 0.0),  # the clocks differ
        ("192.0.2.1", "t=soon", 0.0),
        ("192.0.2.1", None, 0.0),
        ("", "t=1700000000.25", 0.0),
    ],
)
def test_only_trusted_proxies_say_when_a_request_came(
    monkeypatch: pytest.MonkeyPatch, trusted: str, start: str | None, waited_s: float
) -> None:
    monkeypatch.setattr("server.access.guard.time", Clock(unix_s=1_700_000_001.0, monotonic_s=50.0))
    headers = {} if start is None else {"X-Request-Start": start}
    came = {"trusted_proxies": trusted, ARRIVED_S: 50.0}
    assert ask(headers, **came).caller.waited_s == waited_s
    assert ask(headers, kind="websocket", **came).caller.waited_s == 0.0, "its requests come later"


def test_what_a_request_waited_here_does_not_count_as_a_wait_at_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server adds both waits up. Behind a proxy with many clients, requests wait for their turns."""
    monkeypatch.setattr("server.access.guard.time", Clock(unix_s=1_700_000_001.0, monotonic_s=50.0))
    for waited_here_s, waited_s in ((0.25, 0.75), (0.75, 0.25), (1.5, 0.0)):
        came = {"trusted_proxies": "192.0.2.1", ARRIVED_S: 50.0 - waited_here_s}
        assert ask({"X-Request-Start": "t=1700000000"}, **came).caller.waited_s == waited_s


def test_an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client() -> None:
    assert ask(client=("::ffff:192.0.2.9", 4711)).caller == Caller("192.0.2.9")


@pytest.mark.parametrize(
    ("trusted", "address", "scheme"), [("", "192.0.2.1", "http"), ("192.0.2.0/24", "2001:db8::1", "https")]
)
def test_only_trusted_proxies_say_who_asks(trusted: str, address: str, scheme: str) -> None:
    headers = {"X-Forwarded-For": "2001:db8::1", "X-Forwarded-Proto": "https"}
    answer = ask(headers, trusted_proxies=trusted)
    assert answer.caller == Caller(address) and answer.seen is not None
    assert (answer.seen["client"], answer.seen["scheme"]) == ((address, 4711), scheme)
    socket = ask(headers, "websocket", trusted_proxies=trusted).seen
    assert socket is not None and socket["scheme"] == scheme.replace("http", "ws")


def test_the_proxy_next_to_the_server_says_the_scheme() -> None:
    """It appends to what came, and the client may have sent a header of its own."""
    headers = [("Host", "localhost"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Proto", "https")]
    seen = ask(headers, trusted_proxies="192.0.2.1").seen
    assert seen is not None and seen["scheme"] == "https"


def test_pages_of_other_origins_may_send_and_read_all_documented_headers() -> None:
    page = {"Origin": "https://app.example"}
    allowed = {"allowed_origins": "https://app.example"}
    read = ask(page, **allowed).headers["access-control-expose-headers"].split(", ")
    assert {*MapHeaders.__annotations__, JSON_LENGTH, "Retry-After", "traceresponse"} <= set(read)
    answer = ask({**page, **PREFLIGHT}, method="OPTIONS", **allowed)
    sent = answer.headers["access-control-allow-headers"].split(", ")
    documented = (
        (ROOT / "docs" / "protocol.md").read_text().partition("### Headers of a request")[2].partition("###")[0]
    )
    assert {"Content-Type", JSON_LENGTH, *re.findall(r"^\| `([\w-]+)` \|", documented, re.MULTILINE)} <= set(sent)
