"""The real server with tiny models, as a process of its own on a free port: for tests that look from outside."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny
from adpc_client import Client

from models.checkpoint import save_directory

ROOT = Path(__file__).parent.parent
START_S = 60.0


@contextmanager
def live_server(folder: Path) -> Iterator[str]:
    """The URL of a server that is ready, with `tiny-pose` and `tiny-segmentation` (its default) from `folder`."""
    for config in (tiny.SEGMENTATION, tiny.POSE):
        save_directory(folder / config.name, tiny.network(config))
    command = [sys.executable, "-m", "server", "--port", "0", "--models", str(folder), "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--default-model", tiny.SEGMENTATION.name],
        cwd=ROOT,
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    log: list[str] = []
    try:
        url = ""
        while not url:
            line = process.stdout.readline()
            assert line, f"the server exited with status {process.wait()}:\n{''.join(log)}"
            log.append(line)
            found = re.search(r"running on (http://\S+)", line)
            url = found[1] if found else ""
        threading.Thread(target=lambda: log.extend(process.stdout or ()), daemon=True).start()
        _wait_until_ready(url, log)
        yield url
    finally:
        process.terminate()
        process.wait(START_S)
        process.stdout.close()


def _wait_until_ready(url: str, log: list[str]) -> None:
    deadline_s = time.monotonic() + START_S
    with Client(url) as client:
        while not client.ready():
            assert time.monotonic() < deadline_s, f"not ready after {START_S:g} s:\n{''.join(log)}"
            time.sleep(0.05)
