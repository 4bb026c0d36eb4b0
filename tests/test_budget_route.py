"""`GET /v1/budget`, and budgets that requests get, against a worker that the tests play."""

import json
from collections.abc import Iterator
from pathlib import Path

import live
import pytest
import tiny
from hosts import same_process_only
from live import Later, Live, ScriptedWorker, photo

SEGMENTATION = tiny.SEGMENTATION.name
FILE = f"""
[models.{SEGMENTATION}]
default_deadline_ms = 5000
max_exit = 3

[[traffic]]
open_requests = 2
max_deadline_ms = 4000
max_exit = 2

[[input]]
pixels = 10_000
max_exit = 1
"""
WISH, MODEL = "deadline_ms is 700", f"{SEGMENTATION} has exits 1 to 4"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, ScriptedWorker]]:
    folder = tmp_path_factory.mktemp("models")
    live.write_configs(folder, (tiny.SEGMENTATION,))
    (folder / "budget.toml").write_text(FILE)
    with live.scripted(folder, budget=folder / "budget.toml") as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        yield server, worker


def test_every_source_explains_itself(server: Live) -> None:
    body = server.http.get("/v1/budget", params={"deadline_ms": 700, "width": 200, "height": 100}).json()
    assert (body["deadline_ms"], body["max_exit"]) == (700, 1)
    assert body["sources"] == [
        {"name": "request", "deadline_ms": 700, "why": WISH},
        {"name": "model", "max_exit": 4, "why": MODEL},
        {"name": "model", "max_exit": 3, "why": f"{SEGMENTATION} gets exits 1 to 3"},
        {"name": "server", "deadline_ms": 30_000, "why": "this server gets 30000 ms at most"},
        {"name": "input", "max_exit": 1, "why": "the image has 20,000 pixels; the rule is for 10,000 and more"},
    ]
    predicted = body["predicted"]
    assert [found["exit"] for found in predicted] == [1, 2, 3, 4]
    assert predicted[0]["ms"] > 0 and sorted(found["ms"] for found in predicted) == [found["ms"] for found in predicted]


def test_of_several_deadlines_the_smallest_counts_as_in_a_request(server: Live) -> None:
    for query in ("deadline_ms=700&deadline_ms=900", "deadline_ms=900&deadline_ms=700"):
        assert server.http.get(f"/v1/budget?{query}").json()["deadline_ms"] == 700


def test_what_is_missing_has_defaults(server: Live) -> None:
    body = server.http.get("/v1/budget?width=9&height=9").json()
    assert (body["deadline_ms"], body["max_exit"]) == (5000, 3)
    why = f"deadline_ms is missing, and {SEGMENTATION} gets 5000"
    assert {"name": "model", "deadline_ms": 5000, "why": why} in body["sources"]


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("width=0&height=5", 400, "width is '0'; sides are whole numbers from 1 to 131,072"),
        ("width=5", 400, "width is given and height is missing; give both or neither"),
        ("height=5", 400, "height is given and width is missing; give both or neither"),
        ("deadline_ms=-1", 400, "deadline_ms is -1; it must be above 0, for example 100"),
        ("exit=1", 400, "there is no parameter 'exit'; there are deadline_ms, height, model, width"),
        ("width=9000&height=9000", 413, "the image is 9000x9000, which is 81,432,576 pixels after padding"),
        ("model=nobody", 404, "no model is called 'nobody'"),
    ],
)
def test_a_bad_query_says_what_would_be_right(server: Live, query: str, status: int, sentence: str) -> None:
    reply = server.http.get(f"/v1/budget?{query}")
    assert reply.status_code == status and reply.json()["error"].startswith(sentence)


def test_it_is_documented(server: Live) -> None:
    described = server.http.get("/openapi.json").json()["paths"]["/v1/budget"]["get"]
    assert [parameter["name"] for parameter in described["parameters"]] == ["model", "deadline_ms", "width", "height"]
    assert described["parameters"][2]["schema"] == {"type": "integer", "minimum": 1, "maximum": 131_072}
    answer = described["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/BudgetBody"}
    assert server.http.post("/v1/budget").headers["allow"] == "GET"


def test_before_the_worker_is_ready_nothing_is_predicted(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path)) as (fresh, next_worker):
        next_worker()
        body = fresh.http.get("/v1/budget").json()
        assert (body["deadline_ms"], body["max_exit"], body["predicted"]) == (20_000, 4, [])


def test_requests_get_the_budget_that_is_told(server: Live, worker: ScriptedWorker) -> None:
    first = Later(lambda: server.predict(priority=2))
    spec = worker.hear_job()
    assert (spec.max_exit, spec.priority) == (3, 2) and spec.client == "127.0.0.1"
    told = server.http.get("/v1/budget?width=9&height=9").json()
    assert (told["deadline_ms"], told["max_exit"]) == (4000, 2)
    assert told["sources"][-1]["why"] == "2 requests are open; the rule is for 2 and more"
    second = Later(lambda: server.predict(photo(100, 200)))
    large = worker.hear_job()
    assert large.max_exit == 1  # what the traffic limits is not lasting, so it is not the job's
    assert worker.hear_cap() == 2
    assert "input" in [source["name"] for source in server.http.get("/v1/budget").json()["sources"]]  # the last size
    worker.finish(large, 1)
    assert worker.hear_cap() is None
    worker.finish(spec, 1)
    assert (first.result().json()["deadline_ms"], second.result().json()["deadline_ms"]) == (5000, 4000)


def test_min_exit_beyond_what_lasts_is_refused(server: Live, worker: ScriptedWorker) -> None:
    reply = server.predict(min_exit=4)
    assert (reply.status_code, reply.json()["code"]) == (400, "bad_parameter")
    rule = f"{SEGMENTATION} gets exits 1 to 3"
    assert reply.json()["error"] == f"min_exit is 4, but {rule}; ask for less, or give best_effort=true"
    assert server.predict(photo(100, 200), min_exit=2).json()["error"].startswith("min_exit is 2, but the image has")
    call = Later(lambda: server.predict(min_exit=4, best_effort="true"))
    spec = worker.hear_job()
    assert (spec.max_exit, spec.required, spec.min_exit) == (3, 1, 4)
    worker.finish(spec, 1)
    assert call.result().status_code == 200


@same_process_only
def test_a_wrong_budget_file_is_named(tmp_path: Path) -> None:
    folder = live.write_configs(tmp_path)
    path = tmp_path / "wrong.toml"
    path.write_text("[models.nobody]")
    with (
        pytest.raises(ValueError, match=r"wrong\.toml: models\.nobody is not served; served are tiny-"),
        live.scripted(folder, budget=path),
    ):
        pass


def test_the_websocket_has_priorities_too(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        connection.send(json.dumps({"type": "predict", "id": "a", "priority": 0}))
        connection.send(photo())
        spec = worker.hear_job()
        host, port = connection.local_address
        assert (spec.priority, spec.client) == (0, f"{host}:{port}")
        worker.finish(spec, 1)


def test_another_worker_hears_how_deep_it_may_go(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path, (tiny.SEGMENTATION,)), traffic_cap="0:2") as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        call = Later(server.predict)
        worker.hear_job()
        assert worker.hear_cap() == 2
        worker.die()
        other = next_worker()
        other.say_ready()
        assert other.hear_cap() == 2
        assert call.result().status_code == 503
