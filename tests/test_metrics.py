import ast
import os
import re
from pathlib import Path

import live
import pytest

from server.app import create_app
from server.engine.messages import Stop
from server.engine.usage import Usage, usage
from server.errors import REFUSALS, TooManyRequestsError, UnavailableError, WorkerLostError
from server.metrics import MILLISECONDS, Metrics
from server.requests.registry import RequestRegistry
from server.settings import ROOT, Settings


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"anytime_{name}", labels)


def test_buckets_are_fine_where_deadlines_are() -> None:
    assert {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000} <= set(MILLISECONDS)
    assert {7.5, 15, 30, 40, 75, 150, 300} <= set(MILLISECONDS) and list(MILLISECONDS) == sorted(MILLISECONDS)


def test_answers_in_time_have_a_bucket_of_their_own() -> None:
    metrics = Metrics({"model": 1})
    for late_s in (0.0, 0.0, 0.0005):
        metrics.overrun.labels("model").observe(late_s)
    bucket = "deadline_overrun_seconds_bucket"
    assert value(metrics, bucket, model="model", le="0.0") == 2
    assert value(metrics, bucket, model="model", le="0.001") == 3


def test_a_refusal_is_counted_by_its_reason_and_the_asked_deadline_once() -> None:
    metrics = Metrics({"model": 1})
    registry = RequestRegistry(metrics, max_open=1, history=1)
    assert all(value(metrics, "refusals_total", model="model", reason=reason) == 0 for reason in REFUSALS)
    with pytest.raises(UnavailableError), registry.open("http", 0.0, model="model") as record:
        record.options = record.options.model_copy(update={"deadline_ms": 40.0})
        raise UnavailableError("wait", "overloaded")
    assert value(metrics, "refusals_total", model="model", reason="overloaded") == 1
    assert value(metrics, "asked_deadline_seconds_bucket", model="model", le="0.03") == 0
    assert value(metrics, "asked_deadline_seconds_bucket", model="model", le="0.04") == 1
    with registry.open("http", 0.0, model="model") as record:
        record.stop = Stop.COMPLETE
    assert value(metrics, "asked_deadline_seconds_count", model="model") == 1
    assert sum(value(metrics, "refusals_total", model="model", reason=reason) or 0 for reason in REFUSALS) == 1


REFUSED = {error.__name__ for error in (UnavailableError, TooManyRequestsError)}


def refusal_codes(path: Path) -> set[str]:
    """The codes of all refusals that a module raises."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in REFUSED]
    return {str(ast.literal_eval(call.args[1])) for call in made}


def test_every_reason_of_refusal_has_its_series() -> None:
    assert WorkerLostError.stop != UnavailableError.stop == TooManyRequestsError.stop == "rejected"
    found = {code for path in (ROOT / "server").rglob("*.py") for code in refusal_codes(path)}
    assert found == set(REFUSALS)


def test_limits_are_shown() -> None:
    metrics = Metrics({})
    limits = {"max_open": 7, "max_sockets": 8, "shared_memory_bytes": 2**21, "max_body_bytes": 9, "max_pixels": 2**20}
    metrics.show_limits(Settings(**limits, max_deadline_ms=2500, default_deadline_ms=500))
    shown = {
        "max_open_requests": 7,
        "max_websocket_connections": 8,
        "max_shared_memory_bytes": 2**21,
        "max_body_bytes": 9,
        "max_image_pixels": 2**20,
        "max_deadline_seconds": 2.5,
        "default_deadline_seconds": 0.5,
    }
    assert {name: value(metrics, name) for name in shown} == shown


def test_series_may_be_read_at_the_scrape() -> None:
    metrics, seconds = Metrics({}), [1.0]
    metrics.watch_each("worn_seconds", "Wear", ("device",), lambda: [(("cpu",), seconds[0])], counts=True)
    metrics.watch_each("heat_ratio", "Heat", ("device",), lambda: [(("cpu",), 0.5)])
    seconds[0] = 2.0
    text = metrics.text().decode()
    assert (
        "# TYPE anytime_worn_seconds_total counter" in text and 'anytime_worn_seconds_total{device="cpu"} 2.0' in text
    )
    assert "# TYPE anytime_heat_ratio gauge" in text and 'anytime_heat_ratio{device="cpu"} 0.5' in text


def test_the_usage_of_a_process() -> None:
    found = usage(os.getpid())
    assert found.cpu_s > 0 and found.memory_bytes > 2**20
    assert usage(2**30) == Usage()


def test_the_documents_name_every_metric_and_no_other(tmp_path: Path) -> None:
    app = create_app(live.settings(live.write_configs(tmp_path)), print)
    families = app.state.service.metrics.registry.collect()
    names = {family.name + "_total" * (family.type == "counter") for family in families if "anytime" in family.name}
    assert set(re.findall(r"`(anytime_\w+)", (ROOT / "docs" / "operations.md").read_text())) == names


def test_every_series_of_a_model_is_there_from_the_start() -> None:
    families = [family for family in Metrics({"model": 2}).registry.collect() if family.name.startswith("anytime_")]
    known_later = {"anytime_worker_up", "anytime_executor_info", "anytime_precision_info"}
    assert {family.name for family in families if not family.samples} == known_later
    exits: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            if sample.labels.get("model") == "model" and "exit" in sample.labels:
                exits.setdefault(family.name, set()).add(sample.labels["exit"])
    assert exits.pop("anytime_exits_reached") == {"0", "1", "2"}
    assert exits and set(map(frozenset, exits.values())) == {frozenset("12")}
