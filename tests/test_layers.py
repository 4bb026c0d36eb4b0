"""Imports run one way: server -> models, training -> executors -> network, and inside the server downwards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top down: a module of the server imports those after it only.
SERVER = [
    "__main__",
    "protocol",
    "app",
    "routes",
    "stream",
    "answers",
    "service",
    "engine",
    "job",
    "link",
    "worker",
    "loading",
    "scheduler",
    "ledger",
    "wire",
    "ask",
    "admission",
    "catalog",
    "settings",
    "metrics",
    "budget",
    "messages",
    "encoder",
    "memory",
    "errors",
]


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


@pytest.mark.parametrize("path", files("server"), ids=lambda path: path.name)
def test_the_server_imports_models_and_never_training(path: Path) -> None:
    assert not imports_any(path, "models.training", "clients", "adpc_client", "tests")


@pytest.mark.parametrize("path", files("server"), ids=lambda path: path.name)
def test_only_the_worker_imports_what_needs_torch(path: Path) -> None:
    if path.stem not in ("worker", "loading"):
        found = imports_any(path, "torch", "models", "server.worker", "server.loading")
        assert found <= {
            *("models", "models.configs", "models.images", "models.images.upright_rgb"),
            *(f"models.configs.{name}" for name in ("ModelConfig", "MAX_BOX", "MAX_SIDE")),
        }


def test_every_module_of_the_server_has_its_layer() -> None:
    assert {path.stem for path in files("server")} - {"__init__"} == set(SERVER)


@pytest.mark.parametrize("path", files("server"), ids=lambda path: path.name)
def test_inside_the_server_imports_run_downwards(path: Path) -> None:
    if path.stem == "__init__":
        return
    below = SERVER[SERVER.index(path.stem) + 1 :]
    modules = {name.split(".")[1] for name in imports_any(path, "server") if "." in name}
    assert modules <= set(below), f"{path.name} imports {modules - set(below)}"


@pytest.mark.parametrize("path", files("models"), ids=lambda path: str(path.relative_to(ROOT)))
def test_models_import_no_server_and_networks_no_executor(path: Path) -> None:
    assert not imports_any(path, "server", "clients", "adpc_client")
    place = path.relative_to(ROOT / "models").parts[0]
    if place == "executors":
        assert not imports_any(path, "models.training")
    elif path.stem in (
        "anytime",
        "configs",
        "hrnet",
        "adpc",
        "masked",
        "confidence",
        "preprocess",
        "postprocess",
        "quality",
    ):
        assert not imports_any(path, "models.training", "models.executors")


@pytest.mark.parametrize("path", files("clients"), ids=lambda path: path.name)
def test_clients_stand_alone(path: Path) -> None:
    assert not imports_any(path, "server", "models", "torch")
