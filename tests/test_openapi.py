"""OpenAPI describes every answer, and what a live server answers fits what it says."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import live
import pytest
import tiny
from live import Later, Live, ScriptedWorker, photo

SEGMENTATION, POSE = tiny.SEGMENTATION.name, tiny.POSE.name
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [0] * 192}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, ScriptedWorker]]:
    folder: Path = live.write_configs(tmp_path_factory.mktemp("models"))
    with live.scripted(folder, default_model=SEGMENTATION) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        yield server, worker


@pytest.fixture(scope="module")
def described(started: tuple[Live, ScriptedWorker]) -> Mapping[str, Any]:
    found: dict[str, Any] = started[0].http.get("/openapi.json").json()
    return found


def misfit(schema: Mapping[str, Any], value: Any, described: Mapping[str, Any], where: str = "$") -> str | None:
    """Where `value` does not fit a schema of OpenAPI, or None. A field that the schema does not name is a misfit."""
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        misfits = [misfit(choice, value, described, where) for choice in schema["anyOf"]]
        return None if None in misfits else " and ".join(map(str, misfits))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        fits = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    else:
        fits = isinstance(value, TYPES.get(kind, object))
    if not fits or value not in schema.get("enum", [schema.get("const", value)]):
        return f"{where} is {value!r}, not {schema}"
    if isinstance(value, list):
        parts = [(schema["items"], element, f"{where}[{number}]") for number, element in enumerate(value)]
    elif isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", False)
        missing = set(schema.get("required", ())) - set(value)
        unknown = set() if others else set(value) - set(known)
        if missing or unknown:
            return f"{where} lacks {missing or 'nothing'}, and has {unknown or 'nothing'} that is not described"
        parts = [(known.get(name, others), element, f"{where}.{name}") for name, element in value.items()]
    else:
        parts = []
    return next(filter(None, (misfit(part, element, described, at) for part, element, at in parts)), None)


def test_every_answer_has_a_schema(described: Mapping[str, Any]) -> None:
    operations = [
        (f"{method} {path}", operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) > 20
    for name, operation in operations:
        answers = operation["responses"]
        assert set(answers) <= {"200", "400", "4XX", "5XX", "503"}, name
        kinds = answers["400" if name.endswith("load") else "200"]["content"]
        assert kinds and all(kind["schema"] for kind in kinds.values()), name
        assert answers["4XX"]["content"]["application/json"]["schema"], name
        assert operation["description"], name


@pytest.mark.parametrize(
    ("method", "path", "url"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/{name}", f"/v1/models/{SEGMENTATION}"),
        ("GET", "/v1/models/{name}", f"/v1/models/{POSE}"),
        ("GET", "/v1/budget", "/v1/budget?deadline_ms=700"),
        ("GET", "/health/live", None),
        ("GET", "/health/ready", None),
        ("GET", "/v2", None),
        ("GET", "/v2/health/live", None),
        ("GET", "/v2/health/ready", None),
        ("GET", "/v2/models/stats", None),
        ("GET", "/v2/models/{name}", f"/v2/models/{POSE}"),
        ("GET", "/v2/models/{name}/versions/{version}/ready", f"/v2/models/{POSE}/versions/1/ready"),
        ("GET", "/v2/models/{name}/config", f"/v2/models/{POSE}/config"),
        ("GET", "/v2/models/{name}/stats", f"/v2/models/{POSE}/stats"),
        ("POST", "/v2/repository/index", None),
    ],
)
def test_an_answer_fits_its_schema(
    started: tuple[Live, ScriptedWorker], described: Mapping[str, Any], method: str, path: str, url: str | None
) -> None:
    reply = started[0].http.request(method, url or path)
    assert reply.status_code == 200
    check(described, method, path, reply.json())


def check(described: Mapping[str, Any], method: str, path: str, body: Any, status: str = "200") -> None:
    answer = described["paths"][path][method.lower()]["responses"][status]
    assert misfit(answer["content"]["application/json"]["schema"], body, described) is None


@pytest.mark.parametrize(
    "query",
    [
        {"model": SEGMENTATION, "map": "exit", "meta": "front"},
        {"model": SEGMENTATION, "encoding": "rle", "classes": "road"},
        {"model": POSE},
    ],
)
def test_a_prediction_fits_its_schema(
    started: tuple[Live, ScriptedWorker], described: Mapping[str, Any], query: Mapping[str, str]
) -> None:
    server, worker = started
    call = Later(lambda: server.http.post("/v1/predict", params=query, content=photo(), headers={"X-Request-Id": "a"}))
    worker.finish(worker.hear_job())
    check(described, "POST", "/v1/predict", call.result().json())
    for method in ("GET", "DELETE"):
        body = server.http.request(method, "/v1/requests/a").json()
        check(described, method, "/v1/requests/{request_id}", body)


def test_an_inference_fits_its_schema(started: tuple[Live, ScriptedWorker], described: Mapping[str, Any]) -> None:
    server, worker = started
    body = {"inputs": [IMAGE], "parameters": {"meta": "front"}}
    call = Later(lambda: server.http.post(f"/v2/models/{SEGMENTATION}/infer", json=body))
    worker.finish(worker.hear_job())
    check(described, "POST", "/v2/models/{name}/infer", call.result().json())


@pytest.mark.parametrize("url", ["/v1/predict", "/v1/models/nobody", "/v1/requests/nobody", "/v2/models/nobody/config"])
def test_an_error_fits_its_schema(started: tuple[Live, ScriptedWorker], described: Mapping[str, Any], url: str) -> None:
    check(described, "POST", "/v1/predict", started[0].http.get(url).json(), "4XX")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"error": "no", "code": "no", "id": 3}, "$.id is 3"),
        ({"error": "no", "code": "no"}, "$ lacks {'id'}"),
        ({"error": "no", "code": "no", "id": None, "more": 1}, "has {'more'} that is not described"),
        ([], "$ is []"),
    ],
)
def test_a_misfit_is_found(described: Mapping[str, Any], value: Any, complaint: str) -> None:
    assert complaint in str(misfit({"$ref": "#/components/schemas/ErrorBody"}, value, described))
