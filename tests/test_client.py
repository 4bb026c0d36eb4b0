"""The Python client over HTTP, against answers made here; and every way in and out of its values."""

import asyncio
import base64
import inspect
import io
from dataclasses import fields

import httpx
import numpy as np
import pytest
from adpc_client import (
    AdpcError,
    AsyncClient,
    BadInputError,
    Client,
    ConnectionFailedError,
    ImageError,
    NoExitError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    RateLimitError,
    ReplyError,
    ServerFaultError,
    ServerSilentError,
    Timeout,
    TooLargeError,
    UnsupportedImageError,
)
from adpc_client.options import Options
from PIL import Image

MASK = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def encoded(array, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


def answer(**changes):
    return {
        "id": "abc",
        "model": "tiny",
        "task": "segmentation",
        "exit": 2,
        "exits": 4,
        "final": False,
        "stop": "deadline",
        "deadline_ms": 50.0,
        "elapsed_ms": 48.5,
        "timing": {"decode_ms": 1, "queue_ms": 2, "compute_ms": [20, 21], "encode_ms": 3},
        "unsure": 0.25,
        "size": [2, 3],
        "mask": {
            "format": "png",
            "data": base64.b64encode(encoded(MASK)).decode(),
            "classes": ["sky", "road", "tree"],
            "palette": [[10, 20, 30], [40, 50, 60], [70, 80, 90]],
        },
    } | changes


POSE = {
    "mask": None,
    "task": "pose",
    "keypoints": [[0, 0, 0.9], [2, 1, 0.8]],
    "joints": ["a", "b"],
    "skeleton": [[0, 1]],
}


def tiff(array):
    return encoded(array, "TIFF")


def client(handler, **options):
    return Client("http://server", transport=httpx.MockTransport(handler), **options)


def replying(status=200, body=None, **headers):
    return client(lambda request: httpx.Response(status, json=answer() if body is None else body, headers=headers))


def test_a_prediction_is_typed_and_frozen():
    with replying() as server:
        got = server.predict(MASK)
    assert (got.id, got.model, got.task, got.stop) == ("abc", "tiny", "segmentation", "deadline")
    assert (got.exit, got.exits, got.final, got.unsure, got.deadline_ms) == (2, 4, False, 0.25, 50.0)
    assert got.mask.dtype == np.uint8 and np.array_equal(got.mask, MASK)
    assert got.classes == ("sky", "road", "tree") and got.palette[2].tolist() == [70, 80, 90]
    assert got.timing.compute_ms == (20.0, 21.0) and not hasattr(got, "keypoints")
    with pytest.raises(ValueError, match="read-only"):
        got.mask[0, 0] = 1
    with pytest.raises(AttributeError):
        got.exit = 3


def test_a_pose_has_keypoints_and_a_skeleton():
    with replying(body=answer(**POSE)) as server:
        got = server.predict(MASK)
    assert got.task == "pose" and got.keypoints.shape == (2, 3) and got.keypoints.dtype == np.float32
    assert not hasattr(got, "mask")
    with pytest.raises(AttributeError, match="a pose has no mask"):
        got.mask  # noqa: B018
    assert got.labels.skeleton == ((0, 1),) and got.classes == ("a", "b")


def test_a_further_map():
    extra = {"kind": "unsure", "format": "png", "data": base64.b64encode(encoded(MASK)).decode()}
    with replying(body=answer(map=extra)) as server:
        assert np.array_equal(server.predict(MASK, extra="unsure").extra, MASK)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_option_of_a_request_is_a_parameter_of_every_method(kind):
    options = {field.name for field in fields(Options)}
    for method, missing in ((kind.predict, set()), (kind.stream, set()), (kind.follow, {"captured_at"})):
        assert options - set(inspect.signature(method).parameters) == missing


def test_what_is_sent_of_a_segmentation_and_what_comes_back_with_it():
    seen = []

    def handler(request):
        seen.append(dict(request.url.params))
        return httpx.Response(200, json=answer(meta=request.url.params.get("meta")))

    with client(handler) as server:
        options = {"classes": ["road", 8], "roi": (1, 2, 3.5, 4), "captured_at": 1700000000.125, "meta": "left; ü"}
        assert server.predict(MASK, **options).meta == "left; ü"
        assert server.predict(MASK, classes="road,sky", roi=np.array([1, 2, 3, 4], np.float32)).meta is None
    first, second = seen
    assert first == {"classes": "road,8", "roi": "1,2,3.5,4", "captured_at": "1700000000.125", "meta": "left; ü"}
    assert second == {"classes": "road,sky", "roi": "1,2,3,4"}


@pytest.mark.parametrize(
    ("options", "kind", "complaint"),
    [
        ({"deadline_ms": "500"}, TypeError, "deadline_ms is '500', a str; give a number: milliseconds"),
        ({"captured_at": True}, TypeError, "captured_at is True, a bool; give a number: Unix seconds"),
        ({"roi": (1, 2, 3)}, ValueError, r"roi is \(1, 2, 3\); give four numbers: x, y, width and height in pixels"),
        ({"box": "1,2,3,4"}, ValueError, "box is '1,2,3,4'; give four numbers"),
        ({"box": (1, 2, 3, "4")}, TypeError, "box is '4', a str; give a number"),
    ],
)
def test_options_of_the_wrong_kind_are_refused_with_a_remedy(options, kind, complaint):
    with replying() as server, pytest.raises(kind, match=complaint):
        server.predict(MASK, **options)


def test_options_become_the_query():
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, json=answer())

    with client(handler, headers={"X-Key": "k"}) as server:
        server.predict(
            MASK, model="m", deadline_ms=12.5, min_exit=2, best_effort=True, extra="exit", box=(1, 2.5, 3, 4), id="x"
        )
        server.predict(encoded(MASK, "JPEG"))
    first, second = seen
    assert dict(first.url.params) == {
        "model": "m",
        "deadline_ms": "12.5",
        "min_exit": "2",
        "best_effort": "true",
        "map": "exit",
        "box": "1,2.5,3,4",
    }
    assert first.method == "POST" and first.url.path == "/v1/predict"
    assert (first.headers["X-Request-Id"], first.headers["X-Key"]) == ("x", "k")
    assert (first.headers["Content-Type"], second.headers["Content-Type"]) == ("image/png", "image/jpeg")
    assert not second.url.params


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadInputError),
        (404, NotFoundError),
        (405, ReplyError),
        (413, TooLargeError),
        (415, UnsupportedImageError),
        (429, RateLimitError),
        (500, ServerFaultError),
        (503, OverloadedError),
        (504, NoExitError),
    ],
)
def test_errors_are_a_tree(status, kind):
    body = {"error": "so many, at most fewer, send less", "code": "some_code", "id": "abc"}
    with replying(status, body, **{"Retry-After": "2"}) as server, pytest.raises(kind) as raised:
        server.predict(MASK)
    error = raised.value
    assert str(error) == body["error"]
    assert (error.status, error.code, error.id, error.retry_after_s) == (status, "some_code", "abc", 2.0)
    assert isinstance(error, AdpcError)
    assert isinstance(error, TimeoutError) == (status == 504)


