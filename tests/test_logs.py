import json
import logging
from typing import Any

import pytest

from server.access.identity import Caller
from server.engine.messages import Stop
from server.errors import UnavailableError
from server.logs import configure_logging, formatter
from server.metrics import Metrics
from server.requests.registry import RequestRegistry
from server.requests.request_log import log_request
from server.trace_context import TraceContext


def line(log_format: str, **fields: Any) -> str:
    entry = {
        "name": "anytime.x",
        "levelname": "INFO",
        "msg": "hello %s",
        "args": ("you",),
        "created": 0.25,
        "msecs": 250,
    }
    return formatter(log_format).format(logging.makeLogRecord({**entry, **fields}))


def test_a_plain_line_has_its_time() -> None:
    assert line("plain") == "1970-01-01T00:00:00.250Z INFO anytime.x hello you"


def test_a_json_line_has_the_fields_of_a_request_and_nothing_twice() -> None:
    found = json.loads(line("json", color_message="HELLO", request_id="a", exit=3))
    known = {"time": "1970-01-01T00:00:00.250Z", "level": "INFO", "logger": "anytime.x", "message": "hello you"}
    assert found == {**known, "request_id": "a", "exit": 3}


def test_a_json_line_is_one_line_also_with_a_traceback() -> None:
    error = KeyError("x")
    text = line("json", exc_info=(KeyError, error, None))
    assert "\n" not in text and "KeyError" in json.loads(text)["exc_info"]


def test_logging_is_configured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("anytime-test")
    monkeypatch.setattr(logger, "propagate", False)  # pytest's handlers are above
    for log_format in ("json", "plain"):
        configure_logging("warning", log_format, "anytime-test")
    [handler] = logger.handlers
    assert handler.formatter and handler.formatter.format(logging.makeLogRecord({"msg": "a"})).startswith("{")
    assert logger.level == logging.WARNING


def test_a_request_is_logged_when_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    registry = RequestRegistry(Metrics({"model": 4}), 2, 3, log_request)
    with registry.open("http", 0.0, "mine", Caller("::1"), "model") as record:
        record.trace = TraceContext("1" * 32, "2" * 16)
        record.stop, record.deadline_s, record.exit = Stop.DEADLINE, 0.1, 3
    with pytest.raises(UnavailableError), registry.open("websocket", 0.0, "other"):
        raise UnavailableError("wait", "overloaded")
    done, refused = (json.loads(formatter("json").format(entry)) for entry in caplog.records)
    assert done.pop("ms") > 0 and done.pop("time") and done.pop("message")
    assert done == {
        "level": "INFO",
        "logger": "anytime.requests",
        "request_id": "mine",
        "trace_id": "1" * 32,
        "client": "::1",
        "protocol": "http",
        "model": "model",
        "exit": 3,
        "stop": "deadline",
        "code": "",
        "deadline_ms": 100.0,
    }
    assert (refused["stop"], refused["code"], refused["deadline_ms"]) == ("rejected", "overloaded", None)
    assert refused["message"].startswith("websocket request other of unknown for unknown: exit 0, overloaded after ")
