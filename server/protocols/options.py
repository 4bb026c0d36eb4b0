"""Request options: what clients may ask for, in a query, in headers and in WebSocket messages.

The models here are also the source of the API's documentation. Every error is a sentence "NAME is VALUE; REMEDY": the
validators raise what follows the name.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from models.imaging.geometry import MAX_SIDE, Box
from models.network.configs import Extra
from server.errors import InvalidError, NotJsonError

T = TypeVar("T")
Query = TypeVar("Query", bound=BaseModel)
Encoding = Literal["png", "raw", "delta", "json"]
MAX_ID = 128
"""The longest id of a request, in characters."""
PRIORITIES = (0, 1, 2)
MAX_COORDINATE = 1e6
"""The largest number in a person's box, in pixels."""


# --- values: numbers in strings and JSON numbers mean the same ---


def _refuse(value: str, remedy: str, code: str = "bad_parameter") -> PydanticCustomError:
    return PydanticCustomError(code, f"is {value}; {remedy}")


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _refuse(shown(value), "it must be a finite number")
    return number


def _positive(value: Any) -> float:
    number = _number(value)
    if number <= 0:
        raise _refuse(f"{number:g}", "it must be above 0, for example 100")
    return number


def _exit(value: Any) -> int:
    number = _number(value)
    if number != int(number) or number < 1:
        raise _refuse(shown(value), "exits are whole numbers from 1")
    return int(number)


def _side(value: Any) -> int:
    number = _number(value)
    if number != int(number) or not 1 <= number <= MAX_SIDE:
        raise _refuse(shown(value), f"sides are whole numbers from 1 to {MAX_SIDE:,}")
    return int(number)


def _priority(value: Any) -> int:
    number = _number(value)
    if number not in PRIORITIES:
        raise _refuse(shown(value), "it may be 0, 1 or 2")
    return int(number)


def _quality(value: Any) -> float:
    number = _number(value)
    if not 0 < number < 1:
        remedy = "give the share of the pixels that may still change, between 0 and 1, for example 0.05"
        raise _refuse(f"{number:g}", remedy)
    return number


def _boolean(value: Any) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if found is None:
        raise _refuse(shown(value), "it may be true or false")
    return found


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(shown(value), "give a name")
    return value


def _box(value: Any) -> Box:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 4 or None in parts:
        raise _refuse(shown(value), "give x,y,width,height in pixels, for example 40,10,120,300", "bad_box")
    x, y, width, height = (_number(part) for part in parts)
    if max(abs(x), abs(y), width, height) > MAX_COORDINATE or min(width, height) < 1:
        remedy = f"width and height must be at least 1, all below {MAX_COORDINATE:,.0f}"
        raise _refuse(shown(value), remedy, "bad_box")
    return x, y, width, height


def _id(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID or not value.isprintable():
        raise _refuse(shown(value), _ID_REMEDY, "bad_message")
    return value


def _one_of(values: Sequence[str], code: str = "bad_parameter") -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in values:
            raise _refuse(shown(value), f"it may be {', '.join(values)}", code)
        return value

    return BeforeValidator(check)


Positive = Annotated[float, Field(gt=0), BeforeValidator(_positive)]
ModelName = Annotated[str, BeforeValidator(_name)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE), BeforeValidator(_side)]
ExitNumber = Annotated[int, Field(ge=1), BeforeValidator(_exit)]
_ID_REMEDY = f"give a string of 1 to {MAX_ID} printable characters"
MessageId = Annotated[str, Field(min_length=1, max_length=MAX_ID), BeforeValidator(_id)]


# --- models ---


