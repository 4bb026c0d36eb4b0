"""The budget file: the policies that whoever runs the server sets, in TOML.

[models.camvid-adpc-w18]       # a served model
default_deadline_ms = 300      # of requests that name none
max_deadline_ms = 2000         # later ones are lowered to it
max_exit = 3

[clients."10.0.0.7"]           # an address; the same three

[[traffic]]                    # while so many and more are open; or busy = 0.9
open_requests = 16
max_exit = 3                   # every rule has max_exit, max_deadline_ms or both

[[hours]]
begin = "07:30"
end = "09:30"
days = ["mon", "tue", "wed", "thu", "fri"]    # every day without it
zone = "Europe/Berlin"                        # UTC without it
max_exit = 2

[[input]]
pixels = 4_000_000             # images of so many and more
max_exit = 2
"""

import json
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import field
from pathlib import Path

from models.validation import from_json, value
from server.requests.policies import HoursRule, InputRule, Policies, Terms, TermsPolicy, TrafficRule, Wish
from server.settings import Settings


@value(kw_only=True)
class BudgetFile:
    """What a budget file holds."""

    models: dict[str, Terms] = field(default_factory=dict)
    clients: dict[str, Terms] = field(default_factory=dict)
    traffic: tuple[TrafficRule, ...] = ()
    hours: tuple[HoursRule, ...] = ()
    input: tuple[InputRule, ...] = ()

    def policies(self, server: Terms, traffic: Iterable[TrafficRule] = ()) -> Policies:
        """The policies of a server. `server`, `traffic`: the terms and rules that its flags set."""
        terms = TermsPolicy(server, self.models, self.clients)
        return Policies((Wish(), terms, *self.input), (*traffic, *self.traffic, *self.hours))


def read_policies(settings: Settings, served: Collection[str]) -> Policies:
    """The policies that flags and the budget file set. Raises as `read_budget_file` does."""
    file = BudgetFile() if settings.budget is None else read_budget_file(settings.budget, served)
    server = Terms(default_deadline_ms=settings.default_deadline_ms, max_deadline_ms=settings.max_deadline_ms)
    levels = settings.traffic_levels
    return file.policies(server, [TrafficRule(open_requests=count, max_exit=deepest) for count, deepest in levels])


def read_budget_file(path: Path, served: Collection[str]) -> BudgetFile:
    """Raises ValueError, which names the file and the key, and OSError. `served`: the names of the served models."""
    try:
        # Through JSON, since TOML has times and dates of its own, which then are text as in quotes.
        data = json.loads(json.dumps(tomllib.loads(path.read_text()), default=str))
        found = from_json(BudgetFile, data, "a budget file")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    unserved = next((name for name in found.models if name not in served), None)
    if unserved is not None:
        raise ValueError(f"{path}: models.{unserved} is not served; served are {', '.join(served)}")
    return found
