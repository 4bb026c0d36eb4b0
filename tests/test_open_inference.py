"""The Open Inference Protocol, as its own client speaks it, against a worker that the tests play."""

import asyncio
import gzip
import io
import json
import socket
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import live
import numpy as np
import pytest
import tiny
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hosts import same_process_only
from live import Later, Live, ScriptedWorker, photo
from PIL import Image
from tritonclient.utils import InferenceServerException

from server.access.identity import Caller
from server.engine.messages import Stop
from server.errors import InvalidError, NotFoundError
from server.protocols.open_inference import routes
from server.protocols.open_inference.requests import bitmap
from server.protocols.open_inference.routes import SHORT_JSON_BYTES
from server.protocols.open_inference.tensors import MAX_JSON_BYTES, MAX_LISTS, split_body

SEGMENTATION = tiny.SEGMENTATION.name
POSE = tiny.POSE.name
SETTINGS = {"max_body_bytes": 200_000}
PIXELS = tiny.image()


@pytest.fixture
def client(server: Live) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=live.PATIENCE_S) as found:
        yield found


def pixels_input(*, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", [1, *PIXELS.shape], "UINT8")
    tensor.set_data_from_numpy(PIXELS[None], binary_data=binary)
    return tensor


def file_input() -> triton.InferInput:
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([photo()], np.object_))
    return tensor


