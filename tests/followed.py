"""What tests of followed sources share: frames that they feed themselves, a clock that they move, and short scripts."""

import io
import json
import queue
import threading

import numpy as np
from adpc_client.follow import Follow, FollowRequest
from adpc_client.options import Options, Timeout
from adpc_client.sources import open_source
from adpc_client.transport import Endpoint
from PIL import Image
from scripted_server import MAP, Talk, end

FRAMES = [np.full((2, 3, 3), level, np.uint8) for level in (0, 60, 120, 180, 240)]


class FakeClock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class Feed:
    """A callable source: `put` a frame, and `read` gives it."""

    def __init__(self, *frames):
        self._frames, self._reads = queue.Queue(), threading.Semaphore(0)
        for frame in frames:
            self.put(frame)

    def put(self, frame):
        self._frames.put(frame)

    def read(self):
        self._reads.release()
        return self._frames.get(timeout=10)

    def wait_for_reads(self, count):
        """Wait until the source has been asked so often: the frames before the last one have come."""
        for _ in range(count):
            assert self._reads.acquire(timeout=10)


def follower(url, source, kind=Follow, *, clock=None, fps=None, timeout=None, on_exit=None, **options):
    request = FollowRequest(Options(**options), bgr=False, jpeg_quality=None)
    endpoint = Endpoint(url, timeout=timeout or Timeout())
    given = {"clock": clock, "on_exit": on_exit}
    more = {name: value for name, value in given.items() if value is not None}
    return kind(endpoint, open_source(source, fps), request, **more)


def level(talk):
    """Which of FRAMES has been sent."""
    return int(np.asarray(Image.open(io.BytesIO(talk.image)))[0, 0, 0]) // 60


def one_exit(talk: Talk) -> None:
    talk.exit(1, MAP + level(talk))
    talk.say(end(talk.id, 1))


def refuse(talk: Talk, status: int, code: str) -> None:
    talk.say(json.dumps({"type": "error", "id": talk.id, "code": code, "error": f"{code} it is", "status": status}))
