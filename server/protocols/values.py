"""Values of options: types that refuse wrong values with a sentence that names the remedy.

Numbers in strings and JSON numbers mean the same.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from models.imaging.geometry import MAX_SIDE, Box

MAX_ID = 128
"""The longest id of a request, in characters."""
ID_REMEDY = f"give a string of 1 to {MAX_ID} printable characters"
PRIORITIES = (0, 1, 2)
MAX_COORDINATE = 1e6
"""The largest number in a person's box, in pixels."""
MAX_CLASSES = 255
"""The most classes of a model: the value 255 of a map stands for no class."""
MAX_META_BYTES = 256
"""The longest `meta` of a request, in bytes of UTF-8."""


def refuse(value: str, remedy: str, code: str = "bad_parameter") -> PydanticCustomError:
    """The error for a wrong value. Its text follows the name of the option in the sentence."""
    return PydanticCustomError(code, f"is {value}; {remedy}")


def _number(value: Any, remedy: str = "it must be a finite number", code: str = "bad_parameter") -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    spelt = not isinstance(value, str) or (value.isascii() and "_" not in value)  # Python reads more than JSON has
    if not (spelt and math.isfinite(number)):
        raise refuse(shown(value), remedy, code)
    return number


def _positive(value: Any) -> float:
    number = _number(value, "it must be a finite number above 0, for example 100")
    if number <= 0:
        raise refuse(f"{number:g}", "it must be above 0, for example 100")
    return number


def _exit(value: Any) -> int:
    remedy = "exits are whole numbers from 1"
    number = _number(value, remedy)
    if number != int(number) or number < 1:
        raise refuse(shown(value), remedy)
    return int(number)


def _side(value: Any) -> int:
    remedy = f"sides are whole numbers from 1 to {MAX_SIDE:,}"
    number = _number(value, remedy)
    if number != int(number) or not 1 <= number <= MAX_SIDE:
        raise refuse(shown(value), remedy)
    return int(number)


def _priority(value: Any) -> int:
    remedy = "it may be 0, 1 or 2"
    number = _number(value, remedy)
    if number not in PRIORITIES:
        raise refuse(shown(value), remedy)
    return int(number)


def _quality(value: Any) -> float:
    remedy = "give the share of the pixels that may still change, between 0 and 1, for example 0.05"
    number = _number(value, remedy)
    if not 0 < number < 1:
        raise refuse(f"{number:g}", remedy)
    return number


def _boolean(value: Any) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if found is None:
        raise refuse(shown(value), "it may be true or false")
    return found


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse(shown(value), "give a name")
    return value


def _box(code: str) -> BeforeValidator:
    """Reads x,y,width,height; errors have this `code`."""

    def read(value: Any) -> Box:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or len(parts) != 4 or None in parts:
            raise refuse(shown(value), "give x,y,width,height in pixels, for example 40,10,120,300", code)
        x, y, width, height = (_number(part, code=code) for part in parts)
        if max(abs(x), abs(y), width, height) > MAX_COORDINATE or min(width, height) < 1:
            remedy = f"width and height must be at least 1, all below {MAX_COORDINATE:,.0f}"
            raise refuse(shown(value), remedy, code)
        return x, y, width, height

    return BeforeValidator(read)


def _id(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID or not value.isprintable():
        raise refuse(shown(value), ID_REMEDY, "bad_message")
    return value


def _classes(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    remedy = "give names or numbers of classes, for example road,car"
    if not isinstance(parts, list) or not 1 <= len(parts) <= MAX_CLASSES:
        raise refuse(shown(value), remedy)
    if not all(isinstance(part, str) or type(part) is int for part in parts):
        raise refuse(shown(value), remedy)
    return tuple(str(part).strip() for part in parts)


def _meta(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse(shown(value), "give a text")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        size_bytes = MAX_META_BYTES + 1
    if size_bytes > MAX_META_BYTES or not value.isprintable():
        raise refuse(shown(value), f"it may have up to {MAX_META_BYTES} bytes of printable text")
    return value


def one_of(values: Sequence[str], code: str = "bad_parameter") -> BeforeValidator:
    """Refuses what is not among `values`."""

    def check(value: Any) -> Any:
        if value not in values:
            raise refuse(shown(value), f"it may be {', '.join(values)}", code)
        return value

    return BeforeValidator(check)


ModelName = Annotated[str, BeforeValidator(_name)]
MessageId = Annotated[str, Field(min_length=1, max_length=MAX_ID), BeforeValidator(_id)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_positive)]
ExitNumber = Annotated[int, Field(ge=1), BeforeValidator(_exit)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE), BeforeValidator(_side)]
Priority = Annotated[int, Field(ge=0, le=2), BeforeValidator(_priority)]
ShareOfPixels = Annotated[float, Field(gt=0, lt=1), BeforeValidator(_quality)]
ClassList = Annotated[tuple[str, ...], BeforeValidator(_classes), WithJsonSchema({"type": "string"})]
Meta = Annotated[str, Field(max_length=MAX_META_BYTES), BeforeValidator(_meta)]
Flag = Annotated[bool, BeforeValidator(_boolean)]
PersonBox = Annotated[Box, _box("bad_box"), WithJsonSchema({"type": "string"})]
RegionBox = Annotated[Box, _box("bad_roi"), WithJsonSchema({"type": "string"})]


def shown(value: Any) -> str:
    """A value in an error message: short, whatever the client sent."""
    if not isinstance(value, str | int | float):
        return {type(None): "null", dict: "an object"}.get(type(value), "a list")
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