def test_what_the_server_and_its_models_are(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(POSE)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata(SEGMENTATION, "1")
    assert described["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]
    assert described["outputs"] == [{"name": "mask", "datatype": "UINT8", "shape": [1, -1, -1]}]
    assert client.get_model_metadata(POSE)["outputs"] == [
        {"name": "keypoints", "datatype": "FP32", "shape": [1, 16, 3]}
    ]
    assert client.get_model_config(POSE)["output"] == [
        {"name": "keypoints", "data_type": "TYPE_FP32", "dims": [1, 16, 3]}
    ]
    index = client.get_model_repository_index()
    assert {(model["name"], model["state"]) for model in index} == {(SEGMENTATION, "READY"), (POSE, "READY")}


@pytest.mark.parametrize("kind", ["pixels", "file", "json"])
@pytest.mark.parametrize("compressed", [None, "gzip", "deflate"])
def test_a_mask(
    client: triton.InferenceServerClient, worker: ScriptedWorker, kind: str, compressed: str | None
) -> None:
    tensor = file_input() if kind == "file" else pixels_input(binary=kind == "pixels")
    call = Later(
        lambda: client.infer(
            SEGMENTATION,
            [tensor],
            request_id="mine",
            parameters={"deadline_ms": 15000.0, "meta": "m"},
            request_compression_algorithm=compressed,
            response_compression_algorithm=compressed,
        )
    )
    spec = worker.hear_job()
    assert (worker.image(spec) == PIXELS).all()
    assert spec.compute_deadline_s - spec.arrived_s < 15
    worker.finish(spec, 2, Stop.DEADLINE)
    found = call.result()
    assert (found.as_numpy("mask") == live.labels(2, 60, 90)[None]).all()
    answer = found.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", SEGMENTATION, "1")
    facts = answer["parameters"]
    assert (facts["exit"], facts["exits"], facts["final"], facts["stop"]) == (2, 4, False, "deadline")
    assert (facts["unsure"], facts["deadline_ms"], facts["meta"]) == (0.25, 15000, "m")


def test_who_waits_for_the_parser_is_answered_by_the_deadline_and_short_requests_do_not_wait(
    client: triton.InferenceServerClient, server: Live, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Executor()
    monkeypatch.setattr(busy, "submit", lambda *_: Future())
    monkeypatch.setattr(routes, "_PARSER", busy)
    call = Later(lambda: client.infer(SEGMENTATION, [pixels_input()]))
    worker.finish(worker.hear_job())
    assert (call.result().as_numpy("mask") == live.labels(4, 60, 90)[None]).all()
    timeouts = [("X-Request-Timeout-Seconds", "9"), ("X-Request-Timeout-Seconds", "0.05")]
    reply = server.http.post(
        f"/v2/models/{SEGMENTATION}/infer", content=b" " * (SHORT_JSON_BYTES + 1), headers=timeouts
    )
    assert reply.status_code == 504 and "the deadline was 50.0 ms" in reply.json()["error"]


def test_a_trace_goes_on(server: Live, worker: ScriptedWorker) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Request-Id": "a"}
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *PIXELS.shape], "data": PIXELS.ravel().tolist()}
    path = f"/v2/models/{SEGMENTATION}/infer"
    call = Later(lambda: server.http.post(path, json={"inputs": [tensor]}, headers=headers))
    worker.finish(worker.hear_job())
    for reply in (call.result(), server.http.post(path, json={}, headers=headers)):
        assert reply.headers["traceresponse"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
        assert reply.headers["X-Request-Id"] == "a"


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [("gzip;q=0, deflate;q=0.5", "deflate"), ("gzip;q=0", None), ("x-gzip", None), ("br, gzip", "gzip")],
)
def test_an_answer_is_compressed_as_the_client_accepts_it(accepted: str, coding: str | None) -> None:
    assert routes._content_encoding(accepted) == coding


@pytest.mark.parametrize("binary", [False, True])
def test_the_outputs_that_are_asked_for(
    client: triton.InferenceServerClient, worker: ScriptedWorker, binary: bool
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("map", "mask")]
    call = Later(lambda: client.infer(SEGMENTATION, [file_input()], outputs=outputs, parameters={"map": "unsure"}))
    worker.finish(worker.hear_job())
    found = call.result()
    assert [output["name"] for output in found.get_response()["outputs"]] == ["map", "mask"]
    assert (found.as_numpy("mask") == live.labels(4, 60, 90)[None]).all() and (found.as_numpy("map") == 0).all()


def test_a_pose_and_its_box(client: triton.InferenceServerClient, worker: ScriptedWorker) -> None:
    call = Later(lambda: client.infer(POSE, [file_input()], parameters={"box": "10,5,40,50"}))
    spec = worker.hear_job()
    assert spec.box == (10, 5, 40, 50)
    worker.finish(spec, 3, Stop.MAX_EXIT)
    assert (call.result().as_numpy("keypoints") == np.full((1, 16, 3), 3.1, np.float32)).all()


def test_the_asynchronous_client(server: Live, worker: ScriptedWorker) -> None:
    async def ask() -> np.ndarray:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_model_ready(SEGMENTATION)
            found = await client.infer(SEGMENTATION, [pixels_input()])
            return found.as_numpy("mask")

    call = Later(lambda: asyncio.run(ask()))
    worker.finish(worker.hear_job())
    assert (call.result() == live.labels(4, 60, 90)[None]).all()


@pytest.mark.parametrize(("given", "ours"), [(None, 1), (0, 1), (1, 2), (2, 1), (3, 0), (9, 0)])
def test_priorities(client: triton.InferenceServerClient, worker: ScriptedWorker, given: int | None, ours: int) -> None:
    call = Later(lambda: client.infer(SEGMENTATION, [file_input()], priority=given))
    spec = worker.hear_job()
    assert spec.priority == ours
    worker.finish(spec)
    call.result()


@pytest.mark.parametrize(
    ("timeout_us", "deadline_ms", "expected_ms"),
    [
        (9_000_000, 20000.0, 9000),
        (20_000_000, 8000.0, 8000),
        (0, 7000.0, 7000),
        pytest.param(10**400, 6000.0, 6000, id="huge"),
    ],
)
def test_the_smallest_deadline_wins(
    client: triton.InferenceServerClient,
    worker: ScriptedWorker,
    timeout_us: int,
    deadline_ms: float,
    expected_ms: float,
) -> None:
    asked = {"timeout": timeout_us, "parameters": {"deadline_ms": deadline_ms}}
    call = Later(lambda: client.infer(SEGMENTATION, [file_input()], **asked))
    worker.finish(worker.hear_job())
    assert call.result().get_response()["parameters"]["deadline_ms"] == expected_ms


def test_a_client_that_gives_up_cancels_its_request(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", protocol="v2", stop="disconnected")

    async def give_up() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            call = asyncio.create_task(client.infer(SEGMENTATION, [file_input()]))
            spec = await asyncio.to_thread(worker.hear_job)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await asyncio.to_thread(worker.hear_cancel)
        worker.end(spec, Stop.CANCELLED)

    asyncio.run(give_up())
    server.wait_for(lambda: server.metric("anytime_requests_total", protocol="v2", stop="disconnected") == before + 1)


@same_process_only
def test_an_id_in_the_body_is_known_to_its_client_alone(
    client: triton.InferenceServerClient, server: Live, worker: ScriptedWorker
) -> None:
    call = Later(lambda: client.infer(SEGMENTATION, [file_input()], request_id="chosen"))
    worker.finish(worker.hear_job())
    call.result()
    server.wait_for(lambda: server.metric("anytime_inflight_requests") == 0)
    registry = server.service.registry
    assert registry.find("chosen", Caller("127.0.0.1")).protocol == "v2"
    with pytest.raises(NotFoundError):
        registry.find("chosen", Caller("192.0.2.7"))


def test_a_client_is_refused_before_its_body_is_read_and_counted_once(tmp_path: Path) -> None:
    head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 1000\r\n\r\n" % SEGMENTATION.encode()
    with live.scripted(live.write_configs(tmp_path), client_rate=0.001, client_burst=2) as (server, next_worker):
        worker = next_worker()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head)
            assert connection.recv(100).startswith(b"HTTP/1.1 503")
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=live.PATIENCE_S) as client:
            call = Later(lambda: client.infer(SEGMENTATION, [file_input()]))
            worker.finish(worker.hear_job())
            call.result()
        refused = server.http.post(f"/v2/models/{SEGMENTATION}/infer", content=b"{}")
        assert (refused.status_code, refused.json()["code"]) == (429, "client_limit")


