"""Sources that are followed: one frame in flight, the newest next, and the latest answer kept. The server is scripted.

Time is a clock that tests move. A test feeds the frames itself, and the next comes when it wants.
"""

import asyncio
import io
import json
import queue
import threading

import numpy as np
import pytest
from adpc_client import (
    AsyncClient,
    BadInputError,
    Client,
    ConnectionFailedError,
    ImageError,
    NoExitError,
    OverloadedError,
)
from adpc_client.follow import AsyncFollow, Follow, FollowRequest
from adpc_client.options import Options, Timeout
from adpc_client.sources import open_source
from adpc_client.transport import Endpoint
from PIL import Image
from scripted_server import MAP, Talk, end, scripted

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


def follower(url, source, kind=Follow, *, clock=None, fps=None, timeout=None, **options):
    request = FollowRequest(Options(**options), bgr=False, jpeg_quality=None)
    endpoint = Endpoint(url, timeout=timeout or Timeout())
    return kind(endpoint, open_source(source, fps), request, **({} if clock is None else {"clock": clock}))


def level(talk):
    """Which of FRAMES has been sent."""
    return int(np.asarray(Image.open(io.BytesIO(talk.image)))[0, 0, 0]) // 60


def one_exit(talk: Talk) -> None:
    talk.exit(1, MAP + level(talk))
    talk.say(end(talk.id, 1))


def refuse(talk: Talk, status: int, code: str) -> None:
    talk.say(json.dumps({"type": "error", "id": talk.id, "code": code, "error": f"{code} it is", "status": status}))


def test_each_frame_of_a_list_gets_its_own_answer_on_one_connection():
    with scripted(one_exit) as server, Client(server.url) as client:
        follow = client.follow(FRAMES[:3], jpeg_quality=None)
        got = list(follow)
    assert [found.index for _, found in got] == [0, 1, 2] and follow.answered == 3
    for number, (frame, found) in enumerate(got):
        assert frame is found.frame is FRAMES[number]
        assert np.array_equal(found.mask, MAP + number) and found.error is None and found.age_s >= 0
    assert server.connections == 1


def test_the_first_exit_is_kept_and_the_rest_given_up_for_the_newest_of_the_frames_that_wait():
    """Frames 1 to 3 come before the first exit of frame 0: it is cancelled then, and frame 3 is next."""
    feed, heard = Feed(FRAMES[0]), []

    def script(talk: Talk) -> None:
        if level(talk) == 0:
            for frame in FRAMES[1:4]:
                feed.put(frame)
            feed.wait_for_reads(5)
            talk.exit(1)
            heard.append(talk.hear()["type"])
            talk.say(end(talk.id, 1, "cancelled"))
        else:
            feed.put(None)
            talk.exit(4, MAP + 1)
            talk.say(end(talk.id, 4))

    with scripted(script) as server, Client(server.url) as client:
        follow = client.follow(feed.read, jpeg_quality=None)
        got = [(found.index, found.exit) for _, found in follow]
    assert got == [(0, 1), (3, 4)] and heard == ["cancel"]
    assert (follow.answered, follow.dropped) == (2, 2)


def test_a_newer_frame_ends_the_wait_for_a_further_exit():
    """Frame 1 comes while the second exit of frame 0 is awaited."""
    feed, heard = Feed(FRAMES[0]), []

    def script(talk: Talk) -> None:
        if level(talk) == 0:
            talk.exit(1)
            feed.put(FRAMES[1])
            heard.append(talk.hear()["type"])
            talk.say(end(talk.id, 1, "cancelled"))
        else:
            feed.put(None)
            one_exit(talk)

    with scripted(script) as server, Client(server.url) as client:
        assert [found.index for _, found in client.follow(feed.read, jpeg_quality=None)] == [0, 1]
    assert heard == ["cancel"]


def test_a_deadline_of_ones_own_is_not_cut_short():
    """Frame 1 waits before the first exit of frame 0 comes; the second exit is awaited all the same."""
    feed, sent = Feed(FRAMES[0]), []

    def script(talk: Talk) -> None:
        sent.append((talk.message["deadline_ms"], [message["type"] for message in talk.unheard]))
        if level(talk) == 0:
            feed.put(FRAMES[1])
            feed.wait_for_reads(3)
            talk.exit(1)
        talk.exit(2)
        feed.put(None)
        talk.say(end(talk.id, 2))

    with scripted(script) as server, Client(server.url) as client:
        follow = client.follow(feed.read, deadline_ms=250, jpeg_quality=None)
        assert [(found.index, found.exit) for _, found in follow] == [(0, 2), (1, 2)]
    assert sent == [(250, []), (250, [])]


