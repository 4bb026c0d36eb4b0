"""The options of a request, and the client's own timeouts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal

Extra = Literal["confidence", "exit", "unsure"]
"""A second map to send with every answer, uint8 (H, W).

`confidence` is 0..255; `exit` is the number of the exit that decided each pixel; `unsure` is 1 where the next exit
would compute, else 0.
"""

Encoding = Literal["png", "raw", "delta", "json"]
"""How a stream encodes maps. The caller gets the same arrays from each; `delta` needs the fewest bytes."""

Box = Sequence[float]
"""x, y, width and height in pixels of the upright image; (x, y) is the top left corner."""

Classes = Sequence[str | int]
"""Names or numbers of classes."""


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

    Raises TypeError for a number that is none, and ValueError for one that is infinite or NaN, which JSON cannot carry,
    and for a `box` or `roi` without four numbers; the server checks the other limits.
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
    classes: Classes | None = None
    roi: Box | None = None
    captured_at: float | None = None
    meta: str | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Options":
        """The options among the `arguments` of a method, which gives its `locals()` in its first line."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls) if field.name in arguments})

    def __post_init__(self) -> None:
        for name, meaning in _NUMBERS.items():
            _check_number(name, getattr(self, name), meaning)
        for name in ("box", "roi"):
            box, meaning = getattr(self, name), "x, y, width and height in pixels"
            if box is not None and (isinstance(box, str) or len(box) != 4):
                raise ValueError(f"{name} is {box!r}; give four numbers: {meaning}")
            for number in () if box is None else box:
                _check_number(name, number, meaning)

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
            "box": None if self.box is None else [float(number) for number in self.box],
            "priority": self.priority,
            "classes": self.classes if self.classes is None or isinstance(self.classes, str) else list(self.classes),
            "roi": None if self.roi is None else [float(number) for number in self.roi],
            "captured_at": self.captured_at,
            "meta": self.meta,
        }
        return {name: value for name, value in values.items() if value is not None}

    def query(self) -> dict[str, str]:
        """The options as query parameters of `POST /v1/predict`. `extra` is called `map` there."""
        query = {}
        for name, value in self.message().items():
            if isinstance(value, bool):
                query[name] = "true" if value else "false"
            elif isinstance(value, list):
                query[name] = ",".join(f"{part:.15g}" if isinstance(part, float) else str(part) for part in value)
            else:
                query[name] = str(value)
        return query


_NUMBERS = {
    "deadline_ms": "milliseconds",
    "quality": "the share of the pixels that may still change",
    "captured_at": "Unix seconds, as time.time() does",
}
"""The options that are one number, with its meaning."""


def _check_number(name: str, value: object, meaning: str) -> None:
    """Raises TypeError or ValueError unless `value` is None or a finite number."""
    if value is None:
        return
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; give a number: {meaning}")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be finite: give {meaning}, or None for the server's choice")
