"""Settings that are texts: parses and checks them, and says what to give instead of a wrong setting. Pure."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from models.executors.registry import CHOICES, PRECISIONS
from server.access.origins import parse_hosts, parse_origins
from server.access.proxies import parse_networks

EITHER = f"{', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
"""The executors that may be chosen."""


_REMEDIES = {
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "finite_number": "give a finite number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "greater_than": "it must be above {gt:.15g}",
    "greater_than_equal": "it must be at least {ge:.15g}",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "less_than_equal": "it may be at most {le:.15g}",
    "literal_error": "it may be {expected}",
    "path_type": "give a path",
    "string_type": "give text in quotes",
}
"""What to give instead, by pydantic's type of error."""


def remedy(problem: Mapping[str, Any]) -> str:
    """What to give instead of a wrong setting. `problem`: an item of `ValidationError.errors()`."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    return _REMEDIES[kind].format(**context).replace("'", "") if kind in _REMEDIES else str(problem["msg"])


def parse_devices(text: str) -> tuple[str, ...]:
    """'cuda:0,cuda:1' -> ('cuda:0', 'cuda:1'); 'cuda:00' is 'cuda:0'. Raises ValueError on anything else than devices
    that can be told apart, where a CPU may be named several times."""
    names = tuple(re.sub(r"^cuda:0+(?=[0-9])", "cuda:", part.strip()) for part in text.split(","))
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
            raise ValueError(f"{name!r} is not auto, cpu, cuda or cuda:N")
        if len(names) > 1 and name in ("auto", "cuda"):
            raise ValueError(f"among several devices {name!r} could be any; use cpu or cuda:N")
        if name != "cpu" and names.count(name) > 1:
            raise ValueError(f"{name} is named {names.count(name)} times; one worker uses all of a GPU")
    return names


def parse_traffic_cap(text: str) -> tuple[tuple[int, int], ...]:
    """'16:3,32:2' -> ((16, 3), (32, 2)). Raises ValueError on anything else."""
    levels = []
    for part in filter(None, text.split(",")):
        jobs, _, exit_index = part.partition(":")
        if not (jobs.strip().isdecimal() and exit_index.strip().isdecimal() and int(exit_index) >= 1):
            raise ValueError(f"{part!r} is not OPEN_REQUESTS:DEEPEST_EXIT, for example 16:3")
        levels.append((int(jobs), int(exit_index)))
    return tuple(levels)


def parse_address(text: str) -> tuple[str, int] | None:
    """'127.0.0.1:9000' -> ('127.0.0.1', 9000); '' -> None. Raises ValueError on anything else."""
    host, _, port = text.rpartition(":")
    if text and not (host and port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"{text!r} is no address; give HOST:PORT, for example 127.0.0.1:9000")
    return (host.strip("[]"), int(port)) if text else None


def _executor(name: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"it may be {EITHER}")
    return name


def _precision(name: str) -> str:
    if name not in PRECISIONS:
        raise ValueError("it may be auto, fp32 or int8")
    return name


def _root_path(path: str) -> str:
    if path and not re.fullmatch(r"(/[^/?#]+)+", path):
        raise ValueError("it begins with a slash and does not end with one, as /anytime does")
    return path


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """A validator that returns the text unchanged, and refuses a text that `parse` cannot read."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


Device = Annotated[str, _parsed_by(parse_devices)]
TrafficCapText = Annotated[str, _parsed_by(parse_traffic_cap)]
Address = Annotated[str, _parsed_by(parse_address)]
Hosts = Annotated[str, _parsed_by(parse_hosts)]
PageOrigins = Annotated[str, _parsed_by(parse_origins)]
Networks = Annotated[str, _parsed_by(parse_networks)]
Executor = Annotated[str, AfterValidator(_executor)]
Precision = Annotated[str, AfterValidator(_precision)]
RootPath = Annotated[str, AfterValidator(_root_path)]