def test_an_error_page_of_a_proxy_still_tells_its_status():
    def handler(request):
        return httpx.Response(502, text="<html>Bad gateway", headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})

    with client(handler) as server, pytest.raises(ServerFaultError, match="status 502 and no explanation") as raised:
        server.predict(MASK)
    assert raised.value.code == "status_502" and raised.value.retry_after_s is None


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ([1], "JSON list"),
        ({}, "KeyError: 'size'"),
        (answer(mask=None), "either a mask or keypoints"),
        (answer(size=[3, 2]), r"uint8 \(2, 3\)"),
        (answer(exit="two"), "ValueError"),
    ],
)
def test_an_answer_that_makes_no_sense(body, complaint):
    with replying(body=body) as server, pytest.raises(ProtocolError, match=complaint):
        server.predict(MASK)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("refused"), ConnectionFailedError),
        (httpx.ConnectTimeout("slow"), ConnectionFailedError),
        (httpx.ReadTimeout("slow"), ServerSilentError),
        (httpx.RemoteProtocolError("broken"), ConnectionFailedError),
    ],
)
def test_failed_connections(failure, kind):
    def handler(request):
        raise failure

    with client(handler) as server, pytest.raises(kind, match="http://server"):
        server.predict(MASK)


def test_patience_is_the_deadline_and_the_silence_allowed():
    seen = []

    def handler(request):
        seen.append(request.extensions["timeout"])
        return httpx.Response(200, json=answer())

    with client(handler, timeout=Timeout(connect_s=2, silence_s=7)) as server:
        server.predict(MASK, deadline_ms=3000)
    with client(handler, timeout=Timeout(silence_s=None)) as server:
        server.predict(MASK)
    assert (seen[0]["connect"], seen[0]["read"], seen[1]["read"]) == (2, 10.0, None)
    with pytest.raises(ValueError, match="silence_s is 0"):
        Timeout(silence_s=0)