def test_the_deadline_is_the_next_frame():
    clock, feed, sent = FakeClock(), Feed(FRAMES[0]), []

    def script(talk: Talk) -> None:
        sent.append(talk.message["deadline_ms"])
        one_exit(talk)

    with scripted(script) as server:
        follow = iter(follower(server.url, feed.read, clock=clock, fps=10))
        for number in (1, 2):
            next(follow)
            clock.now_s = 100 + number / 10
            feed.put(FRAMES[number])
        next(follow)
        feed.put(None)
        assert list(follow) == []
    assert sent == pytest.approx([100, 100, 100])


def test_without_a_known_pace_there_is_a_second_and_without_any_the_server_decides():
    sent = []

    def script(talk: Talk) -> None:
        sent.append(talk.message.get("deadline_ms"))
        one_exit(talk)

    with scripted(script) as server, Client(server.url) as client:
        list(client.follow(Feed(FRAMES[0], None).read))
        list(client.follow(FRAMES[:1]))
    assert sent == [1000, None]


def test_a_frame_without_an_exit_gets_the_latest_answer_with_its_age_and_more_time_next():
    clock, feed, sent = FakeClock(), Feed(FRAMES[0]), []

    def script(talk: Talk) -> None:
        sent.append(round(talk.message["deadline_ms"]))
        if level(talk) == 1:
            refuse(talk, 504, "no_exit")
        else:
            one_exit(talk)

    with scripted(script) as server:
        source = follower(server.url, feed.read, clock=clock, fps=10)
        follow = iter(source)
        got = [next(follow)]
        for number in (1, 2):
            clock.now_s = 100 + number / 10
            feed.put(FRAMES[number])
            got.append(next(follow))
        feed.put(None)
        assert list(follow) == []
    (_, own), (frame, kept), (_, fresh) = got
    assert (own.index, own.age_s, own.error) == (0, 0.0, None)
    assert frame is FRAMES[1] and kept.frame is FRAMES[0] and np.array_equal(kept.mask, own.mask)
    assert (kept.index, kept.age_s) == (0, pytest.approx(0.1)) and isinstance(kept.error, NoExitError)
    assert (fresh.index, fresh.error) == (2, None)
    assert sent == [100, 100, 200] and source.answered == 2


def test_a_lost_connection_keeps_the_latest_answer_and_is_opened_again():
    clock, feed = FakeClock(), Feed(FRAMES[0])

    def script(talk: Talk) -> None:
        if level(talk) == 1:
            talk.connection.socket.close()
        else:
            one_exit(talk)

    with scripted(script) as server:
        follow = iter(follower(server.url, feed.read, clock=clock))
        got = [next(follow)[1]]
        for number, moment_s in ((1, 100.0), (2, 100.0), (3, 100.2)):  # the second is too early for another try
            clock.now_s = moment_s
            feed.put(FRAMES[number])
            got.append(next(follow)[1])
        connections = server.connections
        feed.put(None)
        assert list(follow) == []
    assert [found.index for found in got] == [0, 0, 0, 3]
    assert isinstance(got[1].error, ConnectionFailedError) and got[2].error is got[1].error and got[3].error is None
    assert connections == 2


def test_what_came_before_a_connection_broke_is_an_answer():
    feed = Feed(FRAMES[0])

    def script(talk: Talk) -> None:
        talk.exit(1)
        talk.connection.socket.close()

    with scripted(script) as server:
        follow = iter(follower(server.url, feed.read))
        _, found = next(follow)
        feed.put(None)
        assert list(follow) == []
    assert (found.index, found.exit, found.error) == (0, 1, None)


def test_a_frame_that_somebody_cancelled_has_no_answer_of_its_own():
    feed = Feed(*FRAMES[:1])

    def script(talk: Talk) -> None:
        if level(talk) == 0:
            one_exit(talk)
        else:
            talk.say(end(talk.id, 0, "cancelled"))

    with scripted(script) as server:
        follow = iter(follower(server.url, feed.read))
        next(follow)
        feed.put(FRAMES[1])
        _, found = next(follow)
        feed.put(None)
        assert list(follow) == []
    assert found.index == 0 and "cancelled before its first exit" in str(found.error)


@pytest.mark.parametrize("paced", [True, False])
def test_what_no_further_frame_can_mend_is_raised(paced):
    def source():
        return Feed(*FRAMES[:2], None).read if paced else FRAMES[:2]

    with scripted(lambda talk: refuse(talk, 400, "bad_parameter")) as server, Client(server.url) as client:
        with pytest.raises(BadInputError, match="bad_parameter"):
            list(client.follow(source()))
        url = server.url
    with Client(url) as client, pytest.raises(ConnectionFailedError, match="is the server running there"):
        list(client.follow(source()))


