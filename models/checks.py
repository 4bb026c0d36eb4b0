"""What fields of configurations and recipes may be. Each check raises ValueError with the field, its value and what to
give. Imports nothing of this project.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

_KINDS = {str: "text", bool: "true or false", tuple: "a list"}


def kind(name: str, value: object, wanted: type) -> None:
    """`wanted`: str, bool or tuple."""
    if not isinstance(value, wanted):
        raise ValueError(f"{name} is {value!r}; give {_KINDS[wanted]}")  # noqa: TRY004 - it is of a file


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it may be {', '.join(known)}")


def whole(name: str, value: Any, least: int = 1, most: float = math.inf) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; give a whole number{_within(least, most)}")


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    if type(value) not in (int, float) or not (least <= value <= most and abs(value) < math.inf):
        raise ValueError(f"{name} is {value!r}; give a finite number{_within(least, most)}")


def above(name: str, value: Any, bound: float) -> None:
    number(name, value)
    if value <= bound:
        raise ValueError(f"{name} is {value!r}; give a number above {bound}")


def several(name: str, values: Any, count: int | None, check: Callable[..., None], *limits: Any) -> None:
    """`check` of each of `count` values; None: of however many there are. It may be `several` itself."""
    kind(name, values, tuple)
    if count not in (None, len(values)):
        raise ValueError(f"{name} is {list(values)}; give {count} values")
    for index, value in enumerate(values):
        check(f"{name}[{index}]", value, *limits)


def tuples(value: Any) -> Any:
    """A value out of JSON as fields hold it: lists, and lists in them, are tuples."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def _within(least: float, most: float) -> str:
    low = "" if least == -math.inf else f" of at least {least}"
    return low if most == math.inf else f"{low} and at most {most}"
