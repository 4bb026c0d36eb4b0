"""The application on the ASGI servers of others: what it needs of a host is in the standard.

`ASGI_HOST=uvicorn` runs all tests of HTTP and WebSocket on such a host; here are those that show the most.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import live
import pytest
import test_http
import test_stream
import tiny
from fastapi import FastAPI
from live import Live, ScriptedWorker

from server.app import create_app
from server.engine.messages import LoadPlan, Unloadable

SEGMENTATION = tiny.SEGMENTATION.name

SHOWN: tuple[Callable[[Live, ScriptedWorker], None], ...] = (
    test_http.test_a_prediction_in_json,
    test_http.test_the_engine_answers_at_the_deadline_with_the_exit_it_has,
    test_http.test_cancelling_by_id,
    test_http.test_hanging_up_cancels,
    test_stream.test_many_requests_on_one_socket,
    test_stream.test_cancelling,
    test_stream.test_hanging_up_cancels_everything,
)


@pytest.fixture(scope="module", params=["uvicorn", "hypercorn"])
def hosted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Live, ScriptedWorker]]:
    folder = live.write_configs(tmp_path_factory.mktemp("models"))
    with live.scripted(folder, request.param, default_model=SEGMENTATION) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        yield server, worker


@pytest.mark.parametrize("shown", SHOWN)
def test_a_host_of_others(hosted: tuple[Live, ScriptedWorker], shown: Callable[[Live, ScriptedWorker], None]) -> None:
    shown(*hosted)


class Started:
    """An application whose start-up has begun, with a worker that the test plays."""

    def __init__(self, folder: Path, **fields: object) -> None:
        self.app = create_app(live.settings(folder, **fields), launch=self._launch)
        self.workers: list[ScriptedWorker] = []
        self._lifespan: AbstractAsyncContextManager[object] = self.app.router.lifespan_context(self.app)
        self.up = asyncio.ensure_future(self._lifespan.__aenter__())

    def _launch(self, plan: LoadPlan) -> ScriptedWorker:
        self.workers.append(ScriptedWorker(plan))
        return self.workers[-1]

    async def shut_down(self) -> None:
        await self._lifespan.__aexit__(None, None, None)


def test_start_up_waits_for_a_worker_and_shut_down_for_the_open_requests(tmp_path: Path) -> None:
    async def run() -> None:
        started = Started(live.write_configs(tmp_path))
        service = started.app.state.service
        await live.until(lambda: started.workers)
        assert not started.up.done()
        started.workers[0].say_ready()
        await started.up
        assert service.engine.readiness()["ready"]
        with service.registry.open("http", 0.0):
            down = asyncio.ensure_future(started.shut_down())
            await live.until(lambda: service.engine.draining)
            assert not down.done() and not started.workers[0].killed
        await down
        assert started.workers[0].killed

    asyncio.run(run())


def test_start_up_fails_if_the_models_cannot_be_loaded(tmp_path: Path) -> None:
    async def run() -> None:
        started = Started(live.write_configs(tmp_path))
        await live.until(lambda: started.workers)
        started.workers[0].say(Unloadable("the weights are not there"))
        with pytest.raises(ValueError, match="cannot be loaded: the weights are not there"):
            await started.up
        assert started.workers[0].killed

    asyncio.run(run())


def test_without_arguments_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYTIME_MODELS", str(live.write_configs(tmp_path)))
    monkeypatch.setenv("ANYTIME_MAX_OPEN", "7")
    settings = create_app().state.service.settings
    assert (settings.models, settings.max_open) == (tmp_path, 7)
    monkeypatch.setenv("ANYTIME_TRAFFIC_CAP", "8:3,6:5")
    with pytest.raises(ValueError, match=r"8 requests are never open; .*; .*no model has an exit 5"):
        create_app()


def ask(app: FastAPI, method: str, path: str, **given: object) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **given)  # type: ignore[arg-type]

    return asyncio.run(send())


@pytest.mark.parametrize("stripped", [True, False])
def test_a_proxy_may_strip_the_root_path_or_not(tmp_path: Path, stripped: bool) -> None:
    app = create_app(live.settings(live.write_configs(tmp_path), root_path="/anytime"))
    prefix = "" if stripped else "/anytime"
    assert ask(app, "GET", f"{prefix}/v1/models").json()["default"] == "tiny-pose"
    assert ask(app, "POST", f"{prefix}/v1/predict").json()["code"] == "starting"
    assert ask(app, "GET", f"{prefix}/static/index.html").is_success
    for path in ("/docs", "/docs/swagger-ui.css", "/openapi.json"):  # the page's links are relative
        assert ask(app, "GET", f"{prefix}{path}").is_success


@pytest.mark.parametrize(
    ("asked", "location"),
    [
        ("/anytime", "/anytime/"),
        ("/anytime?a=b", "/anytime/?a=b"),
        ("/anytime/v1/models/", "/anytime/v1/models"),
        ("/v1/models/", "/anytime/v1/models"),
    ],
)
def test_redirects_name_no_host_and_keep_the_root_path(tmp_path: Path, asked: str, location: str) -> None:
    app = create_app(live.settings(live.write_configs(tmp_path), root_path="/anytime"))
    answer = ask(app, "GET", asked)
    assert (answer.status_code, answer.headers["location"]) == (307, location)


@pytest.mark.parametrize("path", ["/", "/static/index.html"])
def test_the_page_is_kept_and_asked_for_again(tmp_path: Path, path: str) -> None:
    app = create_app(live.settings(live.write_configs(tmp_path)))
    page = ask(app, "GET", path)
    assert page.is_success and page.headers["cache-control"] == "no-cache" and page.headers["last-modified"]
    again = ask(app, "GET", path, headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", "no-cache")
