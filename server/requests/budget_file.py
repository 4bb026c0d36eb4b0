"""The budget file: the policies that whoever runs the server sets, in TOML. docs/budget.md shows one."""

import json
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import field
from pathlib import Path

from models.reading import read_text, shallow
from models.validation import from_json, value
from server.requests.policies import HoursRule, InputRule, Policies, RequestedLimits, Terms, TermsPolicy, TrafficRule
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
        return Policies((RequestedLimits(), terms, *self.input), (*traffic, *self.traffic, *self.hours))


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
        data = json.loads(json.dumps(shallow(lambda: tomllib.loads(read_text(path))), default=str))
        found = from_json(BudgetFile, data, "a budget file")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    unserved = next((name for name in found.models if name not in served), None)
    if unserved is not None:
        raise ValueError(f"{path}: models.{unserved} is not served; served are {', '.join(served)}")
    return found
