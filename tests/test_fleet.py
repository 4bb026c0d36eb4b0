"""Many simulated replicas behind a balancer."""

from pathlib import Path

import pytest
from test_simulate_command import BRIEF, models  # noqa: F401 - a fixture
from test_simulation import FREE, WORKLOAD, request

from server.simulation import command
from server.simulation.fleet import ROUTINGS, Fleet, SimulatedReplica
from server.simulation.report import fleet_row

FLEET = Fleet(WORKLOAD, FREE, replicas=4, duration_s=0.4)


def test_a_balancer_sees_a_replica_as_it_is_when_the_request_comes() -> None:
    replica = SimulatedReplica(WORKLOAD, FREE)
    first = request(0, 0, 60, (10.0, 20.0), (0.5, 0.7))
    replica.take(first)
    assert replica.open_requests(request(1, 15, 99)) == 1
    assert replica.due_before(request(1, 15, 99)) == pytest.approx(0.020)  # a slice counts when it ends
    assert replica.due_before(request(2, 15, 50)) == 0  # the first one is due later
    assert replica.open_requests(request(3, 40, 99)) == 0


def test_a_choice_is_better_than_none() -> None:
    found = {result.routing: result.utility for result in FLEET.run([1.5])}
    assert list(found) == list(ROUTINGS)
    assert all(found["random"] < utility - 0.005 for routing, utility in found.items() if routing != "random")


def test_shares_are_those_of_all_requests() -> None:
    result = next(FLEET.run([3.0]))
    assert result.goodput * FLEET.replicas * FLEET.duration_s == pytest.approx(result.requests * (1 - result.without))
    assert sum(result.exits) == pytest.approx(1) and result.exits[0] <= result.without
    assert next(FLEET.run([3.0])) == result
    assert f"{result.without:.2%}" in fleet_row(result)


def test_the_command(models: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811 - the fixture
    assert command.main(["--models", str(models), *BRIEF, "--replicas", "2"]) == 0
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == list(ROUTINGS)
    with pytest.raises(SystemExit):
        command.main(["--models", str(models), *BRIEF, "--replicas", "0"])
    assert "--replicas is 0; it must be at least 1 and at most 10,000" in capsys.readouterr().err
