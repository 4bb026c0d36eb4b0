"""How a load test keeps its pace, in time that passes only while everybody waits."""

import asyncio
import io
import selectors
from dataclasses import dataclass, replace

import pytest
from adpc_client import ConnectionFailedError, NoExitError, OverloadedError, ServerFaultError
from adpc_client.load import LoadTestPlan, PlannedRequest
from adpc_client.load.alarm import LoopAlarm
from adpc_client.load.command import ProgressLine
from adpc_client.load.payloads import Payloads
from adpc_client.load.runner import SILENCE_S, LoadRunner
from adpc_client.load.transport import OpenRequest
from PIL import Image

FILE = io.BytesIO()
Image.new("RGB", (4, 2)).save(FILE, "PNG")
IMAGE = FILE.getvalue()


class VirtualClock(selectors.SelectSelector):
    """Instead of waiting for a timer, it moves the time on to it. Work takes a nanosecond a turn."""

    now_s = 1000.0

    def select(self, timeout=None):
        assert timeout is not None, "everybody waits for ever"
        self.now_s += timeout or 1e-9
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.virtual = VirtualClock()
        super().__init__(self.virtual)

    def time(self):
        return self.virtual.now_s


@dataclass(frozen=True)
class Scripted:
    """What a request meets: exits, each after so many seconds, then an end or an error, or nothing more."""

    exits: tuple[tuple[float, int], ...] = ()
    ends_s: float | None = None
    error: Exception | None = None
    accepts_s: float = 0.0
    refuses: Exception | None = None


class ScriptedRequest(OpenRequest):
    def __init__(self, loop, script):
        super().__init__(loop.time)
        self.calls = []
        self._loop, self._start_s = loop, loop.time()
        for after_s, number in script.exits:
            loop.call_later(after_s, self.reach, number)
        if script.ends_s is not None:
            loop.call_later(script.ends_s, self._over, script.error)

    def _over(self, error):
        if error:
            self.fail(error)
        else:
            self.end("complete", 0.25, 10.0)

    def _note(self, call):
        self.calls.append((call, round(self._loop.time() - self._start_s, 4)))

    def cancel(self):
        self._note("cancel")
        self.end("cancelled")

    def hang_up(self):
        self._note("hang_up")
        self.end("hung_up")

    def give_way(self):
        self._note("give_way")


class ScriptedTransport:
    """A transport whose n-th request follows the n-th script. After the last script, the first one is used again.

    If the script accepts the connection late or refuses it, `open` returns None until `connect` was called.
    """

    def __init__(self, loop, scripts):
        self.loop, self.scripts, self.seen, self.opened, self.most_open = loop, scripts, [], [], 0
        self.connecting = []

    def open(self, request):
        if request not in self.seen:
            self.seen.append(request)
            script = self.scripts[(len(self.seen) - 1) % len(self.scripts)]
            if script.accepts_s or script.refuses:
                self.connecting.append(script)
        if self.connecting:
            return None
        self.opened.append(ScriptedRequest(self.loop, self.scripts[self.seen.index(request) % len(self.scripts)]))
        self.most_open = max(self.most_open, sum(not each.reply.done() for each in self.opened))
        return self.opened[-1]

    async def connect(self, clients):
        script = self.connecting[0]
        await asyncio.sleep(script.accepts_s)
        self.connecting.remove(script)
        if script.refuses:
            raise script.refuses


def run(moments, *scripts, loop="open", **changes):
    """The outcomes of requests at `moments`, by due moment, and the transport that sent them."""
    planned = [at if isinstance(at, PlannedRequest) else PlannedRequest(at) for at in moments]
    events = VirtualLoop()
    transport = ScriptedTransport(events, scripts)
    plan = replace(LoadTestPlan(planned, [IMAGE], loop), **changes)
    runner = LoadRunner(transport, plan, Payloads(plan.images), events.time, LoopAlarm)
    try:
        events.run_until_complete(runner.run())
    finally:
        events.close()
    assert runner.open == 0
    return sorted(runner.outcomes, key=lambda outcome: outcome.request.at_s), transport


def near(value):
    return pytest.approx(value, abs=1e-4)


ANSWER = Scripted(((0.05, 1), (0.1, 4)), ends_s=0.12)
SILENT = Scripted()


def test_an_open_loop_sends_when_it_is_due_whatever_became_of_earlier_ones():
    outcomes, transport = run([0.0, 0.01, 0.02], ANSWER)
    assert transport.most_open == 3
    for outcome, at_s in zip(outcomes, (0.0, 0.01, 0.02), strict=True):
        assert outcome.request == PlannedRequest(at_s, width=4, height=2)
        assert outcome.reply.exits == ((1, near(at_s + 0.05)), (4, near(at_s + 0.1)))
        assert outcome.reply.ended_s == near(at_s + 0.12) and outcome.late_ms == near(120 - 200)
        assert (outcome.exit, outcome.lag_s, outcome.sent) == (4, near(0), True)
    assert [request.deadline_ms for request in transport.seen] == [200, 200, 200]
    assert len({request.id for request in transport.seen}) == 3


