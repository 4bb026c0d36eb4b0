"""The options of a request, and the client's own timeouts."""

import math
from dataclasses import dataclass
from typing import Any, Literal

Extra = Literal["confidence", "exit", "unsure"]
"""A second map to send with every answer, uint8 (H, W).

`confidence` is 0..255; `exit` is the number of the exit that decided each pixel; `unsure` is 1 where the next exit
would compute, else 0.
"""

Encoding = Literal["png", "raw", "delta", "json"]
"""How a stream encodes maps. The caller gets the same arrays from each; `delta` needs the fewest bytes."""

Box = tuple[float, float, float, float]
"""x, y, width and height of a person in pixels of the image; (x, y) is the top left corner."""


@dataclass(frozen=True)
class Timeout:
    """How long the client waits, in seconds; None waits for ever.

    `connect_s` limits the wait for a connection. `silence_s` limits the wait for the server's next message, in addition
    to the request's deadline. Raises ValueError unless each is above 0 or None.
    """

    connect_s: float | None = 5.0
    silence_s: float | None = 30.0

    def __post_init__(self) -> None:
        for name, value in (("connect_s", self.connect_s), ("silence_s", self.silence_s)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0, or None to wait for ever")

    def answer_s(self, deadline_ms: float | None) -> float | None:
        """The longest wait, in seconds, for the next message about a request with this deadline."""
        return None if self.silence_s is None else self.silence_s + (deadline_ms or 0.0) / 1000.0


@dataclass(frozen=True)
class Options:
    """The options of one request, as the server's `/docs` describes them. None leaves the choice to the server.

    Raises ValueError if a number of `deadline_ms`, `quality` or `box` is infinite or NaN, which JSON cannot carry; the
    server checks the other limits.
    """

    model: str | None = None
    deadline_ms: float | None = None
    min_exit: int | None = None
    max_exit: int | None = None
    quality: float | None = None
    best_effort: bool | None = None
    extra: Extra | None = None
    box: Box | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        if self.deadline_ms is not None and not math.isfinite(self.deadline_ms):
            raise ValueError(
                f"deadline_ms is {self.deadline_ms}; it must be a finite number, or None for the server's default"
            )
        for name, numbers in (("quality", (self.quality or 0.0,)), ("box", self.box or ())):
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite")

    def message(self) -> dict[str, Any]:
        """The options as members of a WebSocket `predict` message. `extra` is called `map` there."""
        values = {
            "model": self.model,
            "deadline_ms": self.deadline_ms,
            "min_exit": self.min_exit,
            "max_exit": self.max_exit,
            "quality": self.quality,
            "best_effort": self.best_effort,
            "map": self.extra,
            "box": None if self.box is None else list(self.box),
            "priority": self.priority,
        }
        return {name: value for name, value in values.items() if value is not None}

    def query(self) -> dict[str, str]:
        """The options as query parameters of `POST /v1/predict`. `extra` is called `map` there."""
        query = {}
        for name, value in self.message().items():
            if isinstance(value, bool):
                query[name] = "true" if value else "false"
            else:
                query[name] = ",".join(f"{number:.15g}" for number in value) if name == "box" else str(value)
        return query
