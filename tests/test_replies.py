"""Bodies of replies. Those of a whole server are in test_http.py and test_stream.py."""

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from pydantic import TypeAdapter

from server.catalog import ServedModel
from server.engine.messages import Exited, Stop
from server.errors import UnavailableError
from server.protocols.bodies import PredictionBody
from server.protocols.replies import error_reply, http_reply, to_json
from server.requests.record import RequestRecord


@pytest.mark.parametrize("config", [tiny.SEGMENTATION, tiny.POSE], ids=lambda config: config.task)
def test_an_answer_is_as_documented(config: Any, tmp_path: Any) -> None:
    """The fields of the answer, and their types, are those of the API's documentation."""
    model = ServedModel("model", tmp_path, config)
    layout = model.layout(4, 5, extra=True)
    job: Any = SimpleNamespace(
        spec=SimpleNamespace(layout=layout, extra="unsure"),
        model=model,
        latest=2,
        final=False,
        exits=[Exited(1, index, 0.5, 10, 0.1, 7.0, 7.1) for index in (1, 2)],
        stop=Stop.DEADLINE,
        submitted_s=6.5,
        labels=lambda _: np.ones((4, 5), np.uint8),
        keypoints=lambda _: np.ones((16, 3), np.float32),
        extra_map=lambda _: np.zeros((4, 5), np.uint8),
    )
    record = RequestRecord("a", "http", 6.0, encoding="application/json", deadline_s=6.25)
    sent = http_reply(record, job).body
    body = TypeAdapter(PredictionBody).validate_json(sent)
    assert body == json.loads(sent)
    assert (body["exit"], body["deadline_ms"], body["timing"]["queue_ms"]) == (2, 250, 500)
    assert ("mask" in body) == (config.task == "segmentation") == ("keypoints" not in body)


def test_replies_are_strict_json() -> None:
    assert to_json({"a": ["ü", None, 1.5]}) == b'{"a":["\\u00fc",null,1.5]}'
    assert to_json({"id": "\ud800"}) == b'{"id":"\\ud800"}'  # half a character, which a client may well send
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": math.nan})


@pytest.mark.parametrize(("wait_s", "told"), [(None, None), (0.0, "1"), (0.2, "1"), (2.0, "2"), (2.2, "3")])
def test_whoever_waits_for_the_whole_seconds_that_are_told_has_waited_long_enough(
    wait_s: float | None, told: str | None
) -> None:
    error = UnavailableError("full", "overloaded", wait_s)
    assert error_reply(error, error.status, None).headers.get("retry-after") == told
