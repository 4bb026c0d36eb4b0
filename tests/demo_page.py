"""The demo page in a browser, for the tests that drive it: a page under a strict policy, and what it shows."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tiny
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["quic", "background-networking", "component-update", "sync", "gpu"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
LOCAL = "--disable-features=LocalNetworkAccessChecks"
"""Chromium takes a page whose answer a test changed for one of another network."""
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{part}" for part in QUIET), *CAMERA, LOCAL]

PATIENCE_MS = 20_000
"""The longest wait for what must happen; only a test that fails reaches it."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; worker-src 'self' blob:; base-uri 'none'; form-action 'self'"
)
"""The page needs nothing that this Content-Security-Policy forbids."""


@contextmanager
def opened(
    browser: Browser,
    url: str,
    *,
    before: str = "",
    sent: list[dict[str, Any]] | None = None,
    prepare: Callable[[Page], None] = lambda _: None,
    late: bool = False,
    **options: Any,
) -> Iterator[Page]:
    """The page at `url` under `POLICY`, `prepare`d before it loads. `before` is JavaScript that runs in front of its
    own; the messages that its sockets send are added to `sent`.

    Fails if the page asks another host or logs an error; `late` forgives answers that a POST did not get in time.
    """
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    trouble: list[str] = []
    forgiven = ("status of 503", "status of 504") if late else ()

    def note(text: str) -> None:
        if not any(part in text for part in forgiven):
            trouble.append(text)

    page.on("console", lambda message: note(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((url, "blob:", "data:")) else trouble.append(sent.url))

    def restricted(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": POLICY})

    page.route(f"{url}/", restricted)
    prepare(page)
    page.add_init_script(before)

    def hear(frame: str | bytes) -> None:
        if isinstance(frame, str) and sent is not None:
            sent.append(json.loads(frame))

    page.on("websocket", lambda socket: socket.on("framesent", hear))
    try:
        page.goto(f"{url}/")
        expect(page.locator("#timeline button")).to_have_count(4)
        yield page
    finally:
        page.close()
    assert trouble == [], trouble


TIMES_S = (0.0001, 0.01, 0.1, 5.0)


def timed(page: Page) -> None:
    """Let the exits of `tiny-segmentation` take `TIMES_S` as far as the page knows: its dial then reaches from what no
    exit can meet to what all can."""

    def answer(route: Route) -> None:
        body = route.fetch().json()
        exits = [{**found, "seconds": second} for found, second in zip(body["exits"], TIMES_S, strict=True)]
        route.fulfill(json={**body, "exits": exits, "learnt": []})

    page.route("**/v1/models/tiny-segmentation", answer)


def plays(page: Page) -> None:
    """Waits until a mask of the clip is on the stage; gives it all the time that the dial has."""
    expect(page.locator("body[data-state=live]")).to_be_attached()
    turn(page, 1000)
    expect(page.locator("#anytime .badge")).to_be_visible()


def upload(page: Page, data: bytes, name: str = "photo.png") -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def photo(height: int = 120, width: int = 160) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tiny.image(height, width)).save(file, "PNG")
    return file.getvalue()


def finished(page: Page) -> None:
    expect(page.locator("body[data-state=done]")).to_be_attached()


def pixels(page: Page, selector: str) -> NDArray[np.uint8]:
    """A canvas, uint8 (H, W, 4)."""
    url = page.locator(selector).evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGBA"))


def colours(array: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    """The distinct colours of an RGBA array."""
    return {tuple(map(int, value.tobytes())) for value in np.unique(np.ascontiguousarray(array).view(np.uint32))}


def turn(page: Page, position: int, *, release: bool = True) -> None:
    """Turn the dial to a position of 0 to 1000."""
    events = ["input", "change"] if release else ["input"]
    page.locator("#deadline").evaluate(
        "(dial, [position, events]) => { dial.value = position;"
        " for (const event of events) dial.dispatchEvent(new Event(event, { bubbles: true })); }",
        [position, events],
    )


def choose(page: Page, selector: str, value: str) -> None:
    """Choose an option, unless it is chosen."""
    if page.locator(selector).input_value() != value:
        page.locator(selector).select_option(value)
