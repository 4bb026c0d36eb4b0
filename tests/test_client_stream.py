"""Streams of the Python client against a server that says what each test tells it to."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from adpc_client import (
    AsyncClient,
    BadInputError,
    Client,
    ConnectionFailedError,
    NoExitError,
    OverloadedError,
    ProtocolError,
    ServerSilentError,
    Timeout,
)
from PIL import Image
from scripted_server import MAP, Talk, accepted, delta, end, exit_header, scripted

IMAGE = np.zeros((2, 3, 3), np.uint8)
BOMB = np.zeros(1 << 22, np.uint8)


def two_exits(talk: Talk) -> None:
    talk.say(accepted(talk.id))
    talk.exit(1)
    talk.exit(3, MAP + 1)
    talk.say(end(talk.id, 3))


def test_exits_come_typed_and_in_order():
    with scripted(two_exits) as server, Client(server.url) as client, client.stream(IMAGE, deadline_ms=50) as stream:
        first, second = list(stream)
    assert (first.exit, first.exits, first.final, first.elapsed_ms, first.unsure) == (1, 4, False, 10.0, 0.5)
    assert np.array_equal(first.mask, MAP) and np.array_equal(second.mask, MAP + 1)
    assert first.classes == ("a", "b", "c") and first.palette.tolist() == [[1, 2, 3]] * 3
    assert not first.mask.flags.writeable and first.task == "segmentation" and first.extra is None
    assert (stream.model, stream.last, stream.end.stop, stream.end.skipped) == ("tiny", second, "complete", (2,))


def test_the_request_says_what_was_asked_for():
    seen = []

    def script(talk: Talk) -> None:
        seen.append((talk.message, talk.image))
        two_exits(talk)

    with scripted(script) as server, Client(server.url) as client:
        options = {"model": "m", "deadline_ms": 5, "max_exit": 2, "extra": "unsure", "box": (1, 2, 3, 4), "priority": 0}
        options |= {"classes": ("road", 8), "roi": (5, 6, 7, 8), "captured_at": 1.5, "meta": "left"}
        list(client.stream(IMAGE, **options, id="mine"))
        list(client.stream(Image.fromarray(IMAGE)))
    (message, image), (plain, _) = seen
    assert message == {
        "type": "predict",
        "id": "mine",
        "encoding": "delta",
        "model": "m",
        "deadline_ms": 5,
        "max_exit": 2,
        "map": "unsure",
        "box": [1, 2, 3, 4],
        "priority": 0,
        "classes": ["road", 8],
        "roi": [5, 6, 7, 8],
        "captured_at": 1.5,
        "meta": "left",
    }
    assert image.startswith(b"\x89PNG")
    assert set(plain) == {"type", "id", "encoding"}


def test_the_meta_of_a_request_comes_with_every_exit():
    def script(talk: Talk) -> None:
        told = {} if "meta" not in talk.message else {"meta": talk.message["meta"]}
        talk.say(exit_header(talk.id, 1, MAP.tobytes(), **told), MAP.tobytes(), end(talk.id, 1))

    with scripted(script) as server, Client(server.url) as client:
        assert [found.meta for found in client.stream(IMAGE, meta="left")] == ["left"]
        assert [found.meta for found in client.stream(IMAGE)] == [None]
        ((_, found),) = client.follow(iter([IMAGE]), meta="right")
        assert found.meta == "right"


def test_delta_and_an_extra_map_are_put_together():
    maps = [MAP, MAP + 3, MAP + 3]
    deltas = [delta(MAP), delta(maps[1], maps[0]), delta(maps[2], maps[1])]
    unsure = [(MAP > 0).astype(np.uint8), np.zeros_like(MAP)]
    extras = [delta(unsure[0]), delta(unsure[1], unsure[0])]

    def script(talk: Talk) -> None:
        for number in (1, 2):
            extra = {"kind": "unsure", "encoding": "delta", "bytes": len(extras[number - 1])}
            talk.say(exit_header(talk.id, number, deltas[number - 1], "delta", extra=extra))
            talk.say(deltas[number - 1], extras[number - 1])
        talk.say(exit_header(talk.id, 3, deltas[2], "delta"), deltas[2], end(talk.id, 3))

    with scripted(script) as server, Client(server.url) as client:
        answers = list(client.stream(IMAGE))
    assert all(np.array_equal(answer.mask, array) for answer, array in zip(answers, maps, strict=True))
    assert np.array_equal(answers[0].extra, unsure[0]) and np.array_equal(answers[1].extra, unsure[1])
    assert answers[2].extra is None


def test_json_has_no_binary_frame():
    def script(talk: Talk) -> None:
        mask, extra = ({"format": "png", "data": base64.b64encode(png(array)).decode()} for array in (MAP, MAP + 3))
        header = json.loads(exit_header(talk.id, 1, b"", "json", mask=mask))
        header["extra"] = {"kind": "unsure", "encoding": "json", **extra}
        talk.say(json.dumps(header), end(talk.id, 1))

    with scripted(script) as server, Client(server.url) as client:
        (answer,) = list(client.stream(IMAGE, encoding="json"))
    assert np.array_equal(answer.mask, MAP) and np.array_equal(answer.extra, MAP + 3)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_a_pose_has_no_binary_frame():
    def script(talk: Talk) -> None:
        talk.say(exit_header(talk.id, 1, b"", "json", keypoints=[[1.5, 2, 0.25], [0, 0, 0]]), end(talk.id, 1))

    with scripted(script) as server, Client(server.url) as client:
        (answer,) = list(client.stream(IMAGE))
    assert answer.task == "pose" and answer.keypoints.dtype == np.float32
    assert answer.keypoints.tolist() == [[1.5, 2, 0.25], [0, 0, 0]]


def test_one_connection_serves_many_streams():
    with scripted(two_exits) as server, Client(server.url) as client:
        for _ in range(3):
            assert len(list(client.stream(IMAGE))) == 2
    assert server.connections == 1


def test_leaving_early_cancels_and_keeps_the_connection():
    heard = []

    def script(talk: Talk) -> None:
        talk.exit(1)
        heard.append(talk.hear())
        talk.say(end(talk.id, 1, "cancelled"))

    with scripted(script) as server, Client(server.url) as client:
        for _ in range(2):
            with client.stream(IMAGE, id="a") as stream:
                next(stream)
            assert stream.end.stop == "cancelled"
            assert list(stream) == []
    assert heard == [{"type": "cancel", "id": "a"}] * 2
    assert server.connections == 1


def test_cancel_and_deadline_reach_the_server_and_the_end_comes():
    heard = []

    def script(talk: Talk) -> None:
        talk.exit(1)
        heard.extend([talk.hear(), talk.hear()])
        talk.say(end(talk.id, 1, "cancelled"))

    with scripted(script) as server, Client(server.url) as client, client.stream(IMAGE, id="a") as stream:
        for _ in stream:
            stream.set_deadline(70)
            stream.cancel()
        stream.cancel()  # too late to matter, and no error
    assert heard == [{"type": "deadline", "id": "a", "deadline_ms": 70}, {"type": "cancel", "id": "a"}]
    assert stream.end.stop == "cancelled"


@pytest.mark.parametrize(("status", "kind"), [(503, OverloadedError), (504, NoExitError)])
def test_an_error_message_is_raised_as_its_kind(status, kind):
    def script(talk: Talk) -> None:
        refusal = {"type": "error", "id": talk.id, "code": "some_code", "error": "full", "status": status}
        talk.say(json.dumps({**refusal, "retry_after_s": 2}))

    with scripted(script) as server, Client(server.url) as client:
        for _ in range(2):
            with pytest.raises(kind, match="full") as raised:
                list(client.stream(IMAGE))
    assert (raised.value.code, raised.value.retry_after_s) == ("some_code", 2)
    assert server.connections == 1  # a refusal is no reason to connect again


def test_a_late_word_about_the_stream_before_is_no_word_about_this_one():
    before = []

    def script(talk: Talk) -> None:
        refusal = {"type": "error", "code": "bad_parameter", "error": "no", "status": 400}
        if not before:
            before.append(talk.id)
            talk.say(json.dumps({**refusal, "id": talk.id}))
            return
        talk.say(json.dumps({**refusal, "id": before[0], "code": "unknown_request"}))
        two_exits(talk)

    with scripted(script) as server, Client(server.url) as client:
        with pytest.raises(BadInputError):
            list(client.stream(IMAGE))
        assert len(list(client.stream(IMAGE))) == 2
    assert server.connections == 1


@pytest.mark.parametrize("about", [{"id": None}, {"open": True}])
def test_a_connection_is_not_used_again_before_the_last_word_about_its_request(about):
    def script(talk: Talk) -> None:
        refusal = {"type": "error", "id": talk.id, "code": "bad_message", "error": "what?", "status": 400}
        talk.say(json.dumps({**refusal, **about}))

    with scripted(script) as server, Client(server.url) as client:
        for _ in range(2):
            with pytest.raises(BadInputError, match="what"):
                list(client.stream(IMAGE))
    assert server.connections == 2


def test_a_deadline_that_is_none_is_not_sent():
    with scripted(two_exits) as server, Client(server.url) as client, client.stream(IMAGE) as stream:
        for wrong in (0, -5, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="above 0"):
                stream.set_deadline(wrong)
        assert len(list(stream)) == 2
        with pytest.raises(ValueError, match="above 0"):
            stream.set_deadline(-5)  # also once it is over


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1012, OverloadedError), (1013, OverloadedError), (1003, BadInputError), (1006, ConnectionFailedError)],
)
def test_a_closed_connection_says_why(code, kind):
    def script(talk: Talk) -> None:
        talk.exit(1)
        if code == 1006:
            talk.connection.socket.close()
        else:
            talk.connection.close(code, "because")

    with scripted(script) as server, Client(server.url) as client:
        stream = client.stream(IMAGE)
        next(stream)
        with pytest.raises(kind, match=r"because|broke"):
            next(stream)
    assert stream.last.exit == 1  # what has come is kept


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        (["not json"], "not JSON"),
        (["[1]"], "JSON list"),
        ([b"abc"], "without a header"),
        (['{"type": "exit", "id": "other"}'], "only 'a' is open"),
        (['{"type": "news", "id": "a"}'], "unknown type 'news'"),
        (['{"type": "end", "id": "a"}'], "KeyError: 'exit'"),
        ([exit_header("a", 1, b"123456"), b"12345"], "announced 6 bytes; 5 came"),
        ([exit_header("a", 1, b"123456"), "{}"], "text where the map"),
        ([exit_header("a", 1, b"12345"), b"12345"], "cannot reshape"),
        ([exit_header("a", 1, b"123456", "zip"), b"123456"], "encoded as 'zip'"),
        ([exit_header("a", 1, delta(MAP[:1]), "delta"), delta(MAP[:1])], "map of 6 labels"),
        ([exit_header("a", 1, delta(MAP) + b"x", "delta"), delta(MAP) + b"x"], "map of 6 labels"),
        ([exit_header("a", 1, delta(BOMB), "delta"), delta(BOMB)], "map of 6 labels"),
        ([exit_header("a", 1, b"12", "delta"), b"12"], "cannot be unpacked"),
        ([exit_header("a", 1, b"123456", "png"), b"123456"], "cannot identify"),
    ],
)
def test_nonsense_is_a_protocol_error(frames, complaint):
    with (
        scripted(lambda talk: talk.say(*frames)) as server,
        Client(server.url) as client,
        pytest.raises(ProtocolError, match=complaint),
    ):
        list(client.stream(IMAGE, id="a"))


def test_silence_is_an_error_after_the_time_allowed():
    with (
        scripted(lambda talk: None) as server,
        Client(server.url, timeout=Timeout(silence_s=0.05)) as client,
        pytest.raises(ServerSilentError, match=r"0.05 s \(Timeout.silence_s\)"),
        client.stream(IMAGE) as stream,
    ):
        next(stream)


def test_nobody_there():
    with scripted(two_exits) as server:
        pass
    with Client(server.url) as client, pytest.raises(ConnectionFailedError, match="is the server running there"):
        list(client.stream(IMAGE))


def test_a_closed_idle_connection_is_replaced():
    def script(talk: Talk) -> None:
        two_exits(talk)
        talk.connection.close(1001)

    with scripted(script) as server, Client(server.url) as client:
        for _ in range(2):
            with client.stream(IMAGE) as stream:
                list(stream)
            for idle in client._pool._idle:
                idle.recv_events_thread.join()  # the close has been read
    assert server.connections == 2


def test_cancelling_a_stream_that_is_not_open():
    with Client() as client, pytest.raises(RuntimeError, match="not open yet"):
        client.stream(IMAGE).cancel()


def test_async_exits_cancel_deadline_and_reuse():
    heard = []

    def script(talk: Talk) -> None:
        talk.say(accepted(talk.id))
        talk.exit(1)
        heard.extend([talk.hear()["type"], talk.hear()["type"]])
        talk.say(end(talk.id, 1, "cancelled"))

    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            for _ in range(2):
                async with client.stream(IMAGE, deadline_ms=80) as stream:
                    async for answer in stream:
                        assert np.array_equal(answer.mask, MAP)
                        await stream.set_deadline(5)  # leaving cancels
                        break
                assert stream.end.stop == "cancelled"

    with scripted(script) as server:
        asyncio.run(main(server.url))
    assert heard == ["deadline", "cancel"] * 2
    assert server.connections == 1


def test_async_silence_and_absence():
    async def main(url: str, kind: type[Exception]) -> None:
        async with AsyncClient(url, timeout=Timeout(silence_s=0.05)) as client:
            with pytest.raises(kind):
                async for _ in client.stream(IMAGE):
                    pass

    with scripted(lambda talk: None) as server:
        asyncio.run(main(server.url, ServerSilentError))
    asyncio.run(main(server.url, ConnectionFailedError))