def test_statistics_count_answers_of_every_protocol(
    client: triton.InferenceServerClient, server: Live, worker: ScriptedWorker
) -> None:
    before = client.get_inference_statistics(SEGMENTATION)["model_stats"][0]["inference_stats"]
    call = Later(lambda: server.predict(deadline_ms=15000))
    worker.finish(worker.hear_job())
    call.result()
    server.wait_for(lambda: server.metric("anytime_inflight_requests") == 0)
    server.predict(b"no image")
    after = client.get_inference_statistics()["model_stats"]
    (found,) = (model["inference_stats"] for model in after if model["name"] == SEGMENTATION)
    grown = {part: found[part]["count"] - before[part]["count"] for part in found}
    assert grown == dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 1) | {
        "fail": 1
    }
    assert found["compute_infer"]["ns"] - before["compute_infer"]["ns"] == 400_000_000
    assert found["success"]["ns"] > before["success"]["ns"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timeout": -5}, "timeout is -5; give whole microseconds from 0, which is none"),
        ({"timeout": 1.5}, "timeout is 1.5; give whole microseconds from 0, which is none"),
        ({"priority": -1}, "priority is -1; it is 0 for the default, or 1 (highest) to 3"),
        ({"sequence_id": 3}, "sequence_id is 3, but models keep no state between requests; leave it out"),
        (
            {"parameters": {"deadline": 3}},
            "there is no parameter 'deadline' here; there are best_effort, box, captured_at, classes, deadline_ms, "
            "map, max_exit, meta, min_exit, priority, quality, roi, timeout",
        ),
        ({"parameters": {"model": "x"}}, "there is no parameter 'model' here; the path names the model"),
        ({"parameters": {"encoding": "rle"}}, "no parameter 'encoding' here; the outputs tell how they are sent"),
        ({"request_id": "x" * 200}, "the request's id has 200 characters"),
        ({"outputs": [triton.InferRequestedOutput("boxes")]}, "there is no output 'boxes'; there are mask"),
        ({"outputs": [triton.InferRequestedOutput("mask", class_count=3)]}, "asks for classification"),
        ({"model_version": "2"}, "there is no version '2'; every model has version 1"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: triton.InferenceServerClient, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(SEGMENTATION, [file_input()], **options)
    assert sentence in caught.value.message()


def test_errors_of_the_framework_are_sentences_too(server: Live, client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="no model is called 'boat'"):
        client.get_model_metadata("boat")
    with pytest.raises(InferenceServerException, match="models are loaded at the start alone"):
        client.load_model(POSE)
    for method, path, status in (("GET", "/v2/nothing", 404), ("DELETE", "/v2/models/a/infer", 405)):
        reply = server.http.request(method, path)
        assert reply.status_code == status and isinstance(reply.json()["error"], str)


TENSOR = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3]}


