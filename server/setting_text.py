"""Settings that are texts: parses and checks them. Pure."""

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from models.executors.registry import CHOICES, PRECISIONS
from server.access.origins import parse_hosts, parse_origins
from server.access.proxies import parse_networks

EITHER = f"{', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
"""The executors that may be chosen."""


def parse_devices(text: str) -> tuple[str, ...]:
    """'cuda:0,cuda:1' -> ('cuda:0', 'cuda:1'). Raises ValueError on anything else than devices that can be told apart,
    where a CPU may be named several times."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
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
        if not (jobs.strip().isdigit() and exit_index.strip().isdigit() and int(exit_index) >= 1):
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
