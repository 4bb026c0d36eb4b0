"""Request options: what clients may ask for, in a query, in headers and in WebSocket messages.

The models here are also the source of the API's documentation. Every error is a sentence "NAME is VALUE; REMEDY":
`values.py` raises what follows the name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from models.network.configs import Extra
from server.errors import InvalidError, NotJsonError
from server.protocols.values import (
    ID_REMEDY,
    ClassList,
    ExitNumber,
    Flag,
    MessageId,
    Meta,
    ModelName,
    PersonBox,
    Positive,
    Priority,
    RegionBox,
    ShareOfPixels,
    one_of,
    refuse,
    shown,
)

T = TypeVar("T")
Query = TypeVar("Query", bound=BaseModel)
TIMEOUT_HEADER = "X-Request-Timeout-Seconds"
Encoding = Literal["png", "raw", "delta", "json", "rle"]
HttpEncoding = Literal["png", "rle"]


class RequestOptions(BaseModel):
    """The options of a request, the same over every protocol. None leaves an option to the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName | None = Field(default=None, description="name of the model; without it, the server's default")
    deadline_ms: Positive | None = Field(
        default=None, description="milliseconds from the first byte of the request to the last of the answer, above 0"
    )
    min_exit: ExitNumber | None = Field(default=None, description="first exit that is worth an answer, from 1")
    max_exit: ExitNumber | None = Field(default=None, description="last exit to compute, from 1")
    quality: ShareOfPixels | None = Field(
        default=None,
        description="stop early, once at most this share of the pixels (of the joints, for pose) would still change "
        "until the last exit; between 0 and 1, for example 0.05. 9 answers in 10 keep it, on images like those that "
        "the model was calibrated with (its card says which); GET /v1/models/NAME says whether it was",
    )
    map: Annotated[Extra, one_of(get_args(Extra))] | None = Field(
        default=None, description=f"a further map to add to the answer: {', '.join(get_args(Extra))}"
    )
    best_effort: Flag = Field(
        default=False, description="answer with less than min_exit when that is all there is in time"
    )
    box: PersonBox | None = Field(
        default=None, description="the person's box for pose: x,y,width,height in pixels of the upright image"
    )
    priority: Priority = Field(
        default=1,
        description="0, 1 or 2, the highest: decides who gets further exits first; it never delays a first exit",
    )
    classes: ClassList | None = Field(
        default=None,
        description="names or numbers of the classes to send, for example road,car; other pixels are 255",
    )
    roi: RegionBox | None = Field(
        default=None,
        description="the region of interest for segmentation: x,y,width,height in pixels of the upright image. Only it "
        "and a rim around it are computed; the mask keeps the image's size, and is 255 outside",
    )
    meta: Meta | None = Field(
        default=None, description="text that comes back with the answer: at most 256 bytes, printable"
    )
    captured_at: Positive | None = Field(
        default=None,
        description="when the image was taken, in Unix seconds: the deadline counts from there if that is earlier than "
        "the request. An image whose deadline is over on arrival is refused before it is decoded, and so is one that "
        "was taken more than a day from now",
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
            raise refuse(f"{shown(value)} and min_exit {shown(min_exit)}", "min_exit must not be larger")
        return value


NO_OPTIONS = RequestOptions()


class QueryOptions(RequestOptions):
    """The query of `POST /v1/predict`."""

    encoding: Annotated[HttpEncoding, one_of(get_args(HttpEncoding))] = Field(
        default="png",
        description="how a JSON answer holds the mask: png, or rle, which is COCO's run lengths of every class",
    )


class RequestHeaders(BaseModel):
    """The headers of `POST /v1/predict` that ask for something."""

    model_config = ConfigDict(frozen=True)

    request_id: str | None = Field(
        default=None,
        alias="X-Request-Id",
        description="name of the request, to look it up and cancel it by; without it, one is made",
    )
    token: str | None = Field(
        default=None,
        alias="X-Request-Token",
        description="a secret of 16 to 256 characters; looking the request up and cancelling it then need it, too",
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
    encoding: Annotated[Encoding, one_of(get_args(Encoding), "bad_message")] = "png"


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
_POSITIVE: TypeAdapter[float] = TypeAdapter(Positive)
_HEADERS = tuple(field.alias or name for name, field in RequestHeaders.model_fields.items())
MAX_PARAMETERS = 100
"""The most parameters that are looked at: each unknown one costs as much time as a known one."""
_MISSING = {"id": ID_REMEDY, "deadline_ms": "say how many milliseconds from now"}


# --- parsing: a value that is None counts as missing ---


def parse_options(query: Mapping[str, Any], deadlines: Sequence[str] = ()) -> QueryOptions:
    """The options in a query: see `parse_query`."""
    return parse_query(QueryOptions, query, deadlines)


def parse_query(model: type[Query], query: Mapping[str, Any], deadlines: Sequence[str] = ()) -> Query:
    """The parameters that `model` describes, in a query. `deadlines`: all that it gives; the smallest counts. Raises
    InvalidError."""
    if len(deadlines) > 1:
        query = {**query, "deadline_ms": _smallest("deadline_ms", deadlines)}
    return _parsed(model.model_validate, query, model)


def parse_headers(headers: Mapping[str, str], timeouts: Sequence[str] = ()) -> RequestHeaders:
    """The options in headers. `timeouts`: all that they give; the smallest counts. Raises InvalidError."""
    fields: dict[str, Any] = {name: headers.get(name) for name in _HEADERS}
    if len(timeouts) > 1:
        fields[TIMEOUT_HEADER] = _smallest(TIMEOUT_HEADER, timeouts)
    return _parsed(RequestHeaders.model_validate, fields)


def _smallest(name: str, values: Sequence[Any]) -> float:
    """The smallest of several values of a parameter or header. Raises InvalidError if one of them is no time."""
    try:
        return min(map(_POSITIVE.validate_python, values))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InvalidError(f"{name} {problem['msg']}", problem["type"]) from None


def parse_message(fields: Mapping[str, Any]) -> Message:
    """A WebSocket message of a client. Raises InvalidError."""
    return _parsed(_MESSAGE.validate_python, fields, PredictMessage)


def _parsed(
    validate: Callable[[dict[str, Any]], T], fields: Mapping[str, Any], model: type[BaseModel] = RequestOptions
) -> T:
    """The value that `validate` makes of the fields. Raises InvalidError; it lists the fields of `model` if a field is
    unknown."""
    if len(fields) > MAX_PARAMETERS:
        sentence = f"there are {len(fields):,} parameters, and the limit is {MAX_PARAMETERS}; give documented ones only"
        raise InvalidError(sentence, "bad_parameter")
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
            given = "missing" if kind is None else shown(kind)
            return InvalidError(f"type is {given}; it may be predict, cancel, deadline", "bad_message")
        case code:
            return InvalidError(f"{name} {problem['msg']}", code)


def parse_json(text: str) -> dict[str, Any]:
    """A JSON object. Of several deadlines in it, the smallest counts. Raises NotJsonError or InvalidError."""
    try:
        message = json.loads(text, object_pairs_hook=_fields)
    except RecursionError as error:
        raise NotJsonError("the message is nested too deeply; messages are flat objects", "not_json") from error
    except ValueError as error:
        raise NotJsonError(f"the message is not JSON: {error}", "not_json") from error
    if not isinstance(message, dict):
        raise NotJsonError(
            f"the message is a JSON {type(message).__name__}; it must be an object with `type`", "not_json"
        )
    return message


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        deadlines = [value for name, value in pairs if name == "deadline_ms"]
        if len(deadlines) > 1:
            fields["deadline_ms"] = _smallest("deadline_ms", deadlines)
    return fields
