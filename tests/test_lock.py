"""The lock file: it knows an exact version of all that a set-up installs by name."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECTS = {"anytime-inference-server": ROOT / "pyproject.toml", "adpc-client": ROOT / "clients" / "pyproject.toml"}
FREE = {"triton"}
"""Each build of torch wants a version of its own."""


def declared(requirement: Requirement) -> Iterator[Requirement]:
    """What a set-up with one of our projects installs besides it."""
    project: dict[str, Any] = tomllib.loads(PROJECTS[requirement.name].read_text())["project"]
    extras = project.get("optional-dependencies", {})
    for text in [*project["dependencies"], *(text for extra in requirement.extras for text in extras[extra])]:
        found = Requirement(text)
        if found.name in PROJECTS:
            yield from declared(found)
        elif found.name not in FREE and (found.marker is None or found.marker.evaluate()):
            yield found


def test_every_dependency_is_locked_to_a_version_that_fits() -> None:
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    locked = {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in lines}
    assert all(str(line.specifier).startswith("==") and "+" not in str(line.specifier) for line in lines)
    wanted = [
        found
        for text in ("anytime-inference-server[dev,onnx,onnx-cpu]", "adpc-client[video]")
        for found in declared(Requirement(text))
    ]
    assert len(wanted) > 20
    misfits = {
        found.name for found in wanted if not found.specifier.contains(locked.get(canonicalize_name(found.name), "0"))
    }
    assert misfits == set()
