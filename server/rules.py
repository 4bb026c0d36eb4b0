"""Rules: checks that the settings fit each other, the models and the machine. They run before anything is started.

`server/settings.py` checks each setting by itself.
"""

import math
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
"""The memory that a process in reserve takes."""
RECORD_BYTES = 2048
"""The memory that an ended request takes while it can be looked up."""


@dataclass(frozen=True)
class Machine:
    """What the machine has. `listen`: raises OSError if no server can listen on a host and port."""

    cores: int
    memory_bytes: int
    listen: Callable[[str, int], None]


@dataclass(frozen=True)
class StartUp:
    """What the rules are checked against: all that is known before a server starts."""

    settings: Settings
    catalog: Catalog
    budget: BudgetFile
    machine: Machine


@dataclass(frozen=True)
class SettingsRule:
    """`names`: the settings that it is about. `problem`: what is wrong and the remedy; None if the rule is kept.

    `of_given`: the rule is checked only if all its settings were given. If one has its default value, the tighter limit
    simply holds, and requests are told of it.
    """

    names: tuple[str, ...]
    problem: Callable[[StartUp], str | None]
    of_given: bool = False

    def applies(self, settings: Settings) -> bool:
        return not self.of_given or settings.model_fields_set.issuperset(self.names)


def contradictions(settings: Settings, catalog: Catalog, machine: Machine) -> list[str]:
    """A sentence for each rule that is broken, with the names and values of its settings. Raises ValueError and OSError
    if the budget file cannot be read."""
    served = {model.name: model.config.exits for model in catalog}
    budget = BudgetFile() if settings.budget is None else read_budget_file(settings.budget, served)
    return list(_sentences(StartUp(settings, catalog, budget, machine)))


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


def _sentences(start: StartUp) -> Iterator[str]:
    for rule in RULES:
        problem = rule.problem(start) if rule.applies(start.settings) else None
        if problem is not None:
            yield f"{' and '.join(_given(start.settings, name) for name in rule.names)}: {problem}"


