"""One word for one thing: class names are unique and retired words stay away. Modules are small and named by a noun."""

import ast
import re
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("server", "models", "clients")
MAX_LINES = 320

TWINS = {"Exit", "NoExitError", "NotFoundError", "TooLargeError"}
"""Public classes of the client that have the meaning of a class of `server` or `models`, which it cannot import."""

RETIRED = {
    "conversation": "stream state",
    "doubt": "uncertainty",
    "ledger": "registry",
    "meet": "barrier",
    "prices": "tile costs",
    "proof": "verify",
    "settle": "update the mask",
    "settled": "inactive",
    "shot": "planned request",
    "sink": "epilogue",
}
"""Words that no identifier may contain, each with the word that replaces it."""

RETIRED_CLASSES = {
    "Ask": "RequestOptions",
    "Entry": "RequestRecord",
    "Link": "WorkerProcess",
    "Order": "JobSpec",
    "Submit": "JobSpec",
    "Picture": "a name that says which picture",
}
"""Retired names of classes. Their words are fine as a verb or a variable."""

NAMELESS = {"common", "helpers", "misc", "tools", "util", "utils"}


def sources(*suffixes: str) -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return sorted(path for path in found if "build" not in path.parts)


PYTHON = sources(".py")
SOURCES = sources(".py", ".cpp", ".h", ".js")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def identifiers(path: Path) -> set[str]:
    """Every identifier in a source file, without its comments and strings."""
    if path.suffix == ".py":
        with path.open("rb") as file:
            return {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
    code = re.sub(
        r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", " ", path.read_text(), flags=re.DOTALL
    )
    return set(re.findall(r"[A-Za-z_]\w*", code))


def words(identifier: str) -> set[str]:
    """`WorkerProcess`, `worker_process` -> {"worker", "process"}."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


@cache
def classes() -> dict[str, list[str]]:
    """The modules that define each class name."""
    found = defaultdict(list)
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(short(path))
    return found


def test_class_names_are_unique() -> None:
    found = classes()
    shared = {name: modules for name, modules in found.items() if len(modules) > 1 + (name in TWINS)}
    assert shared == {}


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_twin_stands_once_in_the_client_and_once_elsewhere(name: str) -> None:
    assert sorted(module.startswith("clients/") for module in classes()[name]) == [False, True]


def test_retired_class_names_stay_away() -> None:
    found = classes()
    assert {name: RETIRED_CLASSES[name] for name in found if name in RETIRED_CLASSES} == {}


def test_identifiers_use_the_words_of_the_glossary() -> None:
    retired = {
        f"{short(path)}: {name}": f"say {RETIRED[word]} for {word}"
        for path in SOURCES
        for name in identifiers(path)
        for word in words(name) & RETIRED.keys()
    }
    assert retired == {}


def test_modules_are_small() -> None:
    lines = {short(path): path.read_text().count("\n") for path in SOURCES}
    assert {name: count for name, count in lines.items() if count >= MAX_LINES} == {}


def test_modules_are_named_by_a_noun() -> None:
    assert [short(path) for path in SOURCES if words(path.stem) & NAMELESS] == []


@pytest.mark.parametrize(
    ("identifier", "parts"),
    [("WorkerProcess", {"worker", "process"}), ("_late_ms", {"late", "ms"}), ("HTTPError", {"http", "error"})],
)
def test_identifiers_are_split_into_words(identifier: str, parts: set[str]) -> None:
    assert words(identifier) == parts
