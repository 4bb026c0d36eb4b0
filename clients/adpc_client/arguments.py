"""Types of command line arguments, for argparse: each reads a text, or says what it must be."""

import argparse
import math
from collections.abc import Callable

MOST = 10_000_000
"""The most of anything that a command may be asked for. More would not fit into memory, or never end."""


class UsageError(Exception):
    """The command line is well-formed, but the command refuses it."""


def positive(text: str) -> float:
    return _number(text, "above 0", lambda value: value > 0)


def count(text: str, most: int = MOST) -> int:
    meaning = f"a whole number above 0 and at most {most:,}"
    return int(_number(text, meaning, lambda value: 0 < value <= most and value.is_integer()))


def share(text: str) -> float:
    return _number(text, "between 0 and 1", lambda value: 0 <= value <= 1)


def interval(text: str) -> tuple[float, float]:
    """`50` or `50-300`: the lowest and the highest value."""
    low, _, high = text.partition("-")
    values = positive(low), positive(high or low)
    if values[0] > values[1]:
        raise argparse.ArgumentTypeError(f"{text} runs backwards; write {high}-{low}")
    return values


def size(text: str) -> tuple[int, int]:
    """`480x360`: width and height."""
    width, _, height = text.partition("x")
    try:
        return count(width), count(height)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be WIDTHxHEIGHT in pixels, for example 480x360") from error


def assignment(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value


def header(text: str) -> tuple[str, str]:
    """`NAME: VALUE`. Errors do not repeat the value, which may be secret."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError("a header must be 'NAME: VALUE', for example 'Authorization: Bearer KEY'")
    return name.strip(), value.strip()


def _number(text: str, meaning: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; it must be {meaning}")
    if math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not finite; it must be {meaning}")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be {meaning}")
    return value
