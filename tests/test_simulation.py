"""The simulated server: events, baselines by hand, the server's own discipline, and that nothing exceeds the bound."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from models.gains import Gains, NextGain, Profile
from server.catalog import ServedModel
from server.requests.budget import LONE_GRACE_S
from server.requests.policies import InputRule, Policies, Terms, TermsPolicy, TrafficRule
from server.requests.reserve import AnswerReserve
from server.simulation.baselines import (
    Edf,
    Fifo,
    FifoCancelled,
    FixedExit,
    LeastAttained,
    StabilityScore,
)
from server.simulation.bound import Market, bound
from server.simulation.device import LATE_S, Discipline, RequestOutcome, SimulatedServer, simulate
from server.simulation.served import Served
from server.simulation.traffic import PROCESSES
from server.simulation.workload import FrontEnd, SimulatedModel, SimulatedRequest, Workload, rate_1x

FREE = FrontEnd(head_s=0.0, image_s=0.0, reply_s=0.0, speed_left=1.0)
"""A front end that costs nothing."""
PROFILES = tuple(
    Profile((0.5 + 0.01 * index, 0.6, 0.75, 0.8), (0.5, 0.4, 0.3, 0.2), (0.8,) * 4, (0.0, 0.1, 0.1, 0.1), stages_ms)
    for index, stages_ms in enumerate([(10.0, 4.0, 6.0, 5.0), (11.0, 4.5, 7.0, 6.0), (9.0, 3.5, 5.0, 4.0)])
)
GAINS = Gains(
    exits=tuple(NextGain(mean, 0.1, 0.1) for mean in (0.5, 0.2, 0.15, 0.05)),
    profiles=PROFILES,
    images=3,
    source="val",
    machine="a machine",
    fingerprint="made-for",
)
MODEL = SimulatedModel(ServedModel("tiny", Path("tiny"), tiny.SEGMENTATION), GAINS)
WORKLOAD = Workload({"tiny": MODEL})


def request(
    key: int,
    arrived_ms: float,
    due_ms: float,
    stages_ms: tuple[float, ...] = (10.0, 20.0),
    utility: tuple[float, ...] = (0.5, 0.7),
    **fields: float,
) -> SimulatedRequest:
    """A request whose answer must be computed by `due_ms`, where the front end is free."""
    stage_s = tuple(ms / 1000 for ms in stages_ms)
    exits = len(stage_s)
    return SimulatedRequest(
        key=key,
        model=MODEL,
        arrived_s=arrived_ms / 1000,
        deadline_s=due_ms / 1000 + AnswerReserve.SEND_S,
        height=64,
        width=96,
        shape=(64, 96),
        profile=Profile(utility, (0.5,) * exits, (0.8,) * exits, (0.1,) * exits, stages_ms),
        stage_s=stage_s,
        usual_s=stage_s,
        **fields,  # type: ignore[arg-type]
    )


def served(policies: Policies | None = None, image_s: float = 0.0) -> Served:
    return Served(WORKLOAD.models, policies or Policies(), image_s)


DISCIPLINES: dict[str, Callable[[], Discipline]] = {
    "fifo": Fifo,
    "fifo-cancelled": FifoCancelled,
    "edf": Edf,
    "fixed-1": lambda: FixedExit(1),
    "edf-drop": lambda: FixedExit(4),
    "least-attained": LeastAttained,
    "stability": StabilityScore,
    "served": served,
}


def exits(discipline: Discipline, *requests: SimulatedRequest, front_end: FrontEnd = FREE) -> list[int]:
    return [outcome.exit for outcome in simulate(requests, discipline, front_end)]


@pytest.mark.parametrize(
    ("discipline", "reached"),
    [
        # A 0-30; B 30-40, is answered at 44 and computed until 60; C would have exit 1 at 70, after its 63.5
        (Fifo, [2, 1, 0]),
        # as before, but B is left after its slice at 55, and C has exit 1 at 65
        (FifoCancelled, [2, 1, 1]),
        # A 0-10, B 10-40, C 40-50, is answered at 63.5 and computed until 70; A 70-90
        (Edf, [2, 2, 1]),
        # A 0-10, B 10-40; then C, which needs 30, would end at 70 and is dropped; A 40-60
        (lambda: FixedExit(2), [2, 2, 0]),
        (lambda: FixedExit(1), [1, 1, 1]),
        # everyone's exit 1 until 30; B would end at 50 and is answered; C 30-50, A 50-70
        (LeastAttained, [2, 1, 2]),
        # A alone: exit 2 costs others nothing. At 30, exit 2 would leave B no time; at 40, the same holds for C.
        (StabilityScore, [2, 1, 1]),
    ],
)
def test_three_requests_by_hand(discipline: Callable[[], Discipline], reached: list[int]) -> None:
    """Stages of 10 and 20 ms. A comes at 0 and has until 99, B comes at 1 and has until 44, C at 2, until 63.5."""
    assert exits(discipline(), request(0, 0, 99), request(1, 1, 44), request(2, 2, 63.5)) == reached


def test_the_front_end_slows_the_worker_down() -> None:
    """A's image is there at 6. At 8, 2 of its 10 ms are done; until 14 the front end reads B, so 3 more; it ends at
    19, and the reply at 20."""
    front_end = FrontEnd(head_s=0.002, image_s=0.004, reply_s=0.001, speed_left=0.5)
    first, second = request(0, 0, 99, (10.0,), (0.5,)), request(1, 8, 99, (10.0,), (0.5,))
    outcomes = simulate([first, second], Fifo(), front_end)
    assert outcomes[0].end_s == pytest.approx(0.020)
    assert outcomes[1].end_s == pytest.approx(0.0305)  # 10 ms from 19 on, half of the first of them lost to the reply


def test_heads_come_between_the_parts_of_a_large_image() -> None:
    front_end = FrontEnd(head_s=0.001, image_s=0.010, reply_s=0.0, speed_left=1.0)
    large, small = request(0, 0, 99, (10.0,), (0.5,), image_parts=3), request(1, 5, 99, (10.0,), (0.5,))
    ends_s = [outcome.end_s for outcome in simulate([large, small], Fifo(), front_end)]
    # 0-1 head, 1-11 part, 11-12 head of the small one, 12-22 part, 22-32 its image, 32-42 last part
    assert ends_s == pytest.approx([0.052, 0.042])


def test_a_first_exit_may_be_a_little_late_and_a_late_answer_is_worth_nothing() -> None:
    outcomes = simulate([request(0, 0, 7)], Fifo(), FREE)
    assert (outcomes[0].exit, outcomes[0].utility) == (1, 0.5)
    assert exits(Fifo(), request(0, 0, 3.9)) == [0]
    front_end = FrontEnd(head_s=0.0, image_s=0.0, reply_s=0.004, speed_left=1.0)
    together = [request(key, 0, 23 + 4 - 1e-6, (5.0,), (0.5,)) for key in range(4)]
    found = simulate(together, HoldBack(), front_end)
    assert [outcome.exit for outcome in found] == [1] * 4
    assert [outcome.utility for outcome in found] == [0.5, 0.5, 0.0, 0.0]
    assert found[2].end_s > found[2].request.deadline_s + LATE_S


class HoldBack(FifoCancelled):
    """Releases no job before its deadline."""

    def next(self, now_s: float):  # type: ignore[no-untyped-def]
        left = [job for job in self.jobs.values() if job.exit < job.request.exits]
        return (left[0] if left else None), []


def test_who_gives_up_gets_nothing_and_costs_nothing_more() -> None:
    gone, other = request(0, 0, 99, give_up_s=0.012), request(1, 1, 44)
    outcomes = simulate([gone, other], FifoCancelled(), FREE)
    assert (outcomes[0].utility, outcomes[0].end_s, outcomes[0].given_up) == (0.0, 0.012, True)
    assert outcomes[1].exit == 1  # from 25 on, when the slice ends that began at 10
    before_its_image = request(0, 0, 99, give_up_s=0.0)
    assert exits(served(), before_its_image, other) == [0, 2]


class Once(dict[int, RequestOutcome]):
    """Every key may be set once."""

    def __setitem__(self, key: int, outcome: RequestOutcome) -> None:
        assert key not in self, f"request {key} ended twice"
        super().__setitem__(key, outcome)


@pytest.mark.parametrize("name", DISCIPLINES)
@pytest.mark.parametrize("kind", ["gamma", "cameras"])
def test_every_request_ends_once_and_the_same_way_again(name: str, kind: str) -> None:
    front_end = FrontEnd()
    requests = WORKLOAD.draw(PROCESSES[kind], 2 * rate_1x(MODEL, front_end), 1.5, seed=1)
    server = SimulatedServer(DISCIPLINES[name](), front_end)
    server.outcomes = Once()
    for each in requests:
        server.expect(each)
    server.run()
    assert sorted(server.outcomes) == [each.key for each in requests]
    for outcome in server.outcomes.values():
        assert 0 <= outcome.exit <= 4 and outcome.request.arrived_s < outcome.end_s
        assert outcome.end_s < outcome.request.deadline_s + 0.02 or name == "edf", "the engine answers at the deadline"
        assert outcome.utility in (0.0, outcome.request.utility(outcome.exit))
    again = simulate(requests, DISCIPLINES[name](), front_end)
    assert again == [server.outcomes[each.key] for each in requests]


def test_the_same_seed_gives_the_same_requests() -> None:
    first, again, other = (WORKLOAD.draw(PROCESSES["poisson"], 50.0, 1.0, seed) for seed in (3, 3, 4))
    assert first == again != other


# --- the server's own discipline ---


def test_the_server_refuses_by_the_head_what_would_be_late() -> None:
    """Ten at once with time for about three first exits: the refused ones cost no decoding, and the others are in
    time."""
    front_end = FrontEnd(head_s=0.0001, image_s=0.002, reply_s=0.001, speed_left=1.0)
    crowd = [request(key, 0, 55, (10.0, 4.0, 6.0, 5.0), (0.5, 0.6, 0.75, 0.8)) for key in range(10)]
    outcomes = simulate(crowd, served(), front_end)
    refused = [outcome for outcome in outcomes if outcome.end_s <= 0.0011]
    assert 4 <= len(refused) <= 7 and all(outcome.exit == 0 for outcome in refused)
    assert all(outcome.utility > 0 for outcome in outcomes if outcome not in refused)


def test_the_server_reckons_with_the_images_that_are_still_to_be_decoded() -> None:
    """Each of four requests needs 10 ms, and the last one has no time to wait for more than computing."""
    front_end = FrontEnd(head_s=0.0001, image_s=0.01, reply_s=0.001, speed_left=1.0)
    crowd = [request(key, 0, 200, (10.0, 4.0, 6.0, 5.0), (0.5, 0.6, 0.75, 0.8)) for key in range(3)]
    crowd.append(request(3, 0, 40, (10.0, 4.0, 6.0, 5.0), (0.5, 0.6, 0.75, 0.8)))
    for image_s, refused in ((0.0, False), (0.01, True)):
        last = simulate(crowd, served(image_s=image_s), front_end)[-1]
        assert (last.end_s < 0.0011) == refused


@pytest.mark.parametrize(
    ("policies", "reached"),
    [
        (Policies(), [4, 4]),
        (Policies(of_moment=(TrafficRule(open_requests=2, max_exit=1),)), [1, 4]),
        (Policies(of_request=(InputRule(pixels=1000, max_exit=2),)), [2, 2]),
        (Policies(of_request=(TermsPolicy(Terms(max_deadline_ms=27)),)), [4, 0]),
    ],
)
def test_budgets_limit_the_server(policies: Policies, reached: list[int]) -> None:
    """Two requests at once, each of 25 ms to the last exit. With 27 ms at most, the second one is refused."""
    stages_ms, utility = (10.0, 4.0, 6.0, 5.0), (0.5, 0.6, 0.75, 0.8)
    assert exits(served(policies), request(0, 0, 200, stages_ms, utility), request(1, 0, 210, stages_ms, utility)) == (
        reached
    )


# --- the bound ---


@pytest.mark.parametrize("seed", range(12))
def test_no_discipline_exceeds_the_bound(seed: int) -> None:
    """Small instances with all kinds of costs and utilities, some of which fall from one exit to the next."""
    random = np.random.default_rng(seed)
    requests = []
    for key in range(15):
        arrived_ms, stages_ms = random.uniform(0, 200), tuple(random.uniform(1, 40, 3).tolist())
        utility = tuple(random.uniform(0, 1, 3).tolist())
        requests.append(request(key, arrived_ms, arrived_ms + random.uniform(5, 150), stages_ms, utility))
    front_end = FrontEnd() if seed % 2 else FREE
    limit = bound(requests, front_end)
    assert limit <= sum(max(0.0, *each.profile.utility) for each in requests) + 1e-9
    for name, make in DISCIPLINES.items():
        total = sum(outcome.utility for outcome in simulate(requests, make(), front_end))
        assert total <= limit + 1e-9, name
    market = Market(requests, front_end, 0.05)
    for _ in range(5):  # whatever the prices, it is a bound
        assert market.value(random.uniform(0, 20, market.cells_in_all))[0] >= limit - 0.05 * limit


def test_the_reserve_is_learnt_from_replies_that_wait_for_each_other() -> None:
    """The worker completes five jobs, one every millisecond, and the front end takes 2 ms for each reply. The fifth
    reply is sent 6 ms after its job. No other request is open by then, but others were when its request came, so
    the reserve of requests that are alone stays at 2 ms."""
    server = SimulatedServer(served(), FrontEnd(1e-9, 1e-9, 0.002, 1.0))
    for key in range(5):
        server.expect(request(key, 0, 90, (1.0,), (0.5,)))
    server.expect(request(5, 1000, 1090, (1.0,), (0.5,)))
    server.run()
    sent_s = AnswerReserve.SEND_S
    assert server._reserve.seconds(alone=False) == pytest.approx(sent_s + 0.006, abs=1e-6)
    assert server._reserve.seconds(alone=True) == pytest.approx(sent_s + 0.002, abs=1e-6)
    assert server._seated == 0


@pytest.mark.parametrize(("at_first_s", "later_s", "end_ms"), [(0.001, [0.02], 80), (0.02, [0.001] * 10, 99)])
def test_the_reserve_is_decided_again_when_the_image_is_there(
    at_first_s: float, later_s: list[float], end_ms: float
) -> None:
    server = SimulatedServer(Fifo(), FrontEnd(head_s=0.001, image_s=0.01, reply_s=at_first_s, speed_left=1.0))
    answered: list[float] = []
    server._replied = lambda job: answered.append(job.answerable_s)  # type: ignore[method-assign]
    server.expect(request(0, 0, 100, (10.0, 900.0)))
    server.run(until_s=0.002)  # the head was read
    for seconds in later_s:
        server._reserve.learn(seconds, alone=True)
    server.run()
    assert answered == [pytest.approx(end_ms / 1000)]


def test_who_had_company_is_not_learnt_from_as_alone() -> None:
    """The first request begins alone. The reply to the second one, which is due just before, delays its own."""
    server = SimulatedServer(Edf(), FrontEnd(1e-9, 1e-9, 0.002, 1.0))
    server.expect(request(0, 0, 100, (1.0, 900.0)))
    server.expect(request(1, 5, 99.9, (1.0, 900.0)))
    server.run()
    assert server._reserve.seconds(alone=True) == pytest.approx(AnswerReserve.SEND_S + 0.002, abs=1e-6)
    assert server._reserve.seconds(alone=False) == pytest.approx(AnswerReserve.SEND_S + 0.0039, abs=1e-6)


def test_the_reserve_is_at_most_half_of_the_budget() -> None:
    server = SimulatedServer(Fifo(), FREE)
    server._reserve.learn(0.06, alone=True)
    server.expect(request(0, 0, 50, (10.0, 900.0)))
    server.run()
    assert server.outcomes[0].exit == 1


def test_a_head_that_is_read_after_its_deadline_does_not_turn_back_the_time() -> None:
    outcome = simulate([request(0, 0, 50)], Fifo(), FrontEnd(head_s=0.1, image_s=0.0, reply_s=0.0, speed_left=1.0))[0]
    assert outcome.exit == 0 and outcome.end_s == pytest.approx(0.1 + LONE_GRACE_S)


def test_who_gives_up_leaves_its_seat() -> None:
    server = SimulatedServer(Fifo(), FREE)
    server.expect(request(0, 0, 99, (50.0, 50.0), give_up_s=0.012))
    server.run(until_s=0.011)
    assert server._seated == 1
    server.run(until_s=0.012)
    assert server._seated == 0


def test_the_bound_is_the_utility_of_what_there_is_time_for() -> None:
    alone = [request(key, 1000 * key, 1000 * key + 100) for key in range(3)]
    assert bound(alone, FREE) == pytest.approx(3 * 0.7)
    # Ten at once, for each of which one exit fills the time: there is time for one.
    crowd = [request(key, 0, 100 - 1000 * (LATE_S + AnswerReserve.SEND_S), (100.0,), (0.5,)) for key in range(10)]
    assert bound(crowd, FREE) == pytest.approx(0.5)
    assert bound(crowd, FrontEnd(0.02, 0.02, 0.02, 0.5)) < bound(crowd, FREE)
    late = [request(0, 0, 50, (100.0,), (0.5,)), request(1, 0, 99, (50.0,), (0.5,), give_up_s=0.04)]
    assert bound(late, FREE) == pytest.approx(0.0, abs=1e-6)
    # A deadline of years, and a request that nobody has wanted for a moment.
    assert bound([request(0, 0, 1e12)], FREE) == pytest.approx(0.7)
    assert bound([request(0, 0, 50, give_up_s=0.0)], FREE) == pytest.approx(0.0, abs=1e-6)


def test_load_1x_takes_exactly_the_device() -> None:
    front_end = FrontEnd(head_s=0.001, image_s=0.002, reply_s=0.003, speed_left=0.25)
    mean_s = (25.0 + 28.5 + 21.5) / 3 / 1000
    assert rate_1x(MODEL, front_end) == pytest.approx(1 / (mean_s + 0.75 * 0.006))
    assert MODEL.usual_s == pytest.approx((0.010, 0.004, 0.006, 0.005))
    assert math.isclose(front_end.taken_s(request(0, 0, 99, image_parts=2)), 0.75 * 0.008)
