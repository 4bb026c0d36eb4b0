"""The statistics of a model: which requests count as answered, and what their parts have taken."""

from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.messages import Exited, Stop
from server.requests.record import RequestRecord
from server.requests.statistics import ModelStatistics

PARTS = ("queue", "decode", "compute", "encode")


def ended(stop: Stop, *, begun: bool = True) -> RequestRecord:
    """A request from 6 s to 7 s, whose job waited from 6.2 s to 6.25 s and ended at 6.9 s."""
    exits = [Exited(1, index, 0.5, 10, stage_s, 6.25, 6.8) for index, stage_s in ((1, 0.2), (2, 0.3))]
    job: Any = SimpleNamespace(exits=exits, submitted_s=6.2, stopped_s=6.9)
    return RequestRecord("a", "http", 6.0, stop=stop, elapsed_s=1.0, decode_s=0.15, job=job if begun else None)


@pytest.mark.parametrize("stop", [Stop.COMPLETE, Stop.QUALITY, Stop.DEADLINE, Stop.MAX_EXIT])
def test_an_answer_counts_with_all_its_parts(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.requests.statistics.time", SimpleNamespace(time=lambda: 1_700_000_000.25))
    found = ModelStatistics()
    for _ in range(2):
        found.count(ended(stop))
    assert (found.success.count, found.success.seconds) == (2, 2.0) and found.fail.count == 0
    assert [getattr(found, part).count for part in PARTS] == [2] * 4
    assert [getattr(found, part).seconds for part in PARTS] == pytest.approx([0.1, 0.3, 1.0, 0.2])
    assert found.last_unix_ms == 1_700_000_000_250


@pytest.mark.parametrize("stop", sorted(set(Stop) - {Stop.COMPLETE, Stop.QUALITY, Stop.DEADLINE, Stop.MAX_EXIT}))
@pytest.mark.parametrize("begun", [True, False])
def test_a_request_without_an_answer_counts_as_failed_alone(stop: Stop, begun: bool) -> None:
    found = ModelStatistics()
    found.count(ended(stop, begun=begun))
    assert (found.fail.count, found.fail.seconds) == (1, 1.0)
    assert [getattr(found, part).count for part in (*PARTS, "success")] == [0] * 5 and found.last_unix_ms == 0
