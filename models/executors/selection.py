"""Which executor runs a model on a device, and how it is made."""

import importlib.util
import logging
import re
from pathlib import Path

import torch

from models.anytime import AnytimeModel
from models.checkpoint import load_directory
from models.directory import read_config
from models.executors.machine import usable
from models.executors.registry import AUTO, CHOICES, EXECUTORS, REFERENCE, ExecutorKind, preferred
from models.executors.verify import ExecutorChoice, verification_command, verify
from models.network.network import Network

log = logging.getLogger(__name__)


def load(directory: Path, device: str = "cpu", executor: str = AUTO, threads: int = 0) -> AnytimeModel:
    """The model of a directory on `device` (auto, cpu, cuda, cuda:N), run by `executor`; see `choose_executor`.

    `threads`: CPU threads to compute with; 0 for one on each core that the process may use. Raises ValueError if the
    device or the executor is not there, and the errors of `load_directory`.
    """
    device = resolve_device(device)
    return build(load_directory(directory), device, choose_executor(directory, device, executor).executor, threads)


def choose_executor(directory: Path, device: str, executor: str) -> ExecutorChoice:
    """Which executor is to run the model of a directory, and why.

    An executor that needs verification is run beside the reference at the model's size, which takes minutes. `auto`
    then takes it if it is right and faster, and the reference otherwise. Other choices are returned unchecked; `build`
    checks them. Raises ValueError if an executor is asked for by name and verification finds it wrong.
    """
    device = resolve_device(device)
    if executor == AUTO and device == "cpu":
        return ExecutorChoice(executor, "")
    family = read_config(directory).family
    name = preferred(device, family) if executor == AUTO else executor
    kind = EXECUTORS.get(name)
    if kind is None or not kind.needs_verification or not kind.runs_on(device) or not kind.runs(family):
        return ExecutorChoice(name, "")
    if (missing := _missing(name, kind)) is not None:
        choice = ExecutorChoice(REFERENCE, missing, right=False)
    else:
        choice = verify(name, verification_command(directory, name, device))
    if executor == name:
        if not choice.right:
            raise ValueError(f"{choice.reason}; use executor {REFERENCE}")
        return ExecutorChoice(name, choice.reason)
    if choice.executor == REFERENCE:
        log.warning("running the reference executor, which saves no time where masks save work: %s", choice.reason)
    return choice


def build(network: Network, device: str = "cpu", executor: str = AUTO, threads: int = 0) -> AnytimeModel:
    """Makes an executor for a network in memory, which belongs to the executor from then on. Arguments and errors are
    those of `load`. Nothing is verified: `auto` takes the preferred executor if it needs no verification and is built,
    and the reference otherwise."""
    device = resolve_device(device)
    if executor not in CHOICES:
        raise ValueError(f"no executor is called {executor!r}; there are {', '.join(CHOICES)}")
    threads = threads or usable()
    torch.set_num_threads(threads)
    name = executor
    if executor == AUTO:
        name = preferred(device, network.config.family)
        name = REFERENCE if EXECUTORS[name].needs_verification else name
    kind = EXECUTORS[name]
    _check(name, kind, device, network.config.family)
    try:
        return kind.make(network, device, threads)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; use executor {REFERENCE}") from error
    except OSError as error:
        if executor != AUTO:
            raise ValueError(str(error)) from error
        log.warning("running the reference executor, which saves no time where masks save work: %s", error)
        return EXECUTORS[REFERENCE].make(network, device, threads)


def _check(name: str, kind: ExecutorKind, device: str, family: str) -> None:
    """Raises ValueError unless the executor runs on the device, and networks of the family."""
    if not kind.runs_on(device):
        others = ", ".join(f"device {other}" for other in kind.devices)
        raise ValueError(
            f"the {name} executor does not run on {device}; use {others} or executor {preferred(device, family)}"
        )
    if not kind.runs(family):
        known = ", ".join(kind.families or ())
        raise ValueError(
            f"the {name} executor runs networks of family {known}, not of {family}; use executor {REFERENCE}"
        )


def _missing(name: str, kind: ExecutorKind) -> str | None:
    """A sentence if the executor's package is not installed."""
    if kind.package is None or importlib.util.find_spec(kind.package[0]) is not None:
        return None
    return f"{name} is not installed; {kind.package[1]}"


def resolve_device(device: str) -> str:
    """'auto' -> cuda where there is one, else cpu. Raises ValueError if `device` is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"(cpu|cuda)(?::([0-9]+))?", device)
    if known is None:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N")
    if known[1] == "cpu":
        return "cpu"
    if not torch.cuda.is_available() or int(known[2] or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
