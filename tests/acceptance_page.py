"""How fast the demo page is: from its load to moving masks, and from a turn of the dial to the changed picture.

pytest does not collect it. `python tests/acceptance_page.py` starts a server, opens the page in Chromium, prints
figures, and ends with status 1 if one of them is out of bounds. No other program should run, since server and browser
share the machine's cores.
"""

import argparse
import asyncio
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acceptance import ROOT, Server, verdict
from demo_page import CHROMIUM, FLAGS, PATIENCE_MS
from playwright.async_api import Browser, Page, async_playwright

LOAD_S = 2.0
"""The longest time from the page's load to its first moving mask."""
DIAL_MS = 50.0
"""The longest time from a turn of the dial to the changed picture."""
STEPS = 40
"""Turns of the dial from its end to its start; as many lead back."""

WATCH = """
  const watched = (window.watched = { masks_ms: [], turns_ms: [] });
  const shown = (note) => requestAnimationFrame(() => setTimeout(() => note(performance.now())));
  const put = CanvasRenderingContext2D.prototype.putImageData;
  let [first, count, moved_ms] = [null, 0, 0];
  CanvasRenderingContext2D.prototype.putImageData = function (image, ...place) {
    put.call(this, image, ...place);
    if (!this.canvas.matches("#anytime .mask")) return;
    count++;
    const moving = () => image.data.some((value, at) => value !== first[at]);
    if (watched.masks_ms.length === 0) first = image.data;
    else if (watched.masks_ms.length > 1 || !moving()) return;
    watched.masks_ms.push(0);
    const index = watched.masks_ms.length - 1;
    shown((now_ms) => (watched.masks_ms[index] = now_ms));
  };
  let before = 0;
  addEventListener("pointermove", ({ timeStamp }) => (moved_ms = timeStamp), true);
  addEventListener("input", () => (before = count), true);
  addEventListener("input", () => {
    const from_ms = moved_ms;
    if (count > before) shown((now_ms) => watched.turns_ms.push(now_ms - from_ms));
  });
"""
"""Notes when the screen shows the first mask and the first one that differs from it, in milliseconds since the load
began; and for each turn of the dial that paints another mask, how long after the pointer's move the screen shows it."""


@dataclass
class Traffic:
    """What a page sends: HTTP requests and messages of its sockets."""

    sent: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("request", lambda request: self.sent.append(request.url))
        page.on("websocket", lambda socket: socket.on("framesent", lambda _: self.sent.append(socket.url)))


async def opened(browser: Browser, url: str) -> tuple[Page, Traffic]:
    """The page, loaded by a browser that has nothing of it in its cache, with masks that move."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    page, traffic = await context.new_page(), Traffic()
    page.set_default_timeout(PATIENCE_MS)
    traffic.watch(page)
    await page.add_init_script(WATCH)
    await page.goto(url)
    await page.wait_for_function("() => watched.masks_ms.length > 1 && watched.masks_ms.every(Boolean)")
    return page, traffic


async def drag(page: Page, traffic: Traffic) -> tuple[list[float], int]:
    """Drag the dial from its end to its start and back.

    Returns the milliseconds of each turn that changed the picture, and how much the page sent meanwhile.
    """
    place = await page.locator("#deadline").bounding_box()
    assert place is not None
    shares = [1 - step / STEPS for step in range(STEPS + 1)]
    await page.mouse.move(place["x"] + place["width"] - 2, place["y"] + place["height"] / 2)
    await page.mouse.down()
    await page.evaluate("watched.turns_ms.length = 0")
    before = len(traffic.sent)
    for share in [*shares, *reversed(shares)]:
        await page.mouse.move(place["x"] + 2 + share * (place["width"] - 4), place["y"] + place["height"] / 2)
        await page.evaluate("new Promise(requestAnimationFrame)")
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    sent = len(traffic.sent) - before
    await page.mouse.up()
    return await page.evaluate("watched.turns_ms"), sent


def said(turns_ms: list[float]) -> str:
    if not turns_ms:
        return "no turn of the dial changed the picture"
    middle, worst = statistics.median(turns_ms), max(turns_ms)
    return f"{len(turns_ms)} turns changed the picture, after {middle:.0f} ms, at the latest {worst:.0f} ms"


async def check(args: argparse.Namespace) -> bool:
    async with Server(args.models) as server, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        url = f"http://localhost:{server.port}/"
        loads_s: list[list[float]] = []
        for _ in range(args.loads):
            page, traffic = await opened(browser, url)
            loads_s.append([ms / 1000 for ms in await page.evaluate("watched.masks_ms")])
            if len(loads_s) < args.loads:
                await page.context.close()
        print("seconds from the load to the first mask and to the one that differs from it:")
        print("  ", "; ".join(f"{first:.2f} and {moving:.2f}" for first, moving in loads_s))

        await page.wait_for_timeout(1000)  # the first frames take longest, for page and server alike
        clip_ms, _ = await drag(page, traffic)
        print(f"while the clip runs: {said(clip_ms)}")
        await page.get_by_role("button", name="Slow motion").click()
        await page.get_by_role("button", name="Pause").click()
        still_ms, sent = await drag(page, traffic)
        print(f"on a picture that is held: {said(still_ms)}; {sent} requests were sent meanwhile")
        await browser.close()
    turns_ms = [*clip_ms, *still_ms]
    in_time = all(moving <= LOAD_S for _, moving in loads_s)
    return in_time and bool(clip_ms and still_ms) and max(turns_ms) <= DIAL_MS and sent == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo", metavar="DIR")
    parser.add_argument("--loads", type=int, default=5, help="how often the page is loaded")
    args: Any = parser.parse_args()
    if CHROMIUM is None:
        print("no Chromium is installed; apt-get install chromium")
        return 2
    return verdict(asyncio.run(check(args)))


if __name__ == "__main__":
    sys.exit(main())
