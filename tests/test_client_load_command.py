"""The arguments of `adpc load`, and the plan that they ask for."""

import json

import pytest
from adpc_client import ExitCost, Labels, Model
from adpc_client.__main__ import _parser
from adpc_client.arguments import UsageError
from adpc_client.load import BurstArrivals, GammaArrivals
from adpc_client.load.command import check_utility, make_plan, read_utility


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    monkeypatch.setattr("adpc_client.load.command.street", lambda seed: b"street %d" % seed)


def plan_of(command):
    return make_plan(_parser().parse_args(["load", *command.split()]))


def test_arguments_become_a_plan(tmp_path):
    plan = plan_of("--rate 50 --seconds 4")
    assert plan.loop == "open" and len(plan.requests) == pytest.approx(200, rel=0.2)
    assert plan.requests[-1].at_s < 4 and {each.deadline_ms for each in plan.requests} == {200.0}
    plan = plan_of("--cameras 3 --fps 20 --seconds 2 --protocol stream --option min_exit=2 --option box=1,2,3,4")
    assert plan.loop == "cameras" and len(plan.requests) == 120 and plan.options == {"min_exit": "2", "box": "1,2,3,4"}
    assert {(each.client, each.deadline_ms) for each in plan.requests} == {("0", 50.0), ("1", 50.0), ("2", 50.0)}
    plan = plan_of("--concurrency 3 --count 7 --deadline-ms 80-90,500:2 --priority 0:1,2:1 --size 64x32 --clients 2")
    assert (plan.loop, plan.users, len(plan.requests)) == ("closed", 3, 7)
    assert all(80 <= each.deadline_ms <= 90 or each.deadline_ms == 500 for each in plan.requests)
    assert {(each.width, each.height) for each in plan.requests} == {(64, 32)}
    assert {each.client for each in plan.requests} == {"0", "1"} and {each.priority for each in plan.requests} == {0, 2}
    (tmp_path / "t.jsonl").write_text('{"at_s": 1, "client": "x"}\n{"at_s": 4}\n')
    plan = plan_of(f"--trace {tmp_path / 't.jsonl'} --speed 2 --model m")
    assert [(each.at_s, each.client, each.model) for each in plan.requests] == [(0.5, "x", "m"), (2.0, "0", "m")]
    assert len(plan_of(f"--trace {tmp_path / 't.jsonl'} --seconds 2").requests) == 1
    plan = plan_of("--rate 5")
    assert (len(plan.requests), plan.users, plan.max_open) == (200, 4, 512)
    (tmp_path / "t.jsonl").write_text('{"at_s": 1}\n' * 201)
    assert len(plan_of(f"--trace {tmp_path / 't.jsonl'}").requests) == 201


def test_the_moments_of_a_seed_do_not_depend_on_the_mix():
    plain, mixed = plan_of("--rate 5 --count 9"), plan_of("--rate 5 --count 9 --deadline-ms 50-300 --clients 10,1")
    assert [each.at_s for each in plain.requests] == [each.at_s for each in mixed.requests]
    assert [each.at_s for each in plan_of("--rate 5 --count 9 --seed 1").requests] != [
        each.at_s for each in plain.requests
    ]


