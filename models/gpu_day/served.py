"""The server that a stage tries: it starts on a free port, serves tiny or shipped models, and loses its worker."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from models.gpu_day.stages import ROOT

MODEL = "camvid-adpc-w18"


@contextlib.contextmanager
def served(models: Path, device: str, executor: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Starts a server on a free port; yields its process and the port. Its log goes to standard error."""
    command = [sys.executable, "-m", "server", "--port", "0", "--models", str(models), "--device", device]
    process = subprocess.Popen(
        [*command, "--executor", executor], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    try:
        for text in process.stderr:
            sys.stderr.write(text)
            if "running on" in text:
                port = int(text.split("(")[0].rsplit(":", 1)[1])
                break
        else:
            raise RuntimeError(f"the server ended with status {process.wait()} before it listened, see the log")
        threading.Thread(target=shutil.copyfileobj, args=(process.stderr, sys.stderr), daemon=True).start()
        yield process, port
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_tiny(directory: Path) -> None:
    """Writes a model directory with a tiny network of random weights."""
    from models.checkpoint import save_directory  # noqa: PLC0415 - only the dry run needs it
    from models.gpu_day.cases import TINY, network  # noqa: PLC0415 - only the dry run needs it
    from models.network.adpc_configs import AdpcConfig  # noqa: PLC0415 - only the dry run needs it
    from models.network.families import CONFIGS  # noqa: PLC0415 - only the dry run needs it

    shipped = CONFIGS[MODEL]
    assert isinstance(shipped, AdpcConfig)
    config = replace(shipped, backbone=TINY, head_channels=8, size=(64, 96))
    save_directory(directory, network(config, "cpu"))


def kill_worker(server: int) -> None:
    """Kill the worker that the process `server` started. Raises RuntimeError if there is none."""
    for found in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a process may end meanwhile
            parent = int(found.read_text().rpartition(")")[2].split()[1])
            if parent == server and b"server.worker" in (found.parent / "cmdline").read_bytes():
                os.kill(int(found.parent.name), signal.SIGKILL)
                return
    raise RuntimeError(f"the server, process {server}, has no worker to kill")
