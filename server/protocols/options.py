"""What a request asks for: query parameters of HTTP, the same fields of WebSocket messages, and the `Accept` header.

Imports no torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from models.imaging.geometry import Box
from models.network.configs import Extra
from server.errors import InvalidError, NotAcceptableError, NotJsonError

Format = Literal["application/json", "image/png", "application/octet-stream"]
MAX_ID = 128
Encoding = Literal["png", "raw", "delta", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class RequestOptions:
    """What a request asks for, besides its image. None: left to the server. `box`: x, y, width, height in pixels."""

    model: str | None = None
    deadline_ms: float | None = None
    min_exit: int | None = None
    max_exit: int | None = None
    quality: float | None = None
    extra: Extra | None = None
    best_effort: bool = False
    box: Box | None = None


@dataclass(frozen=True)
class Parameter:
    """A query parameter or field of a `predict` message, or a header, for parsing and for the API's documentation."""

    name: str
    type: str
    text: str


PARAMETERS = (
    Parameter("model", "string", "name of the model; without it, the server's default"),
    Parameter(
        "deadline_ms", "number", "milliseconds from the first byte of the request to the last of the answer, above 0"
    ),
    Parameter("min_exit", "integer", "first exit that is worth an answer, from 1"),
    Parameter("max_exit", "integer", "last exit to compute, from 1"),
    Parameter(
        "quality",
        "number",
        "stop early, once at most this share of the pixels (of the joints, for pose) would still change until the last "
        "exit; between 0 and 1, for example 0.05. 9 answers in 10 keep it, on images like those that the model was "
        "calibrated with (its card says which); GET /v1/models/NAME says whether it was",
    ),
    Parameter("map", "string", f"a further map to add to the answer: {', '.join(get_args(Extra))}"),
    Parameter("best_effort", "boolean", "answer with less than min_exit when that is all there is in time"),
    Parameter("box", "string", "the person's box for pose: x,y,width,height in pixels of the upright image"),
)
HEADERS = (
    Parameter("X-Request-Id", "string", "name of the request, to look it up and cancel it by; without it, one is made"),
    Parameter("X-Request-Timeout-Seconds", "number", "a deadline as well, in seconds; the smallest wins"),
)
_NAMES = frozenset(parameter.name for parameter in PARAMETERS)


def parse_options(fields: Mapping[str, Any]) -> RequestOptions:
    """The options in a query or a message; strings and JSON values mean the same. Raises InvalidError."""
    unknown = [name for name in fields if name not in _NAMES]
    if unknown:
        raise InvalidError(
            f"there is no parameter {unknown[0][:80]!r}; there are {', '.join(sorted(_NAMES))}", "bad_parameter"
        )
    given = {name: value for name, value in fields.items() if value is not None}
    min_exit, max_exit = (_exit(name, given.get(name)) for name in ("min_exit", "max_exit"))
    if min_exit is not None and max_exit is not None and min_exit > max_exit:
        raise InvalidError(
            f"min_exit is {min_exit} and max_exit {max_exit}; min_exit must not be larger", "bad_parameter"
        )
    quality = _number("quality", given.get("quality"))
    if quality is not None and not 0 < quality < 1:
        raise InvalidError(
            f"quality is {quality:g}; give the share of the pixels that may still change, between 0 and 1, for example "
            "0.05",
            "bad_parameter",
        )
    extra = given.get("map")
    if extra is not None and extra not in get_args(Extra):
        raise InvalidError(f"map is {shown(extra)}; it may be {', '.join(get_args(Extra))}", "bad_parameter")
    model = given.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidError(f"model is {shown(model)}; give a name", "bad_parameter")
    return RequestOptions(
        model=model,
        deadline_ms=positive("deadline_ms", given.get("deadline_ms")),
        min_exit=min_exit,
        max_exit=max_exit,
        quality=quality,
        extra=extra,
        best_effort=_boolean("best_effort", given.get("best_effort", False)),
        box=_box(given.get("box")),
    )


def positive(name: str, value: Any) -> float | None:
    """A number above 0, or None if there is none. Raises InvalidError."""
    number = _number(name, value)
    if number is not None and number <= 0:
        raise InvalidError(f"{name} is {number:g}; it must be above 0, for example 100", "bad_parameter")
    return number


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidError(f"{name} is {shown(value)}; it must be a finite number", "bad_parameter")
    return number


