"""Policies: what limits a budget B(x, t). Pure: no clock, asyncio or files.

A policy of the request looks at x and its limits last as long as the request. A policy of the moment looks at t and its
limits change with the traffic. Rules are policies that come from the budget file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Annotated, Any, Literal, Protocol
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from models.validation import value
from server.requests.budget import Asked, Budget, Limit, Traffic, deepest

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Milliseconds = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field(ge=1)]


class RequestPolicy(Protocol):
    """A source of limits that depend on the request only."""

    def limits(self, asked: Asked) -> Iterator[Limit]: ...


class MomentPolicy(Protocol):
    """A source of limits that depend on the traffic."""

    def limits(self, traffic: Traffic) -> Iterator[Limit]: ...


@dataclass(frozen=True)
class Policies:
    """All policies of a server."""

    of_request: tuple[RequestPolicy, ...] = ()
    of_moment: tuple[MomentPolicy, ...] = ()

    def budget(self, asked: Asked, traffic: Traffic | None = None) -> Budget:
        """Returns the budget of a request under the present `traffic`, which may be None if no policy depends on it."""
        of_request = tuple(limit for policy in self.of_request for limit in policy.limits(asked))
        return Budget(of_request, () if traffic is None else self._now(traffic))

    def deepest(self, traffic: Traffic) -> int | None:
        """The deepest exit that the traffic allows now; None: any."""
        return deepest(self._now(traffic))

    def _now(self, traffic: Traffic) -> tuple[Limit, ...]:
        return tuple(limit for policy in self.of_moment for limit in policy.limits(traffic))


# --- policies of the request ---


class RequestedLimits:
    """The limits that the client asks for, and the number of exits that the model has."""

    def limits(self, asked: Asked) -> Iterator[Limit]:
        if asked.deadline_s is not None:
            yield Limit("request", f"deadline_ms is {1000 * asked.deadline_s:g}", asked.deadline_s)
        if asked.timeout_s is not None:
            yield Limit("request", f"X-Request-Timeout-Seconds is {asked.timeout_s:g}", asked.timeout_s)
        if asked.max_exit is not None:
            yield Limit("request", f"max_exit is {asked.max_exit}", max_exit=asked.max_exit)
        yield Limit("model", f"{asked.model} has exits 1 to {asked.exits}", max_exit=asked.exits)


@value(kw_only=True)
class Terms:
    """The terms of the server, a model or a client: the default deadline, the longest deadline, and the deepest
    exit."""

    default_deadline_ms: Milliseconds | None = None
    max_deadline_ms: Milliseconds | None = None
    max_exit: Whole | None = None


NO_TERMS = Terms()


@dataclass(frozen=True)
class TermsPolicy:
    """The terms of the server, of each model and of each client. The default deadline of the client wins over that of
    the model, and that over the server's."""

    server: Terms
    models: Mapping[str, Terms] = field(default_factory=dict)
    clients: Mapping[str, Terms] = field(default_factory=dict)

    def limits(self, asked: Asked) -> Iterator[Limit]:
        holders = (
            ("client", f"client {asked.client}", self.clients.get(asked.client, NO_TERMS)),
            ("model", asked.model, self.models.get(asked.model, NO_TERMS)),
            ("server", "this server", self.server),
        )
        if asked.deadline_s is None:
            defaults = ((name, holder, terms.default_deadline_ms) for name, holder, terms in holders)
            name, holder, default_ms = next((found for found in defaults if found[2]), ("", "", None))
            if default_ms is not None:
                yield Limit(name, f"deadline_ms is missing, and {holder} gets {default_ms:g}", _seconds(default_ms))
        for name, holder, terms in holders:
            if terms.max_deadline_ms is not None:
                why = f"{holder} gets {terms.max_deadline_ms:g} ms at most"
                yield Limit(name, why, _seconds(terms.max_deadline_ms))
            if terms.max_exit is not None:
                yield Limit(name, f"{holder} gets exits 1 to {terms.max_exit}", max_exit=terms.max_exit)


@value(kw_only=True)
class Rule:
    """The limits of a rule, of which there is at least one."""

    max_deadline_ms: Milliseconds | None = None
    max_exit: Whole | None = None

    def __post_init__(self) -> None:
        if self.max_deadline_ms is None and self.max_exit is None:
            raise PydanticCustomError("no_limit", "give max_exit, max_deadline_ms or both")

    def limit(self, name: str, why: str) -> Limit:
        return Limit(name, why, _seconds(self.max_deadline_ms), self.max_exit)


@value(kw_only=True)
class InputRule(Rule):
    """Limits large images: those of `pixels` and more."""

    pixels: Whole

    def limits(self, asked: Asked) -> Iterator[Limit]:
        if asked.pixels is not None and asked.pixels >= self.pixels:
            yield self.limit(
                "input", f"the image has {asked.pixels:,} pixels; the rule is for {self.pixels:,} and more"
            )


# --- policies of the moment ---


@value(kw_only=True)
class TrafficRule(Rule):
    """Limits while there is much traffic: while `open_requests` or more are open, or while the devices compute for a
    share `busy` of the time or more."""

    open_requests: Annotated[int, Field(ge=0)] | None = None
    busy: Annotated[float, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.open_requests is None) == (self.busy is None):
            raise PydanticCustomError("no_measure", "give one of open_requests and busy")

    def limits(self, traffic: Traffic) -> Iterator[Limit]:
        if self.open_requests is not None and traffic.open_requests >= self.open_requests:
            yield self.limit(
                "traffic", f"{traffic.open_requests} requests are open; the rule is for {self.open_requests} and more"
            )
        if self.busy is not None and traffic.busy >= self.busy:
            yield self.limit(
                "traffic",
                f"the devices compute {traffic.busy:.0%} of the time; the rule is for {self.busy:.0%} and more",
            )


def _clock_time(text: Any) -> time:
    if not isinstance(text, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d(:00)?", text):
        raise PydanticCustomError("no_time", "give a time of day, for example 07:30")
    return time.fromisoformat(text)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise PydanticCustomError(
            "no_zone",
            "give a name of the IANA time zone database, for example Europe/Berlin (pip install tzdata brings the "
            "database where the system has none)",
        ) from None
    return name


ClockTime = Annotated[time, PlainValidator(_clock_time)]
Zone = Annotated[str, AfterValidator(_known_zone)]


@value(kw_only=True)
class HoursRule(Rule):
    """Limits at hours of high traffic: from `begin` until before `end`, local time of `zone`, on some days.

    If `end` is not after `begin`, it is on the following day.
    """

    begin: ClockTime
    end: ClockTime
    days: tuple[Day, ...] = DAYS
    zone: Zone = "UTC"

    def limits(self, traffic: Traffic) -> Iterator[Limit]:
        now = datetime.fromtimestamp(traffic.unix_s, ZoneInfo(self.zone))
        if self._holds(now.time(), now.weekday()):
            span = f"{self.begin:%H:%M} to {self.end:%H:%M}"
            yield self.limit("hours", f"it is {now:%a %H:%M} in {self.zone}; the rule is for {span}")

    def _holds(self, now: time, weekday: int) -> bool:
        today, yesterday = DAYS[weekday] in self.days, DAYS[weekday - 1] in self.days
        if self.begin < self.end:
            return today and self.begin <= now < self.end
        return (today and now >= self.begin) or (yesterday and now < self.end)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
