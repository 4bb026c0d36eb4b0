"""The whole server as a process, with real models: `python -m server`."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
import live
import numpy as np
import pytest
import tiny
from live import Later
from websockets.sync.client import connect

from models.anytime import run
from models.directory import fingerprint
from models.executors.selection import build
from models.quality import Quality, uncertainty
from server.worker.__main__ import EXPENDABLE, NICE

ROOT = Path(__file__).parent.parent
SEGMENTATION = tiny.SEGMENTATION.name
PREDICT = f"/v1/predict?model={SEGMENTATION}&deadline_ms=30000"


BOUNDS = (0.1, 0.2, 0.3, 0.4)


@cache
def uncertainties() -> tuple[float, ...]:
    """The uncertainty at every exit for the image of `live.photo`."""
    model = build(tiny.network())
    found = [
        uncertainty(state.exit, "segmentation", state.frame) for state, _ in run(model, tiny.image()) if state.exit
    ]
    return tuple(found)


class Process:
    """`python -m server` on a free port, with its log at hand."""

    def __init__(self, models: Path, log: Path, device: str) -> None:
        command = [sys.executable, "-m", "server", "--port", "0", "--models", str(models), "--device", device]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stderr=file, env={**os.environ, "ANYTIME_DRAIN_MS": "9000", "ANYTIME_THREADS": "2"}
            )
        self._log = log
        live.wait_for(lambda: "running on" in log.read_text() or self.process.poll() is not None)
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found, log.read_text()
        self.port = int(found[1])
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def wait_until_ready(self) -> None:
        """Wait until every worker can serve."""
        live.wait_for(lambda: all(device["ready"] for device in self.http.get("/health/ready").json()["devices"]))

    @property
    def children(self) -> list[int]:
        """The process ids of all that the server has started, the oldest first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in children.read_text().split()]

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers, the oldest first."""
        return [child for child in self.children if b"server.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@contextmanager
def process(models: Path, log: Path, device: str = "cpu") -> Iterator[Process]:
    found = Process(models, log, device)
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.http.close()
        found.process.kill()
        found.process.wait()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = live.write_models(tmp_path_factory.mktemp("models"))
    directory = folder / SEGMENTATION
    steps = [(bound, value + 1e-4) for bound, value in zip(BOUNDS, sorted(uncertainties()), strict=True)]
    Quality(tuple(steps), 30, "val", fingerprint(directory)).save(directory)
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with two workers."""
    with process(models, tmp_path_factory.mktemp("log") / "log", device="cpu,cpu") as found:
        yield found


def test_the_map_of_an_exit_is_the_same_over_every_way(server: Process) -> None:
    model = build(tiny.network())
    expected = [found.array for _, found in run(model, tiny.image())]
    assert len({array.tobytes() for array in expected}) == 4
    for exit_index, array in enumerate(expected, 1):
        query = {"model": SEGMENTATION, "max_exit": exit_index, "deadline_ms": 30000}
        headers = {"Accept": "application/octet-stream"}
        reply = server.http.post("/v1/predict", params=query, content=live.photo(), headers=headers)
        assert reply.content == array.tobytes() and reply.headers["x-anytime-exit"] == str(exit_index)
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as connection:
        asked = {"model": SEGMENTATION, "deadline_ms": 30000}
        for encoding in ("raw", "delta", "png"):
            held = np.zeros((60, 90), np.uint8)
            connection.send(json.dumps({"type": "predict", "id": "a", **asked, "encoding": encoding}))
            connection.send(live.photo())
            while (message := json.loads(connection.recv(60)))["type"] != "end":
                if message["type"] == "exit":
                    held = live.decoded(encoding, connection.recv(60), held)
                    assert (held == expected[message["exit"] - 1]).all()
            assert message["exit"] == 4


def test_keypoints_are_those_of_the_model(server: Process) -> None:
    model = build(tiny.network(tiny.POSE))
    *_, (_, found) = run(model, tiny.image(), (10.0, 5.0, 40.0, 50.0))
    reply = server.http.post(
        "/v1/predict", params={"model": "tiny-pose", "box": "10,5,40,50", "deadline_ms": 30000}, content=live.photo()
    )
    assert np.array_equal(np.array(reply.json()["keypoints"], np.float32), found.array)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (33, 31), (128, 128)])
def test_maps_have_the_size_of_the_image(server: Process, size: tuple[int, int]) -> None:
    for extra in ("confidence", "exit", "unsure"):
        body = server.http.post(f"{PREDICT}&map={extra}", content=live.photo(*size)).json()
        assert body["size"] == list(size) and body["exit"] == 4 and body["map"]["kind"] == extra