def test_arrivals_are_named_with_their_parameters():
    def process(text):
        return _parser().parse_args(["load", "--rate", "5", "--arrivals", text]).arrivals(5.0)

    assert process("gamma:3") == GammaArrivals(5.0, 3.0)
    assert process("mmpp:8,0.1,2") == BurstArrivals(5.0, factor=8.0, share=0.1, burst_s=2.0)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("--arrivals constant", "--arrivals describes --rate"),
        ("--fps 5 --rate 5", "--fps describes --cameras"),
        ("--speed 2", "--speed describes --trace"),
        ("--cameras 2 --clients 2", "each camera is a client"),
        ("--seconds 2", "does not go with a closed loop"),
        ("--cancel 0.6 --hang-up 0.6", "above 1 together"),
        ("--option deadline_ms=50", "give --deadline-ms"),
        ("--option quality=0.1 --option id=a", "--option type are set by adpc load itself; leave them out"),
        ("--encoding delta", "goes with --protocol stream"),
        ("--connections-per-client 2", "goes with --protocol stream"),
        ("--concurrency 2 --max-open 9", "--max-open describes an open loop"),
        ("--rate 0.001 --seconds 1", "no request is due within 1 s; give more --seconds, or a higher rate"),
        ("--rate 1e9 --seconds 60", "a load test has at most 10,000,000 requests in 1,000,000 s: change the rate"),
        ("--cameras 9999 --fps 1000 --seconds 60", "at most 10,000,000 requests"),
        ("--rate 1e-300", "at most 10,000,000 requests in 1,000,000 s"),
        ("--rate 0.001 --seconds 1e7", "at most 10,000,000 requests in 1,000,000 s"),
    ],
)
def test_contradictions_are_refused(command, complaint):
    with pytest.raises(UsageError, match=complaint):
        plan_of(command)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("--arrivals gamma", "must be poisson, constant, gamma:VARIATION or mmpp:FACTOR,SHARE,SECONDS"),
        ("--arrivals mmpp:8,1,1", "bursts have a share of 1 of the time; it must be below 1"),
        ("--size 64", "must be WIDTHxHEIGHT"),
        ("--priority 3", "must be one of 0, 1, 2"),
        ("--deadline-ms 50:0", "must be above 0"),
        ("--clients 1.5", "whole number above 0"),
        ("--clients 20000", "at most 10,000"),
        ("--cameras 1e9", "at most 10,000"),
        ("--concurrency 1e9", "at most 10,000"),
        ("--count 1e9", "at most 10,000,000"),
        ("--rate 5 --concurrency 4", "not allowed with argument"),
        ("--arrivals gamma:1e-200", "has the parameter 1e-200; it must be 0.001 to 1000"),
        ("--arrivals mmpp:8,1e-320,1", "it must be 0.001 to 1000"),
        ("--model a:x", "'x' is not a number"),
        ("--model a:0", "'0' must be above 0"),
        ("--option quality", "must be NAME=VALUE"),
    ],
)
def test_wrong_values_are_refused(command, complaint, capsys):
    with pytest.raises(SystemExit):
        plan_of(command)
    assert complaint in capsys.readouterr().err


def test_utilities_come_from_a_list_or_from_a_models_gains(tmp_path):
    path = tmp_path / "gains.json"
    path.write_text(json.dumps({"exits": [{"mean": 0.5, "error": 0.1}, {"mean": 0.25}], "images": 3}))
    assert read_utility(str(path)) == (0.5, 0.75)
    assert read_utility("0.4,0.5") == (0.4, 0.5)
    path.write_text("{}")
    for text in (str(path), "0.4;0.5", "nan,1", "0.4,1e999", ""):
        with pytest.raises(
            UsageError, match=r"neither a finite value for each exit, such as 0.48,0.53, nor a gains\.json"
        ):
            read_utility(text)


def test_a_trace_whose_moments_are_no_seconds_from_its_start_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"at_s": 1764320000}\n')
    with pytest.raises(
        UsageError, match=r"due after 1,764,320,000 s; a load test may take 1,000,000 s\. The at_s of a"
    ):
        plan_of(f"--trace {tmp_path / 't.jsonl'}")
    assert plan_of(f"--trace {tmp_path / 't.jsonl'} --speed 1e6").requests[0].at_s == 1764.32


@pytest.mark.parametrize(
    ("command", "values", "misses"),
    [
        ("", 2, 3),  # the default may be either model
        ("", 3, None),
        ("--model deep", 3, 4),
        ("--model deep", 4, None),
        ("--model shallow,deep", 3, 4),
        ("--model deep --option max_exit=2", 2, None),
        ("--model unknown", 1, None),  # which the server refuses
    ],
)
def test_a_utility_is_needed_for_each_exit(command, values, misses):
    def model(name, exits):
        return Model(name, "segmentation", tuple(ExitCost(number, None, None) for number in range(exits)), Labels(), "")

    offered = [model("shallow", 3), model("deep", 4)]
    if misses is None:
        check_utility((0.5,) * values, plan_of(command), offered)
    else:
        with pytest.raises(UsageError, match=f"--utility has {values} values, and there are {misses} exits"):
            check_utility((0.5,) * values, plan_of(command), offered)
