"""Sources that are followed: one frame in flight, the newest next. The server is scripted.

Time is a clock that tests move. A test feeds the frames itself, and the next comes when it wants.
"""

import asyncio
import io

import numpy as np
import pytest
from adpc_client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    NoExitError,
)
from adpc_client.follow import AsyncFollow
from followed import FRAMES, FakeClock, Feed, follower, level, one_exit, refuse
from PIL import Image
from scripted_server import MAP, Talk, end, scripted


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
    """Frame 1 comes once the first exit of frame 0 has been heard, while its second is awaited."""
    clock, feed, heard = FakeClock(), Feed(FRAMES[0]), []

    def script(talk: Talk) -> None:
        if level(talk) == 0:
            talk.exit(1)
            heard.append(talk.hear()["type"])
            talk.say(end(talk.id, 1, "cancelled"))
        elif level(talk) == 1:
            feed.put(FRAMES[2])
            refuse(talk, 504, "no_exit")
        else:
            feed.put(None)
            one_exit(talk)

    async def main(url):
        loop = asyncio.get_running_loop()

        def go_on(frame, _):
            if frame.index == 0:
                loop.call_soon(feed.put, FRAMES[1])

        source = follower(url, feed.read, AsyncFollow, clock=clock, on_exit=go_on)
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
