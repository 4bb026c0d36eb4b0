"""What pages of other sites can do to a server on the visitor's own machine, in a real browser."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import live
import pytest
from live import Live
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.types import Scope
from test_demo_page import CHROMIUM, FLAGS

from server.access import guard
from server.access.guard import Fields, _refuse
from server.errors import ServerError

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

REBOUND = "rebound.test"
"""A stranger's name, which the browser takes for the address of this machine."""

OPEN_NETWORK = "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets"
"""Chromium's own protection of this machine, which other browsers lack."""

SEND = {
    "text": "fetch(url, {method: 'POST', mode: 'no-cors', headers: {'Content-Type': 'text/plain'}, body: 'x'})",
    "form": "fetch(url, {method: 'POST', mode: 'no-cors', body: form()})",
    "beacon": "navigator.sendBeacon(url, 'x')",
}
FORM = "const form = () => { const made = new FormData(); made.append('image', new Blob(['x'])); return made; }"
STREAM = """url => new Promise(done => {
    const socket = new WebSocket(url.replace("http", "ws") + "/v1/stream");
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
})"""
READ = "url => fetch(url + '/v1/models').then(answer => answer.status, () => 'refused')"
EMBED = """url => new Promise(done => {
    const picture = new Image();
    picture.onload = () => done("shown");
    picture.onerror = () => done("refused");
    picture.src = url + "/static/icon.svg";
})"""


class StrangersSite(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A stranger's page</title>")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live.scripted(live.write_configs(tmp_path_factory.mktemp("models"))) as (found, next_worker):
        next_worker()
        yield found


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The method and the error's code of each refusal by the guard; browsers do not tell pages of it."""
    found: list[tuple[str, str]] = []

    async def noted(error: ServerError, fields: Fields, scope: Scope, *rest: Any) -> None:
        found.append((scope.get("method", "websocket"), error.code))
        await _refuse(error, fields, scope, *rest)

    monkeypatch.setattr(guard, "_refuse", noted)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, OPEN_NETWORK, rules])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    found = browser.new_page()
    yield found
    found.close()


@pytest.fixture
def stranger(page: Page) -> Iterator[Page]:
    """A page of another port, which is another origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), StrangersSite) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        page.goto(f"http://127.0.0.1:{site.server_port}")
        yield page
        page.goto("about:blank")
        site.shutdown()
        thread.join()


def test_a_page_of_the_server_streams_and_reads(server: Live, page: Page) -> None:
    page.goto(server.url)
    assert [page.evaluate(script, server.url) for script in (STREAM, READ, EMBED)] == ["open", 200, "shown"]


def test_a_page_of_a_stranger_neither_streams_nor_reads(
    server: Live, stranger: Page, refused: list[tuple[str, str]]
) -> None:
    assert [stranger.evaluate(script, server.url) for script in (STREAM, READ, EMBED)] == ["refused"] * 3
    assert refused == [("websocket", "foreign_origin"), ("GET", "foreign_origin")]


@pytest.mark.parametrize("kind", SEND)
def test_a_page_of_a_stranger_runs_no_request(
    server: Live, stranger: Page, refused: list[tuple[str, str]], kind: str
) -> None:
    stranger.evaluate(f"url => {{ {FORM}; {SEND[kind]}; }}", f"{server.url}/v1/predict")
    server.wait_for(lambda: refused == [("POST", "foreign_origin")])


def test_a_page_of_a_stranger_frames_nothing(server: Live, stranger: Page) -> None:
    for path in ("/", "/docs", "/v1/models"):
        with stranger.expect_response(f"{server.url}{path}"):
            stranger.set_content(f"<iframe src='{server.url}{path}'></iframe>")
        stranger.frames[1].wait_for_url("chrome-error://**")


def test_a_name_that_was_rebound_reads_and_streams_nothing(
    server: Live, page: Page, refused: list[tuple[str, str]]
) -> None:
    url = f"http://{REBOUND}:{server.port}"
    page.route(f"{url}/", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto(url)  # the stranger's page, before the name changes its address
    assert page.evaluate("location.origin") == url
    assert [page.evaluate(script, url) for script in (STREAM, READ)] == ["refused", 421]
    assert set(refused) == {("websocket", "unknown_host"), ("GET", "unknown_host")}
    page.unroute(f"{url}/")
    answer = page.goto(url)
    assert answer is not None and answer.status == 421
    assert "--allowed-hosts rebound.test" in answer.text()


def test_the_description_of_the_api_comes_from_the_server_alone(server: Live, page: Page) -> None:
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith(server.url) else trouble.append(sent.url))
    page.goto(f"{server.url}/docs")
    expect(page.locator("#swagger-ui")).to_contain_text("/v1/predict")
    assert trouble == []