@pytest.mark.parametrize(
    ("url", "stream_url"),
    [
        ("HTTP://Server:80/", "ws://server:80/v1/stream"),
        ("https://[::1]:8443/base/", "wss://[::1]:8443/base/v1/stream"),
        ("http://my_server", "ws://my_server/v1/stream"),
    ],
)
def test_the_url_of_streams_follows_the_url_of_the_server(url, stream_url):
    with Client(url) as server:
        assert server._endpoint.stream_url == stream_url


def test_an_id_that_a_header_cannot_carry_is_refused():
    with client(lambda request: httpx.Response(200, json=answer())) as server, pytest.raises(ValueError, match="ASCII"):
        server.predict(MASK, id="é")


@pytest.mark.parametrize("deadline_ms", [float("inf"), float("-inf"), float("nan")])
def test_a_deadline_that_is_not_finite_is_refused_before_anything_is_sent(deadline_ms):
    with Client("http://127.0.0.1:9") as server:
        for ask in (server.predict, server.stream):
            with pytest.raises(ValueError, match=r"deadline_ms is .*finite") as raised:
                ask(MASK, deadline_ms=deadline_ms)
            assert not isinstance(raised.value, AdpcError)


@pytest.mark.parametrize("option", [{"quality": float("nan")}, {"box": (0, 0, float("inf"), 9)}])
def test_other_numbers_are_finite_too(option):
    with Client("http://127.0.0.1:9") as server:
        for ask in (server.predict, server.stream):
            with pytest.raises(ValueError, match="must be finite"):
                ask(MASK, **option)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://server",
        "http://",
        "http://server:port",
        "http://server:99999",
        "http://[::1",
        "http://..",
        "http://" + 64 * "a",
        "http://server?model=a",
        "http://server/#top",
    ],
)
def test_a_wrong_url_is_refused(url):
    with pytest.raises(ValueError, match="http://host:port"):
        Client(url)


def test_models_readiness_and_cancel():
    model = {"name": "tiny", "task": "pose", "exits": [{"exit": 1, "gmacs": 0.5, "seconds": None}], "joints": ["a"]}
    replies = {
        ("GET", "/v1/models"): httpx.Response(200, json={"models": [model]}),
        ("GET", "/v1/models/tiny"): httpx.Response(200, json=model),
        ("GET", "/health/ready"): httpx.Response(503, json={}),
        ("DELETE", "/v1/requests/a"): httpx.Response(204),
    }
    unknown = httpx.Response(404, json={"error": "no such request", "code": "unknown_request", "id": "b"})
    with client(lambda request: replies.get((request.method, request.url.path), unknown)) as server:
        (listed,) = server.models()
        assert (listed.name, listed.exits[0].gmacs, listed.labels.names) == ("tiny", 0.5, ("a",))
        assert server.model("tiny").exits[0].seconds is None
        assert not server.ready()
        server.cancel("a")
        with pytest.raises(NotFoundError):
            server.cancel("b")
        for other in ("a?b", "a#b", "x/../a"):  # not a request called a
            with pytest.raises(NotFoundError):
                server.cancel(other)