def test_latency_counts_from_the_due_moment_though_the_connection_is_slow():
    (outcome,), _ = run([0.5], replace(ANSWER, accepts_s=0.3))
    assert outcome.reply.ended_s == near(0.92) and outcome.late_ms == near(420 - 200)
    assert outcome.exit == 4 and outcome.exit_in_time(grace_ms=0) == 0


def test_an_exit_counts_if_it_came_by_the_deadline_and_the_grace():
    (outcome,), _ = run([PlannedRequest(0.0, deadline_ms=48)], ANSWER)
    assert [outcome.exit_in_time(grace_ms) for grace_ms in (1.9, 2.1, 51.9, 52.1)] == [0, 1, 1, 4]


def test_requests_beyond_the_bound_are_not_sent():
    outcomes, transport = run([0.0, 0.01, 0.02, 0.13], ANSWER, max_open=2)
    assert [outcome.sent for outcome in outcomes] == [True, True, False, True]
    assert outcomes[2].reply.stop == "not_sent" and outcomes[2].exit == 0 and len(transport.seen) == 3


def test_users_of_a_closed_loop_wait_for_their_answers():
    outcomes, transport = run([0.0] * 5, ANSWER, loop="closed", users=2)
    assert transport.most_open == 2
    assert [outcome.request.at_s for outcome in outcomes] == near([0, 0, 0.12, 0.12, 0.24])
    assert all(outcome.late_ms == near(120 - 200) for outcome in outcomes)  # counted from the sending


def test_requests_are_given_up_as_planned():
    give_ups = [
        PlannedRequest(0.0, give_up_s=0.07),
        PlannedRequest(0.0, give_up_s=0.07, hang_up=True),
        PlannedRequest(0.0, give_up_s=0.13),
    ]
    outcomes, transport = run(give_ups, ANSWER)
    assert [opened.calls for opened in transport.opened] == [[("cancel", 0.07)], [("hang_up", 0.07)], []]
    assert [outcome.reply.stop for outcome in outcomes] == ["cancelled", "hung_up", "complete"]
    assert [outcome.given_up for outcome in outcomes] == [True, True, False]


def camera(*moments, deadline_ms=100.0, name="0"):
    return [PlannedRequest(at_s, deadline_ms, client=name) for at_s in moments]


def test_a_camera_has_one_open_request_and_sends_its_newest_frame():
    slow = Scripted(((0.2, 1),), ends_s=0.25)
    outcomes, transport = run(camera(0.0, 0.1, 0.2, 0.3, 0.6), slow, ANSWER, ANSWER, loop="cameras")
    assert transport.most_open == 1
    assert [outcome.reply.stop for outcome in outcomes] == ["complete", "overtaken", "complete", "complete", "complete"]
    assert [outcome.sent for outcome in outcomes] == [True, False, True, True, True]
    # The frame of 0.2 was held until 0.25 and had 50 of its 100 ms left.
    assert outcomes[2].held_s == near(0.05) and outcomes[2].lag_s == near(0)
    assert [request.deadline_ms for request in transport.seen] == near([100, 50, 30, 100])
    assert outcomes[2].late_ms == near(170 - 100)
    assert outcomes[2].as_offered() == PlannedRequest(near(0.25), near(50), 4, 2)
    assert outcomes[4].held_s == 0


def test_a_newer_frame_asks_the_open_one_to_give_way():
    slow = Scripted(((0.2, 1),), ends_s=0.25)
    _, transport = run(camera(0.0, 0.1, deadline_ms=200), slow, ANSWER, loop="cameras")
    assert [opened.calls for opened in transport.opened] == [[("give_way", 0.1)], []]


@pytest.mark.parametrize("deadline_ms", [140, 150.0004])  # of which the server would hear 0.0
def test_a_frame_whose_deadline_passed_while_it_was_held_is_not_sent(deadline_ms):
    slow = Scripted(ends_s=0.25)
    outcomes, transport = run(camera(0.0, 0.1, deadline_ms=deadline_ms), slow, loop="cameras")
    assert [outcome.reply.stop for outcome in outcomes] == ["complete", "stale"] and len(transport.seen) == 1


def test_a_frame_may_be_given_up_and_give_way():
    frames = [replace(frame, give_up_s=give_up_s) for frame, give_up_s in zip(camera(0, 1), (0.15, None), strict=True)]
    _, transport = run(frames, SILENT, ANSWER, loop="cameras")
    assert transport.opened[0].calls == [("cancel", 0.15)]
    _, transport = run([replace(frames[0], give_up_s=1.5), frames[1]], SILENT, ANSWER, loop="cameras")
    assert transport.opened[0].calls == [("give_way", 1.0), ("cancel", 1.5)]


def test_cameras_do_not_wait_for_each_other():
    slow = Scripted(ends_s=0.25)
    outcomes, transport = run([*camera(0.0, 0.1), *camera(0.01, 0.11, name="1")], slow, loop="cameras")
    assert transport.most_open == 2 and [outcome.sent for outcome in outcomes].count(True) == 2


