"""What a load test sends: the plan, its requests, and the mixes that they are drawn from."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
Loop = Literal["open", "cameras", "closed"]
"""Who decides when a request is sent.

open: its due moment alone, whatever became of earlier ones, as with independent users.
cameras: each client has one request open at a time; meanwhile its newest frame waits, in place of older ones.
closed: a number of users, each of whom sends the next request once the last is answered.
"""
Protocol = Literal["http", "stream"]


@dataclass(frozen=True)
class PlannedRequest:
    """One request of a plan, and one line of a trace.

    It is due `at_s` after the start, and its deadline counts from there. `width` and `height` are those of the image;
    None leaves them as the image file has them. The request is given up `give_up_s` after it is sent, unless that is
    None: by closing its connection if `hang_up`, else by cancelling it. `model` and `priority`: None for the server's.
    """

    at_s: float
    deadline_ms: float = 200.0
    width: int | None = None
    height: int | None = None
    model: str | None = None
    client: str = "0"
    give_up_s: float | None = None
    hang_up: bool = False
    priority: int | None = None


@dataclass(frozen=True)
class LoadTestPlan:
    """The requests to send, by due moment, and how.

    `images` are files, sent in turn. `options` are further options of every request, by their name on the wire.
    `encoding` is that of the answers; None is the cheapest for the generator. Over the stream protocol a client opens a
    WebSocket for each open request, or shares `connections_per_client`. Of an open loop, a request that is due while
    `max_open` are unanswered is not sent. An answer is in time if it is at most `grace_ms` late.
    """

    requests: Sequence[PlannedRequest]
    images: Sequence[bytes]
    loop: Loop = "open"
    users: int = 4
    protocol: Protocol = "http"
    encoding: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    connections_per_client: int | None = None
    max_open: int = 512
    grace_ms: float = 5.0


@dataclass(frozen=True)
class Mix(Generic[T]):
    """Values to draw from, each with a weight."""

    values: tuple[T, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, *values: T) -> "Mix[T]":
        """Values of equal weight."""
        return cls(values, (1.0,) * len(values))

    def draw(self, chance: random.Random) -> T:
        return chance.choices(self.values, self.weights)[0]


@dataclass(frozen=True)
class RequestMix:
    """What requests are made of, apart from their moments. `sizes` are (width, height), `deadlines_ms` (low, high).

    `cancel_share` of the requests are cancelled and `hang_up_share` hung up on, at a random moment before the deadline.
    """

    deadlines_ms: Mix[tuple[float, float]] = field(default_factory=lambda: Mix.of((200.0, 200.0)))
    sizes: Mix[tuple[int, int] | None] = field(default_factory=lambda: Mix.of(None))
    models: Mix[str | None] = field(default_factory=lambda: Mix.of(None))
    priorities: Mix[int | None] = field(default_factory=lambda: Mix.of(None))
    clients: Mix[str] = field(default_factory=lambda: Mix.of("0"))
    cancel_share: float = 0.0
    hang_up_share: float = 0.0

    def draw(self, known: Mapping[str, Any], chance: random.Random) -> PlannedRequest:
        """A request of which the fields in `known` are given, `at_s` at least."""
        low_ms, high_ms = self.deadlines_ms.draw(chance)
        deadline_ms = known.get("deadline_ms", chance.uniform(low_ms, high_ms))
        width, height = self.sizes.draw(chance) or (None, None)
        luck, moment_s = chance.random(), chance.uniform(0, deadline_ms / 1000)
        drawn = PlannedRequest(
            at_s=known["at_s"],
            deadline_ms=deadline_ms,
            width=width,
            height=height,
            model=self.models.draw(chance),
            client=self.clients.draw(chance),
            give_up_s=moment_s if luck < self.hang_up_share + self.cancel_share else None,
            hang_up=luck < self.hang_up_share,
            priority=self.priorities.draw(chance),
        )
        return replace(drawn, **known)


def draw_requests(arrivals: Iterable[Mapping[str, Any]], mix: RequestMix, seed: int) -> Iterator[PlannedRequest]:
    """A request for each of `arrivals`, which say `at_s` and whatever else of a request is given; the rest is drawn.

    The same seed draws the same, however the arrivals were drawn.
    """
    chance = random.Random(f"{seed} requests")
    return (mix.draw(known, chance) for known in arrivals)