def _given(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    shown = f" {value:.12g}" if isinstance(value, float) else "" if value is True else f" {value}"
    return f"--{name.replace('_', '-')}{shown}"


def _default_deadline(start: StartUp) -> str | None:
    if start.settings.default_deadline_ms <= start.settings.max_deadline_ms:
        return None
    return "the deadline of requests that name none is above the longest; lower the first, or raise the second"


def _budget_deadline(start: StartUp) -> str | None:
    for kind, terms in (("models", start.budget.models), ("clients", start.budget.clients)):
        for name, held in terms.items():
            longest_ms = min(start.settings.max_deadline_ms, held.max_deadline_ms or math.inf)
            if held.default_deadline_ms is not None and held.default_deadline_ms > longest_ms:
                asked = f"{kind}.{name}.default_deadline_ms of the file is {held.default_deadline_ms:g}"
                return f"{asked}, above the longest deadline there, {longest_ms:g}; lower it, or raise that"
    return None


def _budget_traffic(start: StartUp) -> str | None:
    for index, rule in enumerate(start.budget.traffic):
        if rule.open_requests is not None and rule.open_requests > start.settings.max_open:
            asked = f"traffic[{index}].open_requests of the file is {rule.open_requests}"
            return f"{asked}, and so many are never open; lower it, or raise the second"
    return None


def _budget_input(start: StartUp) -> str | None:
    for index, rule in enumerate(start.budget.input):
        if rule.pixels > start.settings.max_pixels:
            asked = f"input[{index}].pixels of the file is {rule.pixels}"
            return f"{asked}, and a larger image than the second is refused; lower it, or raise the second"
    return None


def _burst(start: StartUp) -> str | None:
    if start.settings.client_rate > 0 or "client_burst" not in start.settings.model_fields_set:
        return None
    return "without a rate there is no burst; give a rate, or leave the burst out"


def _traffic_cap(start: StartUp) -> str | None:
    most = start.settings.max_open
    late = [count for count, _ in start.settings.traffic_levels if count > most]
    return f"{late[0]} requests are never open; name at most {most}, or raise the second" if late else None


def _capped_exit(start: StartUp) -> str | None:
    most = max(model.config.exits for model in start.catalog)
    beyond = [deepest for _, deepest in start.settings.traffic_levels if deepest > most]
    if not beyond:
        return None
    return f"no model has an exit {beyond[0]}; the deepest one has exits 1 to {most}: name at most {most}"


def _admin_port(start: StartUp) -> str | None:
    address = start.settings.admin_address
    if address is None or not address[1] or address[1] != start.settings.port:
        return None
    return "the operators' address needs a port of its own, by which their requests are told apart; choose another one"


def _plain_peers(start: StartUp) -> str | None:
    address = start.settings.peers_address
    if start.settings.tls_certificate is None or address is None or address[1] != start.settings.port:
        return None
    return "replicas ask each other over plain HTTP, and this port speaks HTTPS; let a proxy end TLS, or leave out one"


def _largest_body(name: str) -> Callable[[StartUp], str | None]:
    def problem(start: StartUp) -> str | None:
        settings = start.settings
        if "max_body_bytes" not in settings.model_fields_set or settings.max_body_bytes <= getattr(settings, name):
            return None
        return "a file as large as the first is dropped before it is complete; lower the first, or raise the second"

    return problem


def _largest_image(start: StartUp) -> str | None:
    for model in start.catalog:
        needed = model.layout(1, start.settings.max_pixels, extra=True).total_bytes
        if needed > start.settings.shared_memory_bytes:
            return (
                f"the largest image and its maps by {model.name} need {needed:,} bytes; raise the first to that, or "
                "lower the second"
            )
    return None


def _smallest_images(start: StartUp) -> str | None:
    for model in start.catalog:
        needed = start.settings.max_open * model.layout(MULTIPLE, MULTIPLE, extra=True).total_bytes
        if needed > start.settings.shared_memory_bytes:
            return (
                f"so many images of {MULTIPLE}x{MULTIPLE} and their maps by {model.name} need {needed:,} bytes; raise "
                "the first to that, or lower the second"
            )
    return None


def _fits_memory(what: str, needed: Callable[[Settings], int]) -> Callable[[StartUp], str | None]:
    def problem(start: StartUp) -> str | None:
        most, asked = start.machine.memory_bytes, needed(start.settings)
        return None if asked <= most else f"{what} {asked:,} bytes, and there are {most:,} of memory; lower it"

    return problem


def _longest_message(start: StartUp) -> str | None:
    most = 2 * start.settings.max_body_bytes
    if start.settings.max_message_bytes <= most:
        return None
    return f"a WebSocket reads {most:,} bytes at most, twice the second; lower the first to that, or raise the second"


def _cores(name: str) -> Callable[[StartUp], str | None]:
    def problem(start: StartUp) -> str | None:
        most = THREADS_PER_CORE * start.machine.cores
        if getattr(start.settings, name) <= most:
            return None
        return f"there are {start.machine.cores} cores, for which {most} threads are the most; lower it"

    return problem


def _workers(start: StartUp) -> str | None:
    workers = start.settings.devices.count("cpu")
    if not 0 < start.settings.threads < workers:
        return None
    return f"each of the {workers} workers computes with a thread of its own; raise the first to {workers}, or set it 0"


def _executor_on_device(start: StartUp) -> str | None:
    kind = EXECUTORS.get(start.settings.executor)
    if kind is None:
        return None
    wrong = [name for name in start.settings.devices if name != AUTO and not kind.runs_on(name)]
    known = ", ".join(kind.devices)
    return f"the executor does not run on {wrong[0]}, but on {known}; change one of them" if wrong else None


def _executor_in_precision(start: StartUp) -> str | None:
    kind, precision = EXECUTORS.get(start.settings.executor), start.settings.precision
    if kind is None or precision == AUTO or precision in kind.precisions:
        return None
    return f"the executor computes in {' or '.join(kind.precisions)}; change one of them"


def _executor_of_family(start: StartUp) -> str | None:
    kind = EXECUTORS.get(start.settings.executor)
    wrong = [model for model in start.catalog if kind is not None and not kind.runs(model.config.family)]
    if not wrong:
        return None
    return f"the executor does not run {wrong[0].name}, of family {wrong[0].config.family}; use auto, or take it out"


def _scales(start: StartUp) -> str | None:
    without = [model.name for model in start.catalog if not os.path.lexists(model.directory / SCALES_FILE)]
    if start.settings.precision != "int8" or not without:
        return None
    return f"{without[0]} has no {SCALES_FILE}; make it with python -m models quantise, or use precision auto"


def _silent_log(start: StartUp) -> str | None:
    if not start.settings.access_log or start.settings.log_level in ("debug", "info"):
        return None
    return (
        "requests are logged with the level info, which is not shown; lower the second to info, or leave out the first"
    )


def _address(start: StartUp) -> str | None:
    try:
        start.machine.listen(start.settings.host, start.settings.port)
    except OSError as error:
        return f"no server can listen there ({error.strerror or error}); choose another port, or another host"
    return None


RULES = (
    SettingsRule(("default_deadline_ms", "max_deadline_ms"), _default_deadline, of_given=True),
    SettingsRule(("budget", "max_deadline_ms"), _budget_deadline),
    SettingsRule(("budget", "max_open"), _budget_traffic),
    SettingsRule(("budget", "max_pixels"), _budget_input),
    SettingsRule(("client_burst", "client_rate"), _burst),
    SettingsRule(("traffic_cap", "max_open"), _traffic_cap),
    SettingsRule(("traffic_cap", "models"), _capped_exit),
    SettingsRule(("admin", "port"), _admin_port),
    SettingsRule(("peers", "tls_certificate"), _plain_peers),
    SettingsRule(("max_body_bytes", "max_unfinished_bytes"), _largest_body("max_unfinished_bytes")),
    SettingsRule(
        ("max_body_bytes", "max_unfinished_bytes_per_address"), _largest_body("max_unfinished_bytes_per_address")
    ),
    SettingsRule(("shared_memory_bytes", "max_pixels"), _largest_image, of_given=True),
    SettingsRule(("shared_memory_bytes", "max_open"), _smallest_images, of_given=True),
    SettingsRule(("shared_memory_bytes",), _fits_memory("it takes", lambda settings: settings.shared_memory_bytes)),
    SettingsRule(("max_body_bytes",), _fits_memory("an image may take", lambda settings: settings.max_body_bytes)),
    SettingsRule(("spare_workers",), _fits_memory("they take", lambda settings: SPARE_BYTES * settings.spare_workers)),
    SettingsRule(("history",), _fits_memory("they take", lambda settings: RECORD_BYTES * settings.history)),
    SettingsRule(("max_message_bytes", "max_body_bytes"), _longest_message, of_given=True),
    SettingsRule(("threads",), _cores("threads")),
    SettingsRule(("codec_threads",), _cores("codec_threads")),
    SettingsRule(("threads", "device"), _workers),
    SettingsRule(("executor", "device"), _executor_on_device),
    SettingsRule(("executor", "precision"), _executor_in_precision),
    SettingsRule(("executor", "models"), _executor_of_family),
    SettingsRule(("precision", "models"), _scales),
    SettingsRule(("access_log", "log_level"), _silent_log),
    SettingsRule(("host", "port"), _address),
)
