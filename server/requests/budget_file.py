"""The budget file: the policies that whoever runs the server sets, in TOML. docs/budget.md shows one."""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path

from models.reading import read_text, shallow
from models.validation import from_json, value
from server.access.keys import checked_name
from server.access.proxies import parse_client_address
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


def read_policies(settings: Settings, served: Mapping[str, int]) -> Policies:
    """The policies that flags and the budget file set. Raises as `read_budget_file` does."""
    file = BudgetFile() if settings.budget is None else read_budget_file(settings.budget, served)
    server = Terms(default_deadline_ms=settings.default_deadline_ms, max_deadline_ms=settings.max_deadline_ms)
    levels = settings.traffic_levels
    return file.policies(server, [TrafficRule(open_requests=count, max_exit=deepest) for count, deepest in levels])


def read_budget_file(path: Path, served: Mapping[str, int]) -> BudgetFile:
    """Raises ValueError, which names the file and the key, and OSError. `served`: how many exits each served model
    has, by its name."""
    try:
        # Through JSON, since TOML has times and dates of its own, which then are text as in quotes.
        data = json.loads(json.dumps(shallow(lambda: tomllib.loads(read_text(path))), default=str))
        found = from_json(BudgetFile, data, "a budget file")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    unserved = next((name for name in found.models if name not in served), None)
    if unserved is not None:
        raise ValueError(f"{path}: models.{unserved} is not served; served are {', '.join(served)}")
    for name in found.clients:
        if not _names_client(name):
            raise ValueError(
                f"{path}: clients.{name} is neither an address, as the server writes it, nor the name of an API key; "
                "give one, for example 10.0.0.7, 2001:db8::1 or robot-7"
            )
    for key, max_exit, exits, holder in _exit_limits(found, served):
        if max_exit is not None and max_exit > exits:
            raise ValueError(f"{path}: {key}.max_exit is {max_exit}; {holder} has exits 1 to {exits}")
    return found


def _names_client(name: str) -> bool:
    """Whether a client can be called so: an address as the server writes it, or a key. A network is neither."""
    try:
        return parse_client_address(name) == name or bool(checked_name(name))
    except ValueError:
        return False


def _exit_limits(file: BudgetFile, served: Mapping[str, int]) -> Iterator[tuple[str, int | None, int, str]]:
    """Each entry's key and `max_exit`, the number of exits that it cannot exceed, and the model that has so many.

    An entry for all models may exceed the exits of one model, but not those of the model that has the most.
    """
    for name, terms in file.models.items():
        yield f"models.{name}", terms.max_exit, served[name], name
    most = max(served.values(), default=0)
    for name, terms in file.clients.items():
        yield f"clients.{name}", terms.max_exit, most, "the deepest model"
    for kind, rules in (("traffic", file.traffic), ("hours", file.hours), ("input", file.input)):
        for index, rule in enumerate(rules):
            yield f"{kind}[{index}]", rule.max_exit, most, "the deepest model"
