"""Rules: which settings contradict each other, the models or the machine. They are checked before anything is started.

What one setting alone may be is said in `server/settings.py`.
"""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models.directory import SCALES_FILE
from models.executors.registry import AUTO, EXECUTORS
from models.imaging.geometry import MULTIPLE
from models.machine import memory_bytes
from server.catalog import Catalog
from server.requests.budget_file import BudgetFile, read_budget_file
from server.settings import Settings

THREADS_PER_CORE = 8
"""More threads than this for each core only wait for each other."""
SPARE_BYTES = 150 * 10**6
"""What a process in reserve takes."""
RECORD_BYTES = 2048
"""What an ended request that can be looked up takes."""


@dataclass(frozen=True)
class Machine:
    """What the machine has. `listen`: raises OSError if no server can listen on a host and port."""

    cores: int
    memory_bytes: int
    listen: Callable[[str, int], None]


@dataclass(frozen=True)
class Start:
    """All that is known before a server starts."""

    settings: Settings
    catalog: Catalog
    budget: BudgetFile
    machine: Machine


@dataclass(frozen=True)
class Rule:
    """`names`: the settings that it is about. `problem`: what is wrong and the remedy; None if the rule is kept."""

    names: tuple[str, ...]
    problem: Callable[[Start], str | None]


def contradictions(settings: Settings, catalog: Catalog, machine: Machine) -> list[str]:
    """A sentence for each rule that is broken, with the names and values of its settings. Raises ValueError and OSError
    if the budget file cannot be read."""
    served = [model.name for model in catalog]
    budget = BudgetFile() if settings.budget is None else read_budget_file(settings.budget, served)
    return list(_sentences(Start(settings, catalog, budget, machine)))


def this_machine() -> Machine:
    return Machine(os.cpu_count() or 1, memory_bytes(), try_to_listen)


