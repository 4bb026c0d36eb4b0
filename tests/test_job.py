"""A job as the front end sees it: when its answer could have been encoded."""

from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.job import Job
from server.engine.messages import Exited, Stop

DEADLINE_S = 10.0


@pytest.mark.parametrize(
    ("stop", "exit_s", "stopped_s", "answerable_s"),
    [
        (Stop.DEADLINE, 9.0, 10.5, DEADLINE_S),  # the timer fired late
        (Stop.DEADLINE, 10.003, 10.5, 10.003),  # the exit came within the grace
        (Stop.DEADLINE, 9.0, 9.5, 9.5),  # the worker ended the job early: no further exit would have fitted
        (Stop.COMPLETE, 9.0, 10.5, 10.5),
    ],
)
def test_when_encoding_could_have_begun(stop: Stop, exit_s: float, stopped_s: float, answerable_s: float) -> None:
    nothing: Any = None
    place: Any = SimpleNamespace(expected=SimpleNamespace(deadline_s=DEADLINE_S))
    reached = Exited(1, 1, active_share=1.0, macs=0, stage_s=0.1, started_s=8.0, finished_s=exit_s)
    job = Job(nothing, nothing, place, memoryview(b""), 8.0, [reached], stop=stop, stopped_s=stopped_s)
    assert job.answerable_s == answerable_s


@pytest.mark.parametrize(
    ("exits", "final"), [([], False), ([(1, False)], False), ([(1, False), (2, True)], True), ([(4, False)], True)]
)
def test_an_exit_is_final_if_none_after_it_will_differ(exits: list[tuple[int, bool]], final: bool) -> None:
    nothing: Any = None
    model: Any = SimpleNamespace(config=SimpleNamespace(exits=4))
    reached = [Exited(1, index, 1.0, 0, 0.1, 8.0, 9.0, final=last) for index, last in exits]
    assert Job(nothing, model, nothing, memoryview(b""), 8.0, reached).final is final