class RequestOptions(BaseModel):
    """What a request asks for, besides its image: the query of `POST /v1/predict`. None leaves it to the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName | None = Field(default=None, description="name of the model; without it, the server's default")
    deadline_ms: Positive | None = Field(
        default=None, description="milliseconds from the first byte of the request to the last of the answer, above 0"
    )
    min_exit: ExitNumber | None = Field(default=None, description="first exit that is worth an answer, from 1")
    max_exit: ExitNumber | None = Field(default=None, description="last exit to compute, from 1")
    quality: Annotated[float, Field(gt=0, lt=1), BeforeValidator(_quality)] | None = Field(
        default=None,
        description="stop early, once at most this share of the pixels (of the joints, for pose) would still change "
        "until the last exit; between 0 and 1, for example 0.05. 9 answers in 10 keep it, on images like those that "
        "the model was calibrated with (its card says which); GET /v1/models/NAME says whether it was",
    )
    map: Annotated[Extra, _one_of(get_args(Extra))] | None = Field(
        default=None, description=f"a further map to add to the answer: {', '.join(get_args(Extra))}"
    )
    best_effort: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=False, description="answer with less than min_exit when that is all there is in time"
    )
    box: Annotated[Box, BeforeValidator(_box), WithJsonSchema({"type": "string"})] | None = Field(
        default=None, description="the person's box for pose: x,y,width,height in pixels of the upright image"
    )
    priority: Annotated[int, Field(ge=0, le=2), BeforeValidator(_priority)] = Field(
        default=1,
        description="0, 1 or 2: who gets further exits first, from 2 down; never before the first exit of anybody",
    )

    @property
    def required(self) -> int:
        """The first exit that is worth an answer."""
        return 1 if self.best_effort else self.min_exit or 1

    @field_validator("max_exit")
    @classmethod
    def _not_below_min_exit(cls, value: int | None, info: ValidationInfo) -> int | None:
        min_exit = info.data.get("min_exit")
        if value is not None and min_exit is not None and min_exit > value:
            raise _refuse(f"{value} and min_exit {min_exit}", "min_exit must not be larger")
        return value


NO_OPTIONS = RequestOptions()


class RequestHeaders(BaseModel):
    """The headers of `POST /v1/predict` that ask for something."""

    model_config = ConfigDict(frozen=True)

    request_id: str | None = Field(
        default=None,
        alias="X-Request-Id",
        description="name of the request, to look it up and cancel it by; without it, one is made",
    )
    timeout_s: Positive | None = Field(
        default=None,
        alias="X-Request-Timeout-Seconds",
        description="a deadline as well, in seconds; the smallest wins",
    )


class PredictMessage(RequestOptions):
    """A request over the WebSocket; its image follows."""

    type: Literal["predict"]
    id: MessageId
    encoding: Annotated[Encoding, _one_of(get_args(Encoding), "bad_message")] = "png"


class CancelMessage(BaseModel):
    """Ends a request."""

    model_config = ConfigDict(frozen=True)

    type: Literal["cancel"]
    id: MessageId


class DeadlineMessage(BaseModel):
    """Moves the deadline of a request to `deadline_ms` from now."""

    model_config = ConfigDict(frozen=True)

    type: Literal["deadline"]
    id: MessageId
    deadline_ms: Positive


Message = PredictMessage | CancelMessage | DeadlineMessage
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])
_HEADERS = tuple(field.alias or name for name, field in RequestHeaders.model_fields.items())
_MISSING = {"id": _ID_REMEDY, "deadline_ms": "say how many milliseconds from now"}


# --- parsing: a value that is None counts as missing ---


def parse_options(query: Mapping[str, Any]) -> RequestOptions:
    """The options in a query. Raises InvalidError."""
    return parse_query(RequestOptions, query)


def parse_query(model: type[Query], query: Mapping[str, Any]) -> Query:
    """The parameters that `model` describes, in a query. Raises InvalidError."""
    return _parsed(model.model_validate, query, model)


def parse_headers(headers: Mapping[str, str]) -> RequestHeaders:
    """The options in headers. Raises InvalidError."""
    return _parsed(RequestHeaders.model_validate, {name: headers.get(name) for name in _HEADERS})


def parse_message(fields: Mapping[str, Any]) -> Message:
    """A WebSocket message of a client. Raises InvalidError."""
    return _parsed(_MESSAGE.validate_python, fields)


def _parsed(
    validate: Callable[[dict[str, Any]], T], fields: Mapping[str, Any], model: type[BaseModel] = RequestOptions
) -> T:
    """`model`: what an unknown parameter may have been meant for."""
    try:
        return validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise _worded(error.errors(include_url=False)[0], fields.get("type"), model) from None


def _worded(problem: ErrorDetails, kind: Any, model: type[BaseModel]) -> InvalidError:
    """The first problem that pydantic found, as a sentence. `kind`: the type of the message."""
    if problem["type"] == "string_unicode":  # JSON can escape half of a surrogate pair, and pydantic reads no such name
        return InvalidError("a parameter's name is not Unicode text; give one of the documented names", "bad_parameter")
    name = str(problem["loc"][-1]) if problem["loc"] else "type"
    match problem["type"]:
        case "extra_forbidden":
            names = ", ".join(sorted(model.model_fields))
            return InvalidError(f"there is no parameter {name[:80]!r}; there are {names}", "bad_parameter")
        case "missing":
            return InvalidError(f"{name} is missing; {_MISSING[name]}", "bad_message")
        case "union_tag_invalid" | "union_tag_not_found":
            return InvalidError(f"type is {shown(kind)}; it may be predict, cancel, deadline", "bad_message")
        case code:
            return InvalidError(f"{name} {problem['msg']}", code)


def parse_json(text: str) -> dict[str, Any]:
    """A JSON object. Raises NotJsonError."""
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


def shown(value: Any) -> str:
    """A value in an error message: short, whatever the client sent."""
    text = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