def try_to_listen(host: str, port: int) -> None:
    """Raises OSError if no server can listen there."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()


def _sentences(start: Start) -> Iterator[str]:
    for rule in RULES:
        problem = rule.problem(start)
        if problem is not None:
            given = (f"--{name.replace('_', '-')} {getattr(start.settings, name)}" for name in rule.names)
            yield f"{' and '.join(given)}: {problem}"


def _default_deadline(start: Start) -> str | None:
    if start.settings.default_deadline_ms <= start.settings.max_deadline_ms:
        return None
    return "the deadline of requests that name none is above the longest; lower the first, or raise the second"


def _budget_deadline(start: Start) -> str | None:
    longest_ms = start.settings.max_deadline_ms
    for kind, terms in (("models", start.budget.models), ("clients", start.budget.clients)):
        for name, held in terms.items():
            if held.default_deadline_ms is not None and held.default_deadline_ms > longest_ms:
                asked = f"{kind}.{name}.default_deadline_ms of the file is {held.default_deadline_ms:g}"
                return f"{asked}, above the longest deadline of the server; lower it, or raise the second"
    return None


def _burst(start: Start) -> str | None:
    if start.settings.client_rate > 0 or "client_burst" not in start.settings.model_fields_set:
        return None
    return "without a rate there is no burst; give a rate, or leave the burst out"


def _traffic_cap(start: Start) -> str | None:
    most = start.settings.max_open
    late = [count for count, _ in start.settings.traffic_levels if count > most]
    return f"{late[0]} requests are never open; name at most {most}, or raise the second" if late else None


def _largest_image(start: Start) -> str | None:
    for model in start.catalog:
        needed = model.layout(1, start.settings.max_pixels, extra=True).total_bytes
        if needed > start.settings.shared_memory_bytes:
            return (
                f"the largest image and its maps by {model.name} need {needed:,} bytes; raise the first to that, or "
                "lower the second"
            )
    return None


def _smallest_images(start: Start) -> str | None:
    for model in start.catalog:
        needed = start.settings.max_open * model.layout(MULTIPLE, MULTIPLE, extra=True).total_bytes
        if needed > start.settings.shared_memory_bytes:
            return (
                f"so many images of {MULTIPLE}x{MULTIPLE} and their maps by {model.name} need {needed:,} bytes; raise "
                "the first to that, or lower the second"
            )
    return None


def _fits_memory(what: str, needed: Callable[[Settings], int]) -> Callable[[Start], str | None]:
    def problem(start: Start) -> str | None:
        most, asked = start.machine.memory_bytes, needed(start.settings)
        return None if asked <= most else f"{what} {asked:,} bytes, and there are {most:,} of memory; lower it"

    return problem


def _longest_message(start: Start) -> str | None:
    most = 2 * start.settings.max_body_bytes
    if start.settings.max_message_bytes <= most:
        return None
    return f"a WebSocket reads {most:,} bytes at most, twice the second; lower the first to that, or raise the second"


def _cores(name: str) -> Callable[[Start], str | None]:
    def problem(start: Start) -> str | None:
        most = THREADS_PER_CORE * start.machine.cores
        if getattr(start.settings, name) <= most:
            return None
        return f"there are {start.machine.cores} cores, for which {most} threads are the most; lower it"

    return problem


def _workers(start: Start) -> str | None:
    workers = start.settings.devices.count("cpu")
    if not 0 < start.settings.threads < workers:
        return None
    return f"each of the {workers} workers computes with a thread of its own; raise the first to {workers}, or set it 0"


def _executor_on_device(start: Start) -> str | None:
    kind = EXECUTORS.get(start.settings.executor)
    if kind is None:
        return None
    wrong = [name for name in start.settings.devices if name != AUTO and not kind.runs_on(name)]
    known = ", ".join(kind.devices)
    return f"the executor does not run on {wrong[0]}, but on {known}; change one of them" if wrong else None


def _executor_in_precision(start: Start) -> str | None:
    kind, precision = EXECUTORS.get(start.settings.executor), start.settings.precision
    if kind is None or precision == AUTO or precision in kind.precisions:
        return None
    return f"the executor computes in {' or '.join(kind.precisions)}; change one of them"


def _executor_of_family(start: Start) -> str | None:
    kind = EXECUTORS.get(start.settings.executor)
    wrong = [model for model in start.catalog if kind is not None and not kind.runs(model.config.family)]
    if not wrong:
        return None
    return f"the executor does not run {wrong[0].name}, of family {wrong[0].config.family}; use auto, or take it out"


def _scales(start: Start) -> str | None:
    without = [model.name for model in start.catalog if not os.path.lexists(model.directory / SCALES_FILE)]
    if start.settings.precision != "int8" or not without:
        return None
    return f"{without[0]} has no {SCALES_FILE}; make it with python -m models quantise, or use precision auto"


def _address(start: Start) -> str | None:
    try:
        start.machine.listen(start.settings.host, start.settings.port)
    except OSError as error:
        return f"no server can listen there ({error.strerror or error}); choose another port, or another host"
    return None


RULES = (
    Rule(("default_deadline_ms", "max_deadline_ms"), _default_deadline),
    Rule(("budget", "max_deadline_ms"), _budget_deadline),
    Rule(("client_burst", "client_rate"), _burst),
    Rule(("traffic_cap", "max_open"), _traffic_cap),
    Rule(("shared_memory_bytes", "max_pixels"), _largest_image),
    Rule(("shared_memory_bytes", "max_open"), _smallest_images),
    Rule(("shared_memory_bytes",), _fits_memory("it takes", lambda settings: settings.shared_memory_bytes)),
    Rule(("max_body_bytes",), _fits_memory("an image may take", lambda settings: settings.max_body_bytes)),
    Rule(("spare_workers",), _fits_memory("they take", lambda settings: SPARE_BYTES * settings.spare_workers)),
    Rule(("history",), _fits_memory("they take", lambda settings: RECORD_BYTES * settings.history)),
    Rule(("max_message_bytes", "max_body_bytes"), _longest_message),
    Rule(("threads",), _cores("threads")),
    Rule(("codec_threads",), _cores("codec_threads")),
    Rule(("threads", "device"), _workers),
    Rule(("executor", "device"), _executor_on_device),
    Rule(("executor", "precision"), _executor_in_precision),
    Rule(("executor", "models"), _executor_of_family),
    Rule(("precision", "models"), _scales),
    Rule(("host", "port"), _address),
)
