"""Which executor runs a model on a device, and how it is made."""

import importlib.util
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from models.anytime import AnytimeModel
from models.checkpoint import load_directory
from models.directory import read_config
from models.executors.machine import usable
from models.executors.precision import Timer, choose_precision
from models.executors.registry import AUTO, CHOICES, EXECUTORS, REFERENCE, ExecutorKind, preferred
from models.executors.verify import ExecutorChoice, verification_command, verify
from models.network.network import Network
from models.quantisation import Scales

log = logging.getLogger(__name__)


def load(
    directory: Path, device: str = "cpu", executor: str = AUTO, threads: int = 0, precision: str = AUTO
) -> AnytimeModel:
    """The model of a directory on `device` (auto, cpu, cuda, cuda:N), run by `executor`; see `choose_executor`.

    `threads`: CPU threads to compute with; 0 for one on each core that the process may use. `precision`: see
    `build_fastest`. Raises ValueError if the device, the executor or the precision is not there, and the errors of
    `load_directory`.
    """
    device = resolve_device(device)
    name = choose_executor(directory, device, executor).executor
    make = partial(load_directory, directory)
    return build_fastest(make, device, name, threads, precision, directory=directory)[0]


def build_fastest(
    make: Callable[[], Network],
    device: str = "cpu",
    executor: str = AUTO,
    threads: int = 0,
    precision: str = AUTO,
    *,
    directory: Path | None,
    timer: Timer | None = None,
) -> tuple[AnytimeModel, str]:
    """The network that `make` returns, run by `executor` in `precision`, and the reason for the precision; empty if
    there was no choice. See `build`.

    `precision`: fp32; int8; or auto, which takes int8 if `directory`, the model's, holds scales and int8 is faster by
    `timer` (None: by measurement). Scales of other weights are not used by auto, and the log says so.

    Raises ValueError if the executor does not compute in the precision that is asked for, or there are no scales.
    """
    if precision == "int8":
        scales = None if directory is None else Scales.load(directory)
        if scales is None:
            raise ValueError(
                "precision int8 needs the scales of the model's features, and it has none; make them with python -m "
                "models quantise, or use precision auto"
            )
        return build(make(), device, executor, threads, scales), ""
    model = build(make(), device, executor, threads)
    if precision != AUTO:
        if model.precision != precision:
            raise ValueError(
                f"the {model.executor} executor computes in {model.precision}, not in {precision}; use precision auto "
                f"or executor {REFERENCE}"
            )
        return model, ""
    scales = None if directory is None else _usable_scales(directory)
    if scales is None:
        return model, ""
    kind = EXECUTORS[model.executor]
    if "int8" not in kind.precisions or not kind.preferred:
        return model, f"the {model.executor} executor does not save time in int8"
    int8 = build(make(), device, model.executor, threads, scales)
    choice = choose_precision(model, int8, timer)
    return (int8 if choice.precision == "int8" else model), choice.reason


def _usable_scales(directory: Path) -> Scales | None:
    try:
        return Scales.load(directory)
    except ValueError as error:
        log.warning("%s is computed in fp32: %s", directory.name, error)
        return None


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


def build(
    network: Network, device: str = "cpu", executor: str = AUTO, threads: int = 0, scales: Scales | None = None
) -> AnytimeModel:
    """Makes an executor for a network in memory, which belongs to the executor from then on. Arguments and errors are
    those of `load`. Nothing is verified: `auto` takes the preferred executor if it needs no verification and is built,
    and the reference otherwise.

    `scales`: compute in eight bits by them; None: in the executor's first precision.
    """
    device = resolve_device(device)
    if executor not in CHOICES:
        raise ValueError(f"no executor is called {executor!r}; there are {', '.join(CHOICES)}")
    threads = threads or usable()
    torch.set_num_threads(threads)
    name = executor
    if executor == AUTO:
        name = preferred(device, network.config.family, None if scales is None else "int8")
        name = REFERENCE if EXECUTORS[name].needs_verification else name
    kind = EXECUTORS[name]
    _check(name, kind, device, network.config.family)
    if scales is not None and "int8" not in kind.precisions:
        raise ValueError(f"the {name} executor does not compute in int8; use precision auto or executor {REFERENCE}")
    try:
        return kind.make(network, device, threads, scales)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; use executor {REFERENCE}") from error
    except OSError as error:
        if executor != AUTO:
            raise ValueError(str(error)) from error
        log.warning("running the reference executor, which saves no time where masks save work: %s", error)
        return EXECUTORS[REFERENCE].make(network, device, threads, scales)


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
