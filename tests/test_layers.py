"""Imports run one way: server -> models, training -> executors -> network, and inside the server downwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top down: a module of the server imports those after it only.
SERVER = [
    # the program
    "server.__main__",
    "server.health",
    "server.settings_table",
    "server.app",
    "server.access.command",
    "server.rules",
    # the simulator of the rest
    "server.simulation.command",
    "server.simulation.report",
    "server.simulation.fleet",
    "server.simulation.experiment",
    "server.simulation.bound",
    "server.simulation.served",
    "server.simulation.baselines",
    "server.simulation.device",
    "server.simulation.workload",
    "server.simulation.traffic",
    # what faces clients
    "server.access.guard",
    "server.access.headers",
    "server.protocols.tls",
    "server.protocols.connection",
    "server.protocols.websocket",
    "server.protocols.message",
    "server.protocols.budget",
    "server.protocols.open_inference.routes",
    "server.protocols.open_inference.bodies",
    "server.protocols.open_inference.models",
    "server.protocols.open_inference.requests",
    "server.protocols.open_inference.tensors",
    "server.protocols.lookup",
    "server.protocols.http",
    "server.protocols.form",
    "server.protocols.hop",
    "server.protocols.stream",
    "server.protocols.events",
    "server.protocols.flow",
    "server.protocols.head",
    "server.protocols.gate",
    "server.protocols.peers",
    "server.protocols.pieces",
    "server.protocols.turns",
    "server.protocols.complaints",
    "server.protocols.replies",
    "server.protocols.exits",
    "server.protocols.maps",
    "server.protocols.rle",
    "server.protocols.bodies",
    "server.protocols.descriptions",
    "server.protocols.encoder",
    "server.descriptors",
    # a request, from its first byte to its last
    "server.requests.service",
    "server.requests.tracing",
    "server.requests.spans",
    "server.requests.request_log",
    "server.requests.statistics",
    "server.requests.registry",
    "server.requests.record",
    "server.requests.history",
    "server.requests.region",
    "server.requests.sockets",
    "server.requests.codec",
    "server.requests.reserve",
    "server.requests.admission",
    "server.requests.body",
    "server.requests.sizes",
    "server.requests.present_budgets",
    "server.requests.budget_file",
    "server.requests.policies",
    "server.access.keys",
    "server.access.bucket",
    "server.protocols.options",
    "server.protocols.values",
    # images: the processes that decode them, and what those run
    "server.decoding.lane",
    "server.decoding.process",
    "server.decoding.__main__",
    "server.decoding.decode",
    "server.decoding.structure",
    "server.decoding.header",
    "server.decoding.size",
    "server.decoding.messages",
    # the async face of the worker
    "server.engine.engine",
    "server.engine.job",
    "server.engine.pool",
    "server.engine.place",
    "server.engine.routing",
    "server.engine.device_metrics",
    "server.engine.device",
    "server.engine.supervisor",
    "server.engine.worker_process",
    "server.engine.usage",
    "server.engine.channel",
    "server.engine.watchdog",
    # the worker, which alone may import torch, and which the front end does not import
    "server.worker.__main__",
    "server.worker.lifeline",
    "server.worker.process",
    "server.worker.loading",
    "server.worker.batches",
    "server.worker.progress",
    "server.catalog",
    # who gets the device when: pure
    "server.scheduling.backlog",
    "server.scheduling.scheduler",
    "server.scheduling.jobs",
    "server.scheduling.gains",
    "server.scheduling.reservation",
    "server.scheduling.fairness",
    "server.scheduling.pace",
    # what they share
    "server.requests.budget",
    "server.metrics",
    "server.settings",
    "server.setting_text",
    "server.engine.framing",
    "server.engine.messages",
    "server.engine.shared_memory",
    "server.scheduling.expected",
    "server.scheduling.costs",
    "server.scheduling.quantile",
    "server.access.identity",
    "server.access.origins",
    "server.access.proxies",
    "server.errors",
    "server.trace_context",
    "server.logs",
    "server.garbage",
    "server.time_slices",
]

WITHOUT_TORCH = (
    "models.directory",
    "models.executors.registry",
    "models.gains",
    "models.imaging.geometry",
    "models.imaging.images",
    "models.machine",
    "models.network.configs",
    "models.quantisation",
    "models.reading",
    "models.validation",
    "server.worker.lifeline",
)
"""What the front end and its decoding processes may import of models/ and of the worker."""


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from a import b` counts as `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "build" not in path.parts]


def imports_any(path: Path, *packages: str) -> set[str]:
    return {name for name in imported(path) if any(name == top or name.startswith(f"{top}.") for top in packages)}


def dotted(path: Path) -> str:
    """`server/app.py` -> `server.app`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def modules(folder: str) -> list[str]:
    return [dotted(path) for path in files(folder) if path.stem != "__init__"]


def path_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


@pytest.mark.parametrize("module", modules("server"))
def test_the_server_imports_what_it_serves_and_no_more(module: str) -> None:
    above = ("models.training", "models.evaluation", "models.bench", "models.data", "models.commands")
    assert not imports_any(path_of(module), *above, "clients", "adpc_client", "tests")


@pytest.mark.parametrize("module", modules("server"))
def test_only_the_worker_imports_what_needs_torch(module: str) -> None:
    if not module.startswith("server.worker."):
        found = imports_any(path_of(module), "torch", "models", "server.worker")
        strangers = {name for name in found if not any(f"{name}.".startswith(f"{known}.") for known in WITHOUT_TORCH)}
        assert strangers <= {"models"}


def test_what_the_front_end_imports_of_models_needs_no_torch() -> None:
    code = f"import sys, {', '.join(WITHOUT_TORCH)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_decoding_process_imports_little() -> None:
    code = (
        "import server.decoding.__main__, sys; assert not {'torch', 'fastapi', 'pydantic', 'asyncio'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_module_of_the_server_has_its_layer() -> None:
    assert set(modules("server")) == set(SERVER)


@pytest.mark.parametrize("module", modules("server"))
def test_inside_the_server_imports_run_downwards(module: str) -> None:
    below = set(SERVER[SERVER.index(module) + 1 :])
    found = imports_any(path_of(module), *SERVER) & set(SERVER)
    assert found <= below, f"{module} imports {found - below}"


# What a folder of models/ must not import; commands are on top and may import all of it.
ABOVE = {
    "network": ("executors", "imaging.postprocess", "data", "evaluation", "training", "bench", "commands"),
    "imaging": ("executors", "data", "evaluation", "training", "bench", "commands"),
    "data": ("executors", "evaluation", "training", "bench", "commands"),
    "executors": ("data", "evaluation", "training", "bench", "commands"),
    "evaluation": ("training", "bench", "commands"),
    "training": ("bench", "commands"),
    "bench": ("training",),
}


@pytest.mark.parametrize("module", modules("models"))
def test_imports_of_models_run_one_way(module: str) -> None:
    assert not imports_any(path_of(module), "server", "clients", "adpc_client")
    above = ABOVE.get(module.split(".")[1], ())
    assert not imports_any(path_of(module), *(f"models.{name}" for name in above))


@pytest.mark.parametrize("path", files("clients"), ids=lambda path: path.name)
def test_clients_stand_alone(path: Path) -> None:
    assert not imports_any(path, "server", "models", "torch")