def test_refusals_are_findings_and_failures_are_faults():
    errors = [
        NoExitError("too late", status=504, code="no_exit"),
        OverloadedError("full", status=503, code="overloaded", retry_after_s=0.5),
        ServerFaultError("broken", status=500, code="internal"),
    ]
    scripts = [Scripted(ends_s=0.1, error=error) for error in errors]
    gone = Scripted(refuses=ConnectionFailedError("cannot reach it"))
    outcomes, _ = run([0.0, 0.01, 0.02, 0.03], *scripts, gone)
    replies = [outcome.reply for outcome in outcomes]
    assert [reply.stop for reply in replies] == ["no_exit", "overloaded", "internal", "connection_failed"]
    assert [reply.fault for reply in replies] == [False, False, True, True]
    assert [reply.error for reply in replies] == ["too late", "full", "broken", "cannot reach it"]
    assert [reply.retry_after_s for reply in replies] == [None, 0.5, None, None]
    assert replies[3].ended_s == near(0.03)


def test_a_server_that_never_answers_is_a_fault():
    (outcome,), transport = run([0.0], replace(SILENT, exits=((0.05, 1),)))
    assert (outcome.reply.stop, outcome.reply.fault, outcome.exit) == ("silent", True, 1)
    assert transport.opened[0].calls == [("hang_up", 0.2 + SILENCE_S)]


def test_what_has_just_ended_is_not_given_up():
    """Its connection may have another request by now."""
    for give_up in ({"give_up_s": 0.12}, {"give_up_s": 0.12, "hang_up": True}):
        (outcome,), transport = run([PlannedRequest(0.0, **give_up)], ANSWER)
        assert (outcome.reply.stop, transport.opened[0].calls) == ("complete", [])


class LosingTransport(ScriptedTransport):
    """A transport that loses each connection at once. While `errors` has any, `connect` raises the next one instead."""

    errors = ()

    def open(self, request):
        return None

    async def connect(self, clients):
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize("loop", ["open", "cameras", "closed"])
def test_a_connection_that_is_lost_at_once_is_not_tried_for_ever(loop, monkeypatch):
    monkeypatch.setitem(globals(), "ScriptedTransport", LosingTransport)
    outcomes, _ = run([0.0, 0.1], ANSWER, loop=loop)
    assert [outcome.reply.stop for outcome in outcomes] == ["connection_failed"] * 2


@pytest.mark.parametrize("loop", ["open", "cameras", "closed"])
def test_an_error_of_the_generator_itself_ends_the_run(loop, monkeypatch):
    monkeypatch.setitem(globals(), "ScriptedTransport", LosingTransport)
    monkeypatch.setattr(LosingTransport, "errors", [RuntimeError("no such luck")])
    with pytest.raises(RuntimeError, match="no such luck"):
        run([0.0, 0.1], ANSWER, loop=loop)


@pytest.mark.parametrize("loop", ["open", "cameras", "closed"])
def test_a_run_that_is_interrupted_ends_silently_and_closes_its_alarms(loop):
    events, faults, alarms = VirtualLoop(), [], []

    class Noted(LoopAlarm):
        def __init__(self, clock):
            super().__init__(clock)
            alarms.append(self)

        def close(self):
            alarms.remove(self)

    plan = LoadTestPlan([PlannedRequest(0.0), PlannedRequest(0.0), PlannedRequest(9.0)], [IMAGE], loop, users=2)
    runner = LoadRunner(ScriptedTransport(events, [SILENT]), plan, Payloads([IMAGE]), events.time, Noted)
    events.set_exception_handler(lambda _, fault: faults.append(fault))

    async def main():
        running = asyncio.create_task(runner.run())
        await asyncio.sleep(0.1)
        assert bool(alarms) is (loop != "closed") and runner.open
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    events.run_until_complete(main())
    events.close()
    assert faults == [] and alarms == []


def test_the_progress_line_counts_what_ended():
    events = VirtualLoop()
    plan = LoadTestPlan([PlannedRequest(0.0), PlannedRequest(0.0), PlannedRequest(5.0)], [IMAGE])
    broken = Scripted(ends_s=0.1, error=ServerFaultError("broken", status=500, code="internal"))
    runner = LoadRunner(
        ScriptedTransport(events, [ANSWER, broken, ANSWER]), plan, Payloads([IMAGE]), events.time, LoopAlarm
    )
    line = ProgressLine(grace_ms=5.0)
    shown = []
    for at_s in (1000.0, 1001.0, 1005.05):
        events.call_at(at_s, lambda: shown.append(line.text(runner).strip()))
    events.run_until_complete(runner.run())
    events.close()
    assert shown == [
        "0.0 s  0 ended, none in time  0 open  0 faults",
        "1.0 s  2 ended, 50.0% in time  0 open  1 faults",
        "5.0 s  2 ended, 50.0% in time  1 open  1 faults",
    ]