@pytest.mark.parametrize("quality", [0.05, 0.1, 0.25, 0.35, 0.9])
def test_quality_stops_at_the_first_exit_that_is_sure_enough(server: Process, quality: float) -> None:
    """The k-th bound of the fixture's calibration allows the exits of the k smallest uncertainties."""
    below = [*sorted(uncertainties())[: sum(bound <= quality for bound in BOUNDS)]]
    expected = next((exit_ for exit_, value in enumerate(uncertainties(), 1) if value in below), 4)
    stop = "quality" if expected < 4 else "complete"
    assert server.http.get(f"/v1/models/{SEGMENTATION}").json()["quality"] is True

    def counted(protocol: str) -> float:
        labels = f'model="{SEGMENTATION}",protocol="{protocol}",stop="{stop}"'
        found = re.search(rf"anytime_requests_total{{{labels}}} (\S+)", server.http.get("/metrics").text)
        assert found
        return float(found[1])

    before = counted("http"), counted("websocket")
    reply = server.http.post(f"{PREDICT}&quality={quality}", content=live.photo()).json()
    assert (reply["exit"], reply["stop"], reply["final"]) == (expected, stop, expected == 4)
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as connection:
        asked = {"model": SEGMENTATION, "deadline_ms": 30000, "quality": quality, "encoding": "json"}
        connection.send(json.dumps({"type": "predict", "id": "a", **asked}))
        connection.send(live.photo())
        while (message := json.loads(connection.recv(60)))["type"] != "end":
            assert message["type"] in ("accepted", "exit")
        assert (message["exit"], message["stop"]) == (expected, stop)
    live.wait_for(lambda: counted("websocket") == before[1] + 1)
    assert counted("http") == before[0] + 1


def test_min_exit_goes_before_quality_and_a_model_without_calibration_refuses_it(server: Process) -> None:
    reply = server.http.post(f"{PREDICT}&quality=0.9&min_exit=3", content=live.photo()).json()
    assert (reply["exit"], reply["stop"]) == (3, "quality")
    reply = server.http.post("/v1/predict?model=tiny-pose&quality=0.9", content=live.photo())
    assert reply.status_code == 400 and reply.json()["code"] == "not_calibrated"


def test_cost_and_saving_are_counted(server: Process) -> None:
    server.http.post(PREDICT, content=live.photo(64, 96))
    text = server.http.get("/metrics").text
    macs = {m[1]: float(m[2]) for m in re.finditer(rf'anytime_(macs\w*)_total{{model="{SEGMENTATION}"}} (\S+)', text)}
    assert macs["macs"] > 0 and macs["macs_saved"] > 0
    exits = server.http.get(f"/v1/models/{SEGMENTATION}").json()["exits"]
    assert [found["exit"] for found in exits] == [1, 2, 3, 4]
    assert all(found["seconds"] > 0 and found["gmacs"] >= 0 for found in exits)


def test_a_worker_that_is_killed_under_load_costs_only_its_own_requests(server: Process) -> None:
    calls = [Later(lambda: server.http.post(PREDICT, content=live.photo(480, 640))) for _ in range(6)]
    live.wait_for(lambda: "anytime_inflight_requests 6.0" in server.http.get("/metrics").text)
    os.kill(server.workers[0], signal.SIGKILL)
    replies = [call.result() for call in calls]
    assert {reply.status_code for reply in replies} <= {200, 503}
    assert all(reply.json()["code"] == "worker_lost" for reply in replies if reply.status_code == 503)
    assert sum(reply.status_code == 200 for reply in replies) >= 3  # those of the other worker
    server.wait_until_ready()
    reply = server.http.post(PREDICT, content=live.photo())
    assert reply.status_code == 200 and reply.json()["exit"] == 4
    text = server.http.get("/metrics").text
    assert "anytime_worker_restarts_total 1.0" in text and "anytime_shared_memory_bytes 0.0" in text
    assert all(f'anytime_worker_up{{device="cpu:{number}"}} 1.0' in text for number in range(2))


def test_sigterm_finishes_what_is_open_and_leaves_no_process(models: Path, tmp_path: Path) -> None:
    with process(models, tmp_path / "log") as server:
        children = server.children
        assert len(children) >= 4  # the worker, and the decoding processes
        worker = server.workers[0]
        assert int(Path(f"/proc/{worker}/oom_score_adj").read_text()) == EXPENDABLE
        assert os.getpriority(os.PRIO_PROCESS, worker) >= NICE
        for number in (signal.SIGTERM, signal.SIGINT):  # both reach the whole process group
            os.kill(worker, number)
        query = f"/v1/predict?model={SEGMENTATION}&deadline_ms=8000"
        call = Later(lambda: server.http.post(query, content=live.photo(480, 640)))
        live.wait_for(lambda: "anytime_inflight_requests 1.0" in server.http.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        assert call.result().status_code == 200
        assert server.process.wait(live.PATIENCE_S) == 0
        live.wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_models_that_cannot_be_loaded_end_the_server(tmp_path: Path) -> None:
    folder = live.write_configs(tmp_path)
    command = [sys.executable, "-m", "server", "--port", "0", "--models", str(folder)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1 and "model.safetensors" in found.stderr


def test_the_front_end_never_imports_torch() -> None:
    code = "import server.__main__, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_another_models_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import models; sys.path[0] = {str(ROOT)!r}; import server"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and "another package called `models`" in found.stderr