@pytest.mark.parametrize(
    ("tensor", "binary", "sentence"),
    [
        ({**TENSOR, "data": [1] * 5}, b"", "image has 5 values; its shape [1, 1, 2, 3] has 6"),
        ({**TENSOR, "data": [[1] * 5 + [256]]}, b"", "give whole numbers from 0 to 255"),
        ({**TENSOR, "data": [[1, 2], [3]]}, b"", "image has 3 values; its shape [1, 1, 2, 3] has 6"),
        ({**TENSOR, "data": [1.5] * 6}, b"", "give whole numbers from 0 to 255"),
        ({**TENSOR, "data": [True] * 6}, b"", "give whole numbers from 0 to 255"),
        ({**TENSOR, "data": []}, b"", "image has 0 values"),
        (TENSOR, b"", "give whole numbers from 0 to 255"),
        (
            {**TENSOR, "parameters": {"binary_data_size": 6}},
            b"12345",
            "binary_data_size of image is 6; 5 bytes are left",
        ),
        ({**TENSOR, "parameters": {"binary_data_size": -1}}, b"12345", "binary_data_size of image is -1"),
        ({**TENSOR, "parameters": {"binary_data_size": 5}}, b"12345", "image has 5 values"),
        ({**TENSOR, "parameters": {"binary_data_size": 6}}, b"1234567", "1 bytes follow the last tensor"),
        ({**TENSOR, "parameters": {"binary_data_size": 6}, "data": [1]}, b"123456", "send one of them"),
        ({**TENSOR, "parameters": {"shared_memory_region": "a"}}, b"", "is in shared memory, which is not served"),
        ({**TENSOR, "parameters": 3}, b"", "parameters of image are 3; give an object"),
        ({**TENSOR, "shape": [1, 2, 3], "data": [1] * 6}, b"", "image has the shape [1, 2, 3]; send UINT8"),
        ({**TENSOR, "shape": [2, 1, 1, 3], "data": [1] * 6}, b"", "image has the shape [2, 1, 1, 3]"),
        ({**TENSOR, "shape": [1, 1, 2, -3]}, b"", "is a list; give at most 8 whole numbers, none below 0"),
        ({**TENSOR, "datatype": "FP32", "data": [1] * 6}, b"", "datatype of image is 'FP32'; it may be UINT8 or BYTES"),
        ({**TENSOR, "name": "x", "data": [1] * 6}, b"", "the inputs are x; tiny-segmentation has one, image"),
        ({"datatype": "UINT8"}, b"", "inputs[0] has no name"),
        (
            {"name": "image", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
            b"",
            "has 2 elements of BYTES; send one",
        ),
        ({"name": "image", "datatype": "BYTES", "shape": [1], "data": ["a", "b"]}, b"", "has 2 elements; its shape"),
        (
            {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
            b"\x09\0\0\0ab",
            "is cut off",
        ),
        ({"name": "image", "datatype": "BYTES", "shape": [1], "data": ["a"]}, b"", "are not an image"),
    ],
)
def test_malformed_tensors_are_told_apart(
    server: Live, tensor: dict[str, object], binary: bytes, sentence: str
) -> None:
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    reply = server.http.post(f"/v2/models/{SEGMENTATION}/infer", content=text + binary, headers=headers)
    assert reply.status_code in (400, 415) and sentence in reply.json()["error"]


@pytest.mark.parametrize("length", ["-1", "1.5", "abc", "9999999", "", "9" * 5000])
def test_a_wrong_length_of_the_json(server: Live, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    reply = server.http.post(f"/v2/models/{SEGMENTATION}/infer", content=b"{}", headers=headers)
    assert reply.status_code == 400 and "Inference-Header-Content-Length is" in reply.json()["error"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"null", b"[" * 100_000, b'{"inputs": 3}', b'{"parameters": 3}', b"\xff"]
)
def test_a_body_that_is_no_request(server: Live, body: bytes) -> None:
    assert server.http.post(f"/v2/models/{SEGMENTATION}/infer", content=body).status_code == 400


def test_a_compressed_body_that_is_too_large_or_broken(server: Live) -> None:
    for content, encoding, status in (
        (gzip.compress(b" " * 10**8, 1), "gzip", 413),
        (gzip.compress(b"{}")[:-3], "gzip", 400),
        (zlib.compress(b"{}") + b"more", "deflate", 400),
        (b"{}", "gzip", 400),
        (b"{}", "br", 400),
    ):
        reply = server.http.post(
            f"/v2/models/{SEGMENTATION}/infer", content=content, headers={"Content-Encoding": encoding}
        )
        assert reply.status_code == status and reply.json()["error"]


def test_content_codings_are_read_in_any_case(server: Live, worker: ScriptedWorker) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *PIXELS.shape], "data": PIXELS.ravel().tolist()}
    body = gzip.compress(json.dumps({"inputs": [tensor]}).encode())
    path = f"/v2/models/{SEGMENTATION}/infer"
    call = Later(lambda: server.http.post(path, content=body, headers={"Content-Encoding": "GZip"}))
    worker.finish(worker.hear_job())
    assert call.result().status_code == 200


def test_long_json_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidError, match="the limit is 3,145,728: send tensors as binary data"):
        split_body(b"[" * (MAX_JSON_BYTES + 1), None)
    for field in (b"[],", b"{},", b'"a":1,'):
        with pytest.raises(InvalidError, match="lists and fields; the limit is 262,144: send tensors as binary"):
            split_body(b"{" + field * MAX_LISTS, None)
    split_body(b'{"a":[' + b",".join([b"[1,2,3]"] * 1000) + b"]}", None)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 4), (2, 7)])
def test_pixels_survive_as_a_bitmap(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(bitmap(pixels))).convert("RGB")) == pixels).all()
