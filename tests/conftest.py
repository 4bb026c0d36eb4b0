"""One compute thread for tests: the networks are tiny, and results must not depend on how busy the machine is."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the worker processes that tests start
os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, by whichever test comes first

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has a command in the background ignore it


@pytest.fixture(scope="session")
def live_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server with `tiny-segmentation` (the default) and `tiny-pose`, its worker a process of its own."""
    import live  # noqa: PLC0415 - loads torch and the server, which many tests do without

    folder = live.write_models(tmp_path_factory.mktemp("models"))
    with live.serving(live.settings(folder, default_model="tiny-segmentation", shared_memory_bytes=2**28)) as server:
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        yield server.url


@pytest.fixture(scope="module")
def run(live_url: str) -> Iterator[Callable[[str], Any]]:
    """Evaluates JavaScript in a browser, with `load(name)` to import a module of the page."""
    from demo_page import CHROMIUM, FLAGS  # noqa: PLC0415 - see `live_url`
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(f"{live_url}/health/live")
        yield lambda code: page.evaluate(
            f"async () => {{ const load = (name) => import(`/static/${{name}}.js`); {code} }}"
        )
        browser.close()


@pytest.fixture(scope="module")
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A live server, and its worker, which the tests of a module play. `SETTINGS` of the module are the server's."""
    import live  # noqa: PLC0415 - see `live_url`

    settings = {"default_model": "tiny-segmentation", **getattr(request.module, "SETTINGS", {})}
    with live.scripted(live.write_configs(tmp_path_factory.mktemp("models")), **settings) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        yield server, worker


@pytest.fixture
def server(started: tuple[Any, Any]) -> Iterator[Any]:
    """The server of `started`. A test leaves nothing behind: no socket, request, memory or unheard command."""
    found, worker = started
    yield found
    found.wait_for(lambda: found.metric("anytime_shared_memory_bytes") == 0)
    found.wait_for(lambda: found.metric("anytime_websocket_connections") == 0)
    assert found.metric("anytime_inflight_requests") == 0
    assert found.metric("anytime_queue_depth") == 0
    assert worker.hears_nothing()


@pytest.fixture
def worker(started: tuple[Any, Any]) -> Any:
    """The worker of `started`."""
    return started[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live_url: str) -> Path:
    """What the documents speak of: a folder with a photo, a drive and an animation; a camera of two frames; a key."""
    import pages  # noqa: PLC0415 - see `live_url`
    import tiny  # noqa: PLC0415
    from adpc_client import pace, video  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADPC_URL", live_url)
    monkeypatch.setenv("ADPC_KEY", "robot-7.secret")
    small = Image.fromarray(tiny.image())
    shipped = Path("models/zoo", pages.TINY)
    for folder in (shipped, Path("drive")):
        folder.mkdir(parents=True)
    for name in ("street.jpg", "photo.jpg", "drive/1.jpg", "drive/2.jpg", shipped / "street.jpg"):
        small.save(name)
    small.save("clip.gif", save_all=True, append_images=[small.rotate(90)])
    monkeypatch.setattr(pace, "UNKNOWN_S", pages.LONG_S)
    monkeypatch.setattr(video, "_read_live", lambda *_, **__: iter([tiny.image(), tiny.image(seed=1)]))
    return tmp_path


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event that is set once an image is being decoded, which then takes until the test is over."""
    from hosts import HOST, IN_PROCESS  # noqa: PLC0415 - see `live_url`
    from live import PATIENCE_S  # noqa: PLC0415

    from server.decoding.decode import decode  # noqa: PLC0415

    if HOST == "ray":
        pytest.skip(IN_PROCESS)
    begun, over = threading.Event(), threading.Event()

    def slowly(*given: object) -> object:
        begun.set()
        over.wait(PATIENCE_S)
        return decode(*given)

    monkeypatch.setattr("server.decoding.__main__.decode", slowly)
    yield begun
    over.set()
