"""The load generator: the requests that it sends, and the figures that it reports."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from adpc_client import AsyncClient, CancelledRequestError, End, NoExitError, NotFoundError, ServerFaultError
from adpc_client.load import LoadReport, LoadTestPlan, Outcome, draw_requests, run, summarise, table

PLAN = LoadTestPlan(images=[b"image"], count=400, rate_per_s=50, deadline_ms=(50, 150), cancel_share=0.3, seed=3)


def test_shots_are_drawn_as_planned_and_the_same_again():
    requests = list(draw_requests(PLAN))
    assert requests == list(draw_requests(PLAN)) != list(draw_requests(replace(PLAN, seed=4)))
    assert len(requests) == 400
    assert requests[-1].due_s == pytest.approx(400 / 50, rel=0.2)
    gaps = [later.due_s - sooner.due_s for sooner, later in pairwise(requests)]
    assert min(gaps) >= 0 and max(gaps) > 3 / 50  # Poisson, not a metronome
    assert all(50 <= request.deadline_ms <= 150 for request in requests)
    given_up = [request for request in requests if request.give_up_s is not None]
    assert len(given_up) == pytest.approx(0.3 * 400, rel=0.2)
    assert all(request.give_up_s <= request.deadline_ms / 1000 for request in given_up)
    assert 0.3 < sum(request.hang_up for request in given_up) / len(given_up) < 0.7


def test_the_figures():
    outcomes = [
        Outcome(4, "complete", -20.0, 0.1),
        Outcome(2, "deadline", 3.0, 0.2),
        Outcome(1, "deadline", 30.0, 0.1),
        Outcome(0, "no_exit", 2.0, 0.1),
        Outcome(1, "cancelled", -40.0, 0.1),
        Outcome(0, "hung_up", -10.0, 0.1),
    ]
    report = summarise(outcomes, seconds=2.0, grace_ms=5.0)
    assert report == LoadReport(
        requests=6,
        seconds=2.0,
        answered_per_s=2.0,
        good_per_s=1.0,
        good_share=0.5,
        exits={"0": 2, "1": 2, "2": 1, "4": 1},
        stops={"deadline": 2, "complete": 1, "no_exit": 1, "cancelled": 1, "hung_up": 1},
        late_ms=report.late_ms,
        lag_ms=report.lag_ms,
        faults=0,
    )
    assert report.late_ms["p50"] == -8.5 and report.late_ms["p100"] == 30.0
    text = table(report)
    assert "6 requests in 2.0 s: 2.0/s answered, 1.0/s in time, 50.0% of those wanted" in text
    assert "no exit" in text and "2 deadline, 1 complete" in text


def test_figures_of_nothing():
    report = summarise([Outcome(0, "overloaded", 0.0, 0.0)], 1.0, 5.0)
    assert report.late_ms == {} and report.good_share == 0.0
    assert table(report)


class Server:
    """Stands in for AsyncClient. The n-th request is answered by the n-th of `replies`, over and over: an exit, an
    error, or None, which waits until it is cancelled."""

    def __init__(self, *replies):
        self.replies, self.asked, self.most_open, self.open = replies, 0, 0, {}

    async def predict(self, image, *, model, deadline_ms, **options):
        reply = self.replies[self.asked % len(self.replies)]
        self.asked += 1
        cancelled = self.open[options["id"]] = asyncio.Event()
        self.most_open = max(self.most_open, len(self.open))
        try:
            await (cancelled.wait() if reply is None else asyncio.sleep(0))
        finally:
            del self.open[options["id"]]
        if reply is None:
            raise CancelledRequestError("cancelled", status=499, code="cancelled")
        if isinstance(reply, Exception):
            raise reply
        return End(reply, "complete", 1.0)

    async def cancel(self, identifier):
        if identifier not in self.open:
            raise NotFoundError("answered first", status=404, code="unknown_request")
        self.open[identifier].set()


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for is other tasks' progress, turn by turn
        await asyncio.sleep(0)


def fire(server, **changes):
    plan = replace(LoadTestPlan(images=[b"image"], count=30, deadline_ms=(5000, 5000)), **changes)
    return asyncio.run(run(server, plan))


def test_a_closed_loop_has_so_many_users():
    server = Server(4)
    report = fire(server, concurrency=3)
    assert (server.asked, server.most_open) == (30, 3)
    assert report.exits == {"4": 30} and report.good_share == 1.0 and report.faults == 0


def test_an_open_loop_sends_whether_or_not_it_is_answered():
    server = Server(None)

    async def main():
        firing = asyncio.create_task(run(server, LoadTestPlan(images=[b"image"], count=20, rate_per_s=1e6)))
        await until(lambda: len(server.open) == 20)
        firing.cancel()

    asyncio.run(main())


def test_requests_beyond_the_bound_are_not_sent_but_counted():
    server = Server(None)
    report = fire(server, rate_per_s=1e6, max_open=2, deadline_ms=(20, 20), cancel_share=1.0)
    assert report.stops["not_sent"] >= 1 and sum(report.stops.values()) == 30
    assert server.most_open == 2


def test_refusals_are_findings_and_failures_are_faults():
    late = NoExitError("too late", status=504, code="no_exit")
    broken = ServerFaultError("broken", status=500, code="internal")
    report = fire(Server(3, late, broken), concurrency=2)
    assert report.stops == {"complete": 10, "no_exit": 10, "internal": 10}
    assert report.faults == 10 and report.exits == {"0": 20, "3": 10}


def test_a_share_is_cancelled_or_hung_up():
    plan = {"rate_per_s": 1e6, "cancel_share": 1.0, "deadline_ms": (5, 5)}
    report = fire(Server(None), **plan)
    assert set(report.stops) == {"cancelled", "hung_up"} and sum(report.stops.values()) == 30
    assert report.good_share == report.faults == 0
    assert fire(Server(2), **plan).stops["complete"] >= 1  # answered before it was cancelled: no fault


def test_the_real_client_fits():
    assert {"predict", "stream", "cancel"} <= set(dir(AsyncClient))