def test_a_server_that_never_answers_is_given_up():
    clock, feed = FakeClock(), Feed(FRAMES[0])

    def script(talk: Talk) -> None:
        clock.now_s += 6
        feed.put(FRAMES[1] if clock.now_s < 110 else None)
        refuse(talk, 503, "overloaded")

    with scripted(script) as server, pytest.raises(OverloadedError):
        list(follower(server.url, feed.read, clock=clock))
    assert clock.now_s == 112
    with scripted(lambda talk: refuse(talk, 504, "no_exit")) as server, pytest.raises(NoExitError):
        list(follower(server.url, Feed(FRAMES[0], None).read))  # a source that ends without any answer


def test_failed_frames_of_a_list_are_left_out_and_listed(tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"no image")

    def script(talk: Talk) -> None:
        if level(talk) == 1:
            refuse(talk, 400, "broken_image")
        else:
            one_exit(talk)

    with scripted(script) as server, Client(server.url) as client:
        follow = client.follow([tmp_path / "broken.tif", *FRAMES[:3]], jpeg_quality=None)
        got = [found.index for _, found in follow]
    assert got == [1, 3]
    (first, why), (second, too) = follow.failures
    assert first == tmp_path / "broken.tif" and second is FRAMES[1]
    assert isinstance(why, ImageError) and isinstance(too, BadInputError)


def test_a_silent_server_does_not_stop_a_source_that_goes_on():
    assert follower("http://server", Feed().read)._endpoint.timeout == Timeout(2.0, 2.0)
    assert follower("http://server", Feed().read, timeout=Timeout(1.0, None))._endpoint.timeout == Timeout(1.0, 2.0)
    assert follower("http://server", FRAMES)._endpoint.timeout == Timeout()


def test_frames_travel_as_jpeg_and_bgr_is_told_from_rgb():
    blue, seen = np.zeros((16, 16, 3), np.uint8), []
    blue[..., 0] = 255  # as OpenCV has it

    def script(talk: Talk) -> None:
        seen.append(Image.open(io.BytesIO(talk.image)))
        talk.exit(1)
        talk.say(end(talk.id, 1))

    with scripted(script) as server, Client(server.url) as client:
        list(client.follow([blue], bgr=True))
        list(client.follow([blue], jpeg_quality=None))
        list(client.stream(blue, jpeg_quality=75, bgr=True))
        with pytest.raises(ValueError, match="jpeg_quality is 0"):
            client.stream(blue, jpeg_quality=0)
    assert [image.format for image in seen] == ["JPEG", "PNG", "JPEG"]
    assert [int(np.argmax(np.asarray(image)[8, 8])) for image in seen] == [2, 0, 2]


def test_leaving_the_loop_stops_the_source_and_its_connection():
    feed = Feed(FRAMES[0])
    with scripted(one_exit) as server, Client(server.url) as client:
        follow = client.follow(feed.read)
        for _, found in follow:
            assert found.index == 0
            feed.put(None)  # which a camera cannot, but its thread looks up at every frame
            break
    follow._frames._thread.join(10)
    assert not follow._frames._thread.is_alive()


def test_async_does_the_same():
    clock, feed, heard = FakeClock(), Feed(FRAMES[0]), []

    def script(talk: Talk) -> None:
        if level(talk) == 0:
            talk.exit(1)
            feed.put(FRAMES[1])
            heard.append(talk.hear()["type"])
            talk.say(end(talk.id, 1, "cancelled"))
        elif level(talk) == 1:
            feed.put(FRAMES[2])
            refuse(talk, 504, "no_exit")
        else:
            feed.put(None)
            one_exit(talk)

    async def main(url):
        source = follower(url, feed.read, AsyncFollow, clock=clock)
        return [(frame, found) async for frame, found in source], source

    with scripted(script) as server:
        got, source = asyncio.run(main(server.url))
    assert [found.index for _, found in got] == [0, 0, 2] and heard == ["cancel"]
    assert got[1][0] is FRAMES[1] and isinstance(got[1][1].error, NoExitError)
    assert (source.answered, source.dropped) == (2, 0)
    source._frames._thread.join(10)
    assert not source._frames._thread.is_alive()


def test_async_answers_a_list_and_raises_what_cannot_be_mended():
    async def main(url):
        async with AsyncClient(url) as client:
            return [found.index async for _, found in client.follow(FRAMES[:2], jpeg_quality=None)]

    with scripted(one_exit) as server:
        assert asyncio.run(main(server.url)) == [0, 1]
    with pytest.raises(ConnectionFailedError):
        asyncio.run(main(server.url))
