"""Traces: recorded arrivals, a request a line, as JSON. `adpc load` replays and writes them; simulators read them, too.

    {"at_s": 0.25, "deadline_ms": 100, "width": 480, "height": 360, "model": "camvid-adpc-w18", "client": "3",
     "give_up_s": 0.05, "hang_up": true, "priority": 1}

Only `at_s` is required: seconds from the start. What a line leaves out is drawn when it is replayed.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adpc_client.load.plan import PlannedRequest


def _at_least_0(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _above_0(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _pixels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "at_s": (_at_least_0, "seconds from the start, 0 or more"),
    "deadline_ms": (_above_0, "milliseconds above 0"),
    "width": (_pixels, "whole pixels above 0"),
    "height": (_pixels, "whole pixels above 0"),
    "model": (lambda value: isinstance(value, str), "the name of a model"),
    "client": (lambda value: isinstance(value, str | int), "a client's name or number"),
    "give_up_s": (_at_least_0, "seconds after the request is sent, 0 or more"),
    "hang_up": (lambda value: isinstance(value, bool), "true or false"),
    "priority": (lambda value: value in (0, 1, 2), "0, 1 or 2"),
}


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The lines of a trace in order of `at_s`: what each says of its request. Raises ValueError on a wrong line."""
    with path.open(encoding="utf-8", errors="replace") as file:
        requests = [_read_line(line, f"{path}, line {number}") for number, line in enumerate(file, 1) if line.strip()]
    if not requests:
        raise ValueError(f"{path} holds no request; give one JSON object a line, with at_s at least")
    return sorted(requests, key=lambda request: float(request["at_s"]))


def write_trace(path: Path, requests: Iterable[PlannedRequest]) -> None:
    """Write `requests` in order of `at_s`."""
    with path.open("w") as file:
        file.writelines(_written(sorted(requests, key=lambda request: request.at_s)))


def _written(requests: Iterable[PlannedRequest]) -> Iterator[str]:
    for request in requests:
        fields = {name: value for name, value in asdict(request).items() if value is not None}
        if request.give_up_s is None:
            del fields["hang_up"]
        for name in ("at_s", "deadline_ms", "give_up_s"):
            if name in fields:
                fields[name] = round(fields[name], 6)
        yield json.dumps(fields) + "\n"


def _read_line(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or "at_s" not in fields:
        raise ValueError(f"{where} must be a JSON object with at_s, the seconds from the start")
    known = {name: value for name, value in fields.items() if value is not None}
    for name, value in known.items():
        if name not in _FIELDS:
            raise ValueError(f"{where} has a field {name!r}; there are {', '.join(_FIELDS)}")
        fits, meaning = _FIELDS[name]
        if not fits(value):
            raise ValueError(f"{where} has {name} {value!r}; it must be {meaning}")
    if ("width" in known) != ("height" in known):
        raise ValueError(f"{where} has only one of width and height; give both or neither")
    if "client" in known:
        known["client"] = str(known["client"])
    if "give_up_s" in known:
        known.setdefault("hang_up", False)
    return known
