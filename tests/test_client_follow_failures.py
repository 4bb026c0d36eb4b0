"""Sources that are followed while something fails: the latest answer is kept, or the error is raised."""

import numpy as np
import pytest
from adpc_client import (
    BadInputError,
    Client,
    ConnectionFailedError,
    ImageError,
    NoExitError,
    OverloadedError,
)
from adpc_client.options import Timeout
from followed import FRAMES, FakeClock, Feed, follower, level, one_exit, refuse
from scripted_server import Talk, end, scripted


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
        for number, moment_s in ((1, 100.0), (2, 100.0), (3, 100.2), (1, 100.2), (4, 100.35)):  # 2 is too early to try
            clock.now_s = moment_s
            feed.put(FRAMES[number])
            got.append(next(follow)[1])
        connections = server.connections
        feed.put(None)
        assert list(follow) == []
    assert [found.index for found in got] == [0, 0, 0, 3, 3, 5]
    assert isinstance(got[1].error, ConnectionFailedError) and got[2].error is got[1].error and got[3].error is None
    assert connections == 3


def test_a_lost_connection_ends_a_list_whose_frames_all_want_an_answer():
    def script(talk: Talk) -> None:
        if level(talk) == 1:
            talk.connection.socket.close()
        else:
            one_exit(talk)

    with scripted(script) as server, Client(server.url) as client:
        follow = iter(client.follow(FRAMES[:3], jpeg_quality=None))
        next(follow)
        with pytest.raises(ConnectionFailedError):
            next(follow)


def test_a_lost_replica_fails_one_frame_of_a_list():
    def script(talk: Talk) -> None:
        if level(talk) == 1:
            talk.connection.close(1012)
        else:
            one_exit(talk)

    with scripted(script) as server, Client(server.url) as client:
        follow = client.follow(FRAMES[:3], jpeg_quality=None)
        assert [found.index for _, found in follow] == [0, 2]
    assert [error.code for _, error in follow.failures] == ["replica_lost"]


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