def test_async_does_the_same():
    async def main():
        transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer()))
        async with AsyncClient("http://server", transport=transport) as server:
            assert np.array_equal((await server.predict(MASK)).mask, MASK)
            assert await server.ready()
        refusing = httpx.MockTransport(lambda request: httpx.Response(503, text=""))
        async with AsyncClient("http://server", transport=refusing) as server:
            for call in (server.predict(MASK), server.models(), server.model("m"), server.cancel("a")):
                with pytest.raises(OverloadedError):
                    await call

    asyncio.run(main())


def sent(image):
    """What the server would get for `image`."""
    seen = []

    def handler(request):
        seen.append(Image.open(io.BytesIO(request.content)))
        return httpx.Response(200, json=answer())

    with client(handler) as server:
        server.predict(image)
    return seen[0]


def test_every_kind_of_image_arrives_unchanged(tmp_path):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.tiff")
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    for image in (
        pixels,
        picture,
        encoded(pixels),
        bytearray(encoded(pixels)),
        tmp_path / "a.png",
        str(tmp_path / "a.tiff"),
    ):
        assert np.array_equal(np.asarray(sent(image)), pixels)
    assert np.array_equal(np.asarray(sent(pixels[:, ::-1])), pixels[:, ::-1])
    assert np.array_equal(np.asarray(sent(pixels[..., 0]))[..., 2], pixels[..., 0])


def test_sixteen_bits_are_scaled_to_eight():
    deep = np.array([[0, 257, 65535]], np.uint16)
    for image in (Image.fromarray(deep), tiff(deep), Image.open(io.BytesIO(encoded(deep)))):
        assert np.asarray(sent(image))[0, :, 0].tolist() == [0, 1, 255]


def test_a_picture_lying_on_its_side_is_sent_upright():
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn right
    file = io.BytesIO()
    Image.new("RGB", (5, 4)).save(file, "TIFF", exif=exif)
    assert sent(file.getvalue()).size == (4, 5)


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((4, 5, 2), np.uint8), r"shape \(4, 5, 2\)"),
        (np.zeros((0, 5, 3), np.uint8), "not empty"),
        (np.zeros((4, 5, 3), np.float32), r"dtype float32.*if it holds 0..1, send \(255 \* array\).astype\('uint8'\)"),
        (np.zeros((4, 5), np.int32), "dtype int32.*: scale it to 0..255"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\).*: send array\[..., :3\]"),
        (np.zeros((4, 5, 1), np.uint8), r"shape \(4, 5, 1\).*: send array\[..., 0\]"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\).*: send array.transpose\(1, 2, 0\)"),
        (b"", r"the bytes \(0 bytes\) cannot be read as an image, because the file is empty"),
        (Image.fromarray(np.array([[0.0, 1.0]], np.float32)), "floats from 0 to 1, .* 0..255"),
        (tiff(np.array([[0.0, 255.0]], np.float32)), "floats from 0 to 255"),
        (tiff(np.array([[0, 255]], np.int32)), "32-bit integers from 0 to 255"),
        (b"not an image", "12 bytes"),
        (42, "not int"),
    ],
)
def test_what_is_no_image(image, complaint):
    with Client() as server, pytest.raises(ImageError, match=complaint):
        server.predict(image)
    with Client() as server, pytest.raises(FileNotFoundError):
        server.predict("/nowhere.png")
