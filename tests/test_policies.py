"""B(x, t): what limits a budget, and the file that sets the limits."""

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.validation import from_json
from server.requests.budget import Asked, Budget, Limit, Traffic
from server.requests.budget_file import BudgetFile, read_budget_file
from server.requests.policies import HoursRule, Policies, Terms, TrafficRule

ROOT = Path(__file__).parent.parent
QUIET = Traffic(open_requests=0, busy=0.0, unix_s=0.0)
SERVER = Terms(default_deadline_ms=1000, max_deadline_ms=30_000)
FILE = """
[models.small]
default_deadline_ms = 300
max_deadline_ms = 2000
max_exit = 3

[clients."10.0.0.7"]
default_deadline_ms = 200
max_deadline_ms = 500
max_exit = 2

[[traffic]]
open_requests = 16
max_exit = 3

[[hours]]
begin = 07:30:00
end = "09:30"
days = ["mon", "fri"]
zone = "Europe/Berlin"
max_exit = 2

[[input]]
pixels = 4_000_000
max_exit = 2
max_deadline_ms = 900
"""
SERVED = {"large": 4, "small": 3}


def read(folder: Path, text: str = FILE) -> BudgetFile:
    path = folder / "budget.toml"
    path.write_text(text)
    return read_budget_file(path, SERVED)


