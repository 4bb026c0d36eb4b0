"""The examples of the client run as they stand, against the real server."""

import json
import re
import runpy
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import tiny
from adpc_client import Client
from pages import LONG_S, ROOT

EXAMPLES = ROOT / "clients" / "examples"
STREET = ROOT / "models" / "zoo" / "camvid-adpc-w18" / "street.jpg"


def run(path, *arguments):
    """Load an example, and run its `main` if there are arguments."""
    module = ModuleType(path.stem)
    exec(compile(path.read_text(), path.name, "exec"), module.__dict__)
    if arguments:
        module.main(*arguments)
    return module


def test_every_cell_of_the_notebook_runs(place, live_url, monkeypatch, capsys):
    copy = place / "clients" / "examples"
    copy.mkdir(parents=True)
    zoo = place / "models" / "zoo" / "camvid-adpc-w18"
    zoo.mkdir(parents=True)
    shutil.copy(place / "street.jpg", zoo)
    monkeypatch.chdir(copy)
    variables = {}
    cells = json.loads((EXAMPLES / "first_mask.ipynb").read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), variables)
    assert variables["found"]._repr_png_().startswith(b"\x89PNG")
    assert "exit 4: " in capsys.readouterr().out
    assert STREET.exists()  # which the notebook names


def test_the_plain_protocol(place, live_url, capsys):
    run(EXAMPLES / "plain_protocol.py", "street.jpg", live_url)
    shown, mask = capsys.readouterr().out, Path("street-mask.png")
    assert mask.stat().st_size and "exit 4 after" in shown and "the mask is in street-mask.png" in shown
    mask.write_text("mine")
    with pytest.raises(SystemExit, match=r"street-mask\.png is there already"):
        run(EXAMPLES / "plain_protocol.py", "street.jpg", live_url)
    assert mask.read_text() == "mine"


def test_the_plain_protocol_needs_a_photo(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plain_protocol.py"])
    with pytest.raises(SystemExit, match=r"usage: python plain_protocol\.py PHOTO\.jpg"):
        runpy.run_path(str(EXAMPLES / "plain_protocol.py"), run_name="__main__")


def test_the_loop_of_opencv(place, live_url, monkeypatch):
    """OpenCV is played: a camera that gives a frame when the one before it is shown. Escape comes with the second."""
    shown, ready, frames = [], threading.Semaphore(1), [tiny.image(seed=seed) for seed in range(3)]

    def read():
        ready.acquire(timeout=LONG_S)
        return True, frames.pop(0)

    def show(_, array):
        shown.append(array.shape)
        ready.release()

    keys = iter([-1, 27])
    monkeypatch.setitem(
        sys.modules,
        "cv2",
        SimpleNamespace(
            VideoCapture=lambda number: SimpleNamespace(
                isOpened=lambda: True, read=read, release=lambda: shown.append(f"{number} released")
            ),
            COLOR_RGB2BGR=4,
            FONT_HERSHEY_SIMPLEX=0,
            cvtColor=lambda array, _: np.ascontiguousarray(array[..., ::-1]),
            putText=lambda array, text, *_: shown.append(text),
            imshow=show,
            waitKey=lambda _: next(keys),
            destroyAllWindows=lambda: shown.append("closed"),
        ),
    )
    run(EXAMPLES / "opencv_loop.py", "0", live_url)
    assert shown[1] == shown[3] == (60, 90, 3) and shown[4:] == ["0 released", "closed"]
    assert re.fullmatch(r"exit \d of 4, \d+ ms old", shown[0])


def test_the_loop_of_opencv_names_a_video_that_is_missing(live_url, monkeypatch):
    closed = SimpleNamespace(isOpened=lambda: False, get=lambda _: 0.0)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda _: closed, CAP_PROP_FPS=5))
    with pytest.raises(SystemExit, match=r"missing\.mp4 cannot be opened"):
        run(EXAMPLES / "opencv_loop.py", "missing.mp4", live_url)


class RosNode:
    """Plays `rclpy.node.Node`: parameters have their defaults, and what is published is kept."""

    parameters: ClassVar = {}

    def __init__(self, name):
        self.published, self.warnings, self.topics = [], [], {}

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, kind, topic, qos):
        self.topics[topic] = qos
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, kind, topic, callback, qos):
        self.topics[topic] = qos

    def get_logger(self):
        return SimpleNamespace(warning=lambda text, **_: self.warnings.append(text))


def test_the_ros_node_answers_with_the_stamp_of_the_image(live_url, monkeypatch):
    modules = {
        "rclpy": SimpleNamespace(),
        "rclpy.node": SimpleNamespace(Node=RosNode),
        "rclpy.qos": SimpleNamespace(
            QoSProfile=SimpleNamespace,
            HistoryPolicy=SimpleNamespace(KEEP_LAST="keep last"),
            ReliabilityPolicy=SimpleNamespace(BEST_EFFORT="best effort"),
        ),
        "sensor_msgs.msg": SimpleNamespace(Image=SimpleNamespace),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(RosNode, "parameters", {"url": live_url, "deadline_ms": 1000 * LONG_S})
    node = run(EXAMPLES / "ros2_node.py").Segmenter()
    assert {topic: (qos.history, qos.depth) for topic, qos in node.topics.items()} == {
        "image": ("keep last", 1),
        "mask": ("keep last", 1),
    }
    pixels, header = tiny.image(), SimpleNamespace(stamp=12.5)
    with Client(live_url) as client:
        expected = client.predict(pixels, deadline_ms=1000 * LONG_S, jpeg_quality=90).mask

    def message(array, encoding):
        """As a camera sends it: each line is padded to a multiple of 64 bytes."""
        height, width = array.shape[:2]
        lines = array.reshape(height, -1)
        padded = np.pad(lines, ((0, 0), (0, -lines.shape[1] % 64)))
        return SimpleNamespace(
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            step=padded.shape[1],
            data=padded.tobytes(),
        )

    node.segment(message(pixels, "rgb8"))
    node.segment(message(pixels[..., ::-1], "bgr8"))
    node.segment(message(pixels[..., 0], "mono8"))
    node.segment(message(pixels, "yuv422"))
    assert [mask.header for mask in node.published] == [header] * 3 and len(node.warnings) == 1
    first, second, _ = node.published
    assert (first.height, first.width, first.step, first.encoding) == (60, 90, 90, "mono8")
    assert first.data == second.data == expected.tobytes()
    assert "convert it to rgb8" in node.warnings[0]
    node.client.close()