def _exit(name: str, value: Any) -> int | None:
    number = _number(name, value)
    if number is None:
        return None
    if number != int(number) or number < 1:
        raise InvalidError(f"{name} is {shown(value)}; exits are whole numbers from 1", "bad_parameter")
    return int(number)


def _boolean(name: str, value: Any) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if found is None:
        raise InvalidError(f"{name} is {shown(value)}; it may be true or false", "bad_parameter")
    return found


def _box(value: Any) -> Box | None:
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 4 or None in parts:
        raise InvalidError(
            f"box is {shown(value)}; give x,y,width,height in pixels, for example 40,10,120,300", "bad_box"
        )
    x, y, width, height = (_number("box", part) or 0.0 for part in parts)
    if max(abs(x), abs(y), width, height) > 1e6 or min(width, height) < 1:
        raise InvalidError(
            f"box is {shown(value)}; width and height must be at least 1, all below 1,000,000", "bad_box"
        )
    return x, y, width, height


def shown(value: Any) -> str:
    """A value in an error message: short, whatever was sent."""
    text = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def accepted_format(accept: str, formats: Sequence[Format] = FORMATS, what: str = "a map") -> Format:
    """The best of `formats` for an `Accept` header (RFC 9110, section 12.5.1); empty: there is none. `what` is asked
    for, in words. Raises NotAcceptableError."""
    ranges = dict(_media_range(part) for part in (accept or "*/*").split(","))

    def quality(form: str) -> float:
        return ranges.get(form, ranges.get(f"{form.partition('/')[0]}/*", ranges.get("*/*", 0.0)))

    best = max(formats, key=quality)
    if quality(best) <= 0:
        raise NotAcceptableError(
            f"Accept is {shown(accept)}; {what} can be {' or '.join(formats)}: accept that", "not_acceptable"
        )
    return best


def _media_range(text: str) -> tuple[str, float]:
    media, *parameters = (part.strip().lower() for part in text.split(";"))
    try:
        quality = next((float(value[2:]) for value in parameters if value.startswith("q=")), 1.0)
    except ValueError:
        quality = 0.0
    return media, quality


# --- WebSocket messages ---


@dataclass(frozen=True)
class Predict:
    id: str
    options: RequestOptions
    encoding: Encoding


@dataclass(frozen=True)
class CancelById:
    id: str


@dataclass(frozen=True)
class NewDeadline:
    """`deadline_ms` from now."""

    id: str
    deadline_ms: float


def parse_json(text: str) -> dict[str, Any]:
    """Raises NotJsonError unless `text` is a JSON object."""
    try:
        message = json.loads(text)
    except RecursionError as error:
        raise NotJsonError("the message is nested too deeply; messages are flat objects", "not_json") from error
    except ValueError as error:
        raise NotJsonError(f"the message is not JSON: {error}", "not_json") from error
    if not isinstance(message, dict):
        raise NotJsonError(
            f"the message is a JSON {type(message).__name__}; it must be an object with `type`", "not_json"
        )
    return message


def parse_message(fields: Mapping[str, Any]) -> Predict | CancelById | NewDeadline:
    """A client's message. Raises InvalidError."""
    kind, message_id = fields.get("type"), fields.get("id")
    if not isinstance(message_id, str) or not 1 <= len(message_id) <= MAX_ID or not message_id.isprintable():
        raise InvalidError(
            f"id is {shown(message_id)}; give a string of 1 to {MAX_ID} printable characters", "bad_message"
        )
    if kind == "predict":
        encoding: Any = fields.get("encoding")
        encoding = "png" if encoding is None else encoding
        if encoding not in get_args(Encoding):
            raise InvalidError(
                f"encoding is {shown(encoding)}; it may be {', '.join(get_args(Encoding))}", "bad_message"
            )
        options = {name: value for name, value in fields.items() if name not in ("type", "id", "encoding")}
        return Predict(message_id, parse_options(options), encoding)
    if kind == "cancel":
        return CancelById(message_id)
    if kind == "deadline":
        deadline_ms = positive("deadline_ms", fields.get("deadline_ms"))
        if deadline_ms is None:
            raise InvalidError("deadline_ms is missing; say how many milliseconds from now", "bad_message")
        return NewDeadline(message_id, deadline_ms)
    raise InvalidError(f"type is {shown(kind)}; it may be predict, cancel, deadline", "bad_message")