def at(text: str) -> Traffic:
    """The traffic at a time in UTC."""
    return Traffic(0, 0.0, datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def test_the_file_of_the_documentation_is_right(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "budget.md").read_text()
    (tmp_path / "budget.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    found = read_budget_file(tmp_path / "budget.toml", {"camvid-adpc-w18": 4})
    assert all((found.models, found.clients, found.traffic, found.hours, found.input))


def test_the_smallest_limit_wins_and_momentary_ones_do_not_last() -> None:
    lasting = Limit("model", "it has four", max_exit=4), Limit("server", "so long", 2.0, 3)
    budget = Budget(lasting, (Limit("traffic", "much", 0.5, 1),))
    assert (budget.seconds, budget.max_exit, budget.lasting) == (0.5, 1, lasting[1])
    assert (Budget(()).seconds, Budget(()).max_exit, Budget(()).lasting) == (math.inf, None, None)


@pytest.mark.parametrize(
    ("asked", "seconds", "max_exit", "words"),
    [
        (Asked("large", 4), 1.0, 4, "deadline_ms is missing, and this server gets 1000"),
        (Asked("small", 4), 0.3, 3, "deadline_ms is missing, and small gets 300"),
        (Asked("small", 4, "10.0.0.7"), 0.2, 2, "deadline_ms is missing, and client 10.0.0.7 gets 200"),
        (Asked("small", 4, deadline_s=0.7), 0.7, 3, "deadline_ms is 700"),
        (Asked("small", 4, deadline_s=9.0), 2.0, 3, "small gets 2000 ms at most"),
        (Asked("small", 4, "10.0.0.7", deadline_s=9.0), 0.5, 2, "client 10.0.0.7 gets 500 ms at most"),
        (Asked("large", 4, deadline_s=99.0), 30.0, 4, "this server gets 30000 ms at most"),
        (Asked("large", 4, deadline_s=9.0, timeout_s=0.25), 0.25, 4, "X-Request-Timeout-Seconds is 0.25"),
        (Asked("large", 4, max_exit=1), 1.0, 1, "max_exit is 1"),
        (
            Asked("large", 4, pixels=4_000_000),
            0.9,
            2,
            "the image has 4,000,000 pixels; the rule is for 4,000,000 and more",
        ),
        (Asked("large", 4, pixels=3_999_999), 1.0, 4, "large has exits 1 to 4"),
    ],
)
def test_limits_by_what_is_asked(tmp_path: Path, asked: Asked, seconds: float, max_exit: int, words: str) -> None:
    budget = read(tmp_path).policies(SERVER).budget(asked, QUIET)
    assert (budget.seconds, budget.max_exit) == (seconds, max_exit)
    assert words in [limit.why for limit in budget.limits]


@pytest.mark.parametrize(
    ("rule", "traffic", "why"),
    [
        ({"open_requests": 16}, Traffic(15, 1.0, 0.0), None),
        ({"open_requests": 16}, Traffic(17, 0.0, 0.0), "17 requests are open; the rule is for 16 and more"),
        ({"busy": 0.9}, Traffic(99, 0.89, 0.0), None),
        ({"busy": 0.9}, Traffic(0, 0.9, 0.0), "the devices compute 90% of the time; the rule is for 90% and more"),
        ({"busy": 0.9}, Traffic(0, 0.95, 0.0), "the devices compute 95% of the time; the rule is for 90% and more"),
    ],
)
def test_limits_by_traffic(rule: dict[str, float], traffic: Traffic, why: str | None) -> None:
    found = list(TrafficRule(max_exit=2, **rule).limits(traffic))  # type: ignore[arg-type]
    assert found == ([Limit("traffic", why, None, 2)] if why else [])


@pytest.mark.parametrize(
    ("begin", "end", "days", "moment", "holds"),
    [
        ("07:30", "09:30", ["mon"], "2026-11-23T06:29:59", False),  # a Monday; Berlin is one hour ahead in winter
        ("07:30", "09:30", ["mon"], "2026-11-23T06:30:00", True),
        ("07:30", "09:30", ["mon"], "2026-11-23T08:29:59", True),
        ("07:30", "09:30", ["mon"], "2026-11-23T08:30:00", False),
        ("07:30", "09:30", ["tue"], "2026-11-23T07:00:00", False),
        ("07:30", "09:30", ["mon"], "2026-06-22T05:30:00", True),  # two hours ahead in summer
        ("22:00", "02:00", ["mon"], "2026-11-23T21:00:00", True),
        ("22:00", "02:00", ["mon"], "2026-11-24T00:59:00", True),
        ("22:00", "02:00", ["mon"], "2026-11-24T01:00:00", False),
        ("22:00", "02:00", ["mon"], "2026-11-23T00:30:00", False),  # belongs to Sunday
        ("00:00", "00:00", ["mon"], "2026-11-23T12:00:00", True),
        ("00:00", "00:00", ["mon"], "2026-11-24T12:00:00", False),
    ],
)
def test_limits_by_the_hour(begin: str, end: str, days: list[str], moment: str, holds: bool) -> None:
    fields = {"begin": begin, "end": end, "days": days, "zone": "Europe/Berlin", "max_exit": 2}
    found = list(from_json(HoursRule, fields, "a rule").limits(at(moment)))
    assert [limit.max_exit for limit in found] == [2] * holds


def test_a_limit_by_the_hour_says_so() -> None:
    rule = from_json(HoursRule, {"begin": "07:30", "end": "09:30", "max_deadline_ms": 50}, "a rule")
    (limit,) = rule.limits(at("2026-11-23T08:00:00"))
    assert limit == Limit("hours", "it is Mon 08:00 in UTC; the rule is for 07:30 to 09:30", 0.05)


def test_flags_and_file_limit_the_moment_together(tmp_path: Path) -> None:
    flag = TrafficRule(open_requests=2, max_exit=1)
    policies = read(tmp_path).policies(SERVER, (flag,))
    found = [policies.deepest(Traffic(jobs, 0.0, 0.0)) for jobs in (1, 2)]
    assert found == [None, 1]
    assert policies.deepest(at("2026-11-23T07:00:00")) == 2
    assert policies.budget(Asked("large", 4), Traffic(2, 0.0, 0.0)).of_moment[0].max_exit == 1
    assert Policies().deepest(QUIET) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("colour = 1", "not a budget file: colour is unknown; its fields are models, clients, traffic, hours, input"),
        ("[models.small]\nmax_exit = 0", "models.small.max_exit is 0; it must be at least 1"),
        ("[models.small]\nmax_exit = '2'", "models.small.max_exit is '2'; give a whole number"),
        ("[models.small]\nmax_exit = 4", "models.small.max_exit is 4; small has exits 1 to 3"),
        ("[clients.robot]\nmax_exit = 5", "clients.robot.max_exit is 5; the deepest model has exits 1 to 4"),
        (
            "[[traffic]]\nbusy = 1.0\nmax_exit = 4\n[[traffic]]\nbusy = 1.0\nmax_exit = 9",
            "traffic[1].max_exit is 9; the deepest model has exits 1 to 4",
        ),
        (
            "[[hours]]\nbegin = '00:00'\nend = '01:00'\nmax_exit = 5",
            "hours[0].max_exit is 5; the deepest model has exits 1 to 4",
        ),
        ("[[input]]\npixels = 1\nmax_exit = 5", "input[0].max_exit is 5; the deepest model has exits 1 to 4"),
        ("[models.big]\nmax_exit = 2", "models.big is not served; served are large, small"),
        (
            '[clients."10.0.0.0/8"]\nmax_exit = 2',
            "clients.10.0.0.0/8 is neither an address, as the server writes it, nor",
        ),
        ('[clients."2001:DB8::1"]\nmax_exit = 2', "clients.2001:DB8::1 is neither an address, as the server writes it"),
        ('[clients."::1"]\ndefault_deadline_ms = -1', "clients.::1.default_deadline_ms is -1; it must be above 0"),
        (
            "[[traffic]]\nopen_requests = 3",
            "traffic[0] is {'open_requests': 3}; give max_exit, max_deadline_ms or both",
        ),
        ("[[traffic]]\nmax_exit = 2", "traffic[0] is {'max_exit': 2}; give one of open_requests and busy"),
        ("[[traffic]]\nbusy = 2\nmax_exit = 1", "traffic[0].busy is 2; it may be at most 1"),
        (
            "[[hours]]\nbegin = '24:00'\nend = '1:00'\nmax_exit = 1",
            "hours[0].begin is '24:00'; give a time of day, for example 07:30",
        ),
        (
            "[[hours]]\nbegin = 2026-11-23\nend = '01:00'\nmax_exit = 1",
            "hours[0].begin is '2026-11-23'; give a time of day, for example 07:30",
        ),
        (
            "[[hours]]\nbegin = '00:00'\nend = '01:00'\nzone = 'Mars'\nmax_exit = 1",
            "hours[0].zone is 'Mars'; give a name of the IANA time zone database, for example Europe/Berlin",
        ),
        ("[[input]]\npixels = 1.5\nmax_exit = 1", "input[0].pixels is 1.5; give a whole number"),
        ("[models.small", "Expected ']' at the end of a table declaration"),
    ],
)
def test_errors_say_file_key_number_and_remedy(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"budget\.toml: ") as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'budget.toml'}: {sentence}")
