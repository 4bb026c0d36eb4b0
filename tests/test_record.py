"""The record of a request: the sentences about an answer that is not there in time."""

from types import SimpleNamespace

import pytest

from server.engine.messages import Stop
from server.errors import NoExitError
from server.requests.record import RequestRecord


def refused(required: int, latest: int, required_s: float, age_s: float = 0.0) -> str:
    """The sentence about a request that came at 6 s, was handed to the worker at 6.2 s, and was due at 7 s."""
    record = RequestRecord("a", "http", 6.0, deadline_s=7.0, answer_s=0.05, age_s=age_s)
    job = SimpleNamespace(
        stop=Stop.DEADLINE if latest else Stop.NO_EXIT,
        latest=latest,
        exits=[None] * latest,
        spec=SimpleNamespace(required=required),
        submitted_s=6.2,
        stopped_s=6.95,
        required_s=required_s,
    )
    with pytest.raises(NoExitError) as caught:
        record.check_answer(job)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_request_without_an_exit_is_told_the_deadline_that_it_needs() -> None:
    times = "after 950 of 1000.0 ms; encoding needs 50 ms, and exit 1 takes 1163 ms here"
    needed = "give deadline_ms=1420 or more, or a smaller image"
    assert refused(1, 0, 1.163) == f"no exit was there {times}: {needed}"
    assert f"only exit 2 was there {times}".replace("exit 1", "exit 3") in refused(3, 2, 1.163)
    assert refused(3, 2, 1.163).endswith(
        "give deadline_ms=1420 or more, a smaller image, a smaller min_exit, or best_effort=true to get what there is"
    )


def test_the_needed_deadline_counts_from_the_capture() -> None:
    assert "give deadline_ms=1920 or more" in refused(1, 0, 1.163, age_s=0.5)


@pytest.mark.parametrize("required_s", [0.0, 0.3])
def test_no_deadline_is_named_that_would_not_be_later(required_s: float) -> None:
    """In the first case the server does not know how long the exit takes. In the second case the request had time for
    it, but waited for other requests."""
    assert refused(1, 0, required_s).endswith(": give a later deadline_ms, or a smaller image")
