"""The server behind a real nginx, with the site of deploy/nginx: what a proxy can spoil.

pytest does not collect it. `python tests/acceptance_nginx.py` needs nginx and Chromium; the models are tiny. A second
site passes no WebSocket on.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import live
from acceptance import ROOT
from adpc_client import AsyncClient
from demo_page import CHROMIUM, FLAGS
from hosts import free_port
from playwright.async_api import async_playwright, expect

PREFIX = "/anytime"
ELSEWHERE = "127.0.0.2"
DEADLINE_MS = 300
PATIENCE_S = 60.0
MAIN = """daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/anytime.conf;
}}
"""


@contextmanager
def behind_nginx(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """The address of the site, that of one without WebSockets, and the log of the server behind both."""
    port, public, plain, log = free_port(), free_port(), free_port(), folder / "server.log"
    site = (ROOT / "deploy" / "nginx" / "anytime.conf").read_text()
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("listen 8080", f"listen 127.0.0.1:{public}")
    site += without_websockets(site).replace(f"127.0.0.1:{public}", f"127.0.0.1:{plain}")
    (folder / "anytime.conf").write_text(site)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    (folder / "models").mkdir()
    flags = ["--port", str(port), "--models", str(live.write_models(folder / "models")), "--root-path", PREFIX]
    flags += ["--default-model", "tiny-segmentation", "--trusted-proxies", "127.0.0.1", "--threads", "1"]
    flags += ["--access-log", "--log-format", "json"]
    nginx = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with log.open("w") as file:
        started = [
            subprocess.Popen([sys.executable, "-m", "server", *flags], cwd=ROOT, stderr=file),
            subprocess.Popen(nginx),
        ]
    try:
        yield f"http://127.0.0.1:{public}{PREFIX}", f"http://127.0.0.1:{plain}{PREFIX}", log
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def without_websockets(site: str) -> str:
    """The server block of a site, as somebody writes it who has never heard of WebSockets."""
    lines = site[site.index("\nserver {") :].splitlines(keepends=True)
    return "".join(line for line in lines if "Upgrade" not in line and "Connection" not in line)


async def page_says(address: str) -> str:
    """What the page says once masks move on it; fails if it asks for anything outside of its prefix."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page, stray = await browser.new_page(), []
        allowed = (f"{address}/", "blob:", "data:")
        page.on("request", lambda sent: None if sent.url.startswith(allowed) else stray.append(sent.url))
        await page.goto(f"{address}/")
        await expect(page.locator("#timeline")).to_contain_text("% of frames", timeout=1000 * PATIENCE_S)
        said = await page.locator("#status").inner_text()
        await browser.close()
    assert stray == [], stray
    return said


async def ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if (await http.get("/health/ready")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def slow_upload(address: httpx.URL, image: bytes) -> tuple[bytes, float]:
    """What a client is told whose image comes too slowly, and after how many milliseconds."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    began_s = time.monotonic()
    target = f"{PREFIX}/v1/predict?deadline_ms={DEADLINE_MS}"
    writer.write(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n".encode())
    answer = asyncio.create_task(reader.readuntil(b"}"))
    for byte in image:
        writer.write(bytes([byte]))
        await asyncio.wait([answer], timeout=0.02)
        if answer.done():
            break
    told_ms = 1000 * (time.monotonic() - began_s)
    writer.transport.abort()
    return await answer, told_ms


async def stream(http: httpx.AsyncClient, image: bytes) -> float:
    """Milliseconds from the first event to the last."""
    came_s = []
    asked = http.stream("POST", "/v1/predict", content=image, headers={"Accept": "text/event-stream"})
    async with asked as answer:
        came_s = [time.monotonic() async for line in answer.aiter_lines() if line.startswith("event: ")]
    return 1000 * (came_s[-1] - came_s[0])


async def check(address: str, plain: str, log: Path) -> dict[str, bool]:
    """What was tried, and whether it worked. `plain`: of the site without WebSockets; `log`: of the server."""
    image, large = live.photo(), live.photo(960, 1280)
    transport = httpx.AsyncHTTPTransport(local_address=ELSEWHERE)
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE_S, transport=transport) as http:
        await ready(http)
        page = await http.get("/")
        file = await http.get("/static/docs.js")
        answer = await http.post("/v1/predict?deadline_ms=20000", content=image, headers={"X-Request-Id": "seen"})
        told, told_ms = await slow_upload(http.base_url, image)
        spread_ms = await stream(http, large)
    async with AsyncClient(address) as client, client.stream(image, deadline_ms=20_000) as exits:
        exits_seen = [found.exit async for found in exits]  # the newest one, if several are ready
    said, said_without = await page_says(address), await page_says(plain)
    text = await asyncio.to_thread(log.read_text)
    lines = [json.loads(line) for line in text.splitlines() if '"seen"' in line]
    print(f"a slow upload with {DEADLINE_MS} ms is answered after {told_ms:.0f} ms")
    print(f"events come over {spread_ms:.0f} ms; a socket got the exits {exits_seen}")
    return {
        "page": page.is_success and "<html" in page.text and file.is_success,
        "page in a browser": "No WebSocket" not in said,
        "page without WebSockets": "No WebSocket" in said_without,
        "POST": answer.is_success and answer.json()["stop"] == "complete",
        "WebSocket": exits_seen[-1:] == [4],
        "events come one by one": spread_ms > 1,
        "client's address": [line["client"] for line in lines] == [ELSEWHERE],
        "deadline with a slow upload": b'"no_exit"' in told and told_ms < DEADLINE_MS + 200,
    }


def main() -> int:
    if shutil.which("nginx") is None or CHROMIUM is None:
        print("nginx or Chromium is not installed; apt-get install nginx-light chromium")
        return 2
    with tempfile.TemporaryDirectory() as folder, behind_nginx(Path(folder)) as (address, plain, log):
        found = asyncio.run(check(address, plain, log))
    for what, good in found.items():
        print(f"{'ok    ' if good else 'FAILED'} {what}")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
