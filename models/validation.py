"""Values that come from files: frozen dataclasses whose fields pydantic checks, and its errors as sentences.

Types are strict: "3" is no number, and 3.0 is no whole number. Needs no torch.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_SHOWN = 80  # characters of a wrong value in a sentence
_OF_AN_OBJECT = ("missing", "unexpected_keyword_argument", "dataclass_type")
_REMEDIES = {
    "bool_type": "give true or false",
    "dataclass_type": "give an object",
    "finite_number": "give a finite number",
    "float_type": "give a finite number",
    "greater_than": "it must be above {gt:g}",
    "greater_than_equal": "it must be at least {ge:g}",
    "int_type": "give a whole number",
    "less_than_equal": "it may be at most {le:g}",
    "string_type": "give text",
    "too_long": "give {max_length} values",
    "tuple_type": "give a list",
}
"""What to give instead, by pydantic's type of error."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def value(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass whose constructor checks every field by its annotation, and then runs
    `__post_init__`. The constructor raises ValueError with a sentence, see `sentence`, if a field does not fit."""

    def decorate(cls: type[T]) -> type[T]:
        made: Any = pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=kw_only, config=_CONFIG)
        init = made.__init__

        def checked(self: T, *args: Any, **kwargs: Any) -> None:
            try:
                init(self, *args, **kwargs)
            except ValidationError as error:
                raise ValueError(sentence(error, made)) from error

        made.__init__ = checked
        return made  # type: ignore[no-any-return]

    return decorate


def from_json(cls: type[T], data: Mapping[str, Any], what: str) -> T:
    """Makes a `cls` of a parsed JSON object. Raises ValueError with a sentence. If fields are missing or unknown, the
    sentence says that the object is not `what`, for example "a model configuration"."""
    try:
        found: T = _adapter(cls).validate_json(json.dumps(data))  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        text = sentence(error, cls)
        kind, place = (error.errors()[0][name] for name in ("type", "loc"))
        if kind in _OF_AN_OBJECT and not (place and isinstance(place[-1], int)):
            known = ", ".join(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
            raise ValueError(f"not {what}: {text}; its fields are {known}") from error
        raise ValueError(text) from error
    return found


def sentence(error: ValidationError, cls: type) -> str:
    """The first problem that pydantic found with a `cls`: the field, its value, and what to give instead."""
    problems = error.errors()
    kind, place, given = problems[0]["type"], problems[0]["loc"], problems[0]["input"]
    if kind == "value_error":
        return str(problems[0]["ctx"]["error"])
    if place and isinstance(place[0], int):  # an argument without its name
        place = (dataclasses.fields(cls)[place[0]].name, *place[1:])
    if kind == "missing" and isinstance(place[-1], int):  # a list is too short
        same = [other["loc"] for other in problems if len(other["loc"]) == len(place) and other["type"] == kind]
        wanted = max(int(loc[-1]) for loc in same if loc[:-1] == problems[0]["loc"][:-1]) + 1
        return f"{_path(place[:-1])} is {_shown(given)}; give {wanted} values"
    if kind == "missing":
        return f"{_path(place)} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{_path(place)} is unknown"
    if kind == "literal_error":
        known = problems[0]["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{_path(place)} is {_shown(given)}; it may be {known}"
    remedy = _REMEDIES[kind].format(**problems[0].get("ctx", {})) if kind in _REMEDIES else problems[0]["msg"]
    return f"{_path(place) or 'it'} is {_shown(given)}; {remedy}"


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _path(place: tuple[int | str, ...]) -> str:
    """('palette', 0, 2) -> 'palette[0][2]'."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _shown(given: Any) -> str:
    text = repr(list(given) if isinstance(given, tuple) else given)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
