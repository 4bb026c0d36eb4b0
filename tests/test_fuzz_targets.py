"""The targets of tests/attack/fuzz.py, on their own examples, so that they follow the code that they call."""

import importlib.util
import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
from acceptance import ROOT

from server.errors import ServerError


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """The program, without its fuzzer."""
    fuzzer = ModuleType("atheris")
    fuzzer.instrument_imports = lambda **_: nullcontext()  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "tests" / "attack" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "atheris", fuzzer)
        spec.loader.exec_module(module)
    return module


# Of a form that is cut off, Starlette leaves the file, which is in memory, to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["images", "forms", "messages"])
def test_examples_are_taken_and_what_is_cut_off_is_refused_in_a_sentence(fuzz: ModuleType, name: str) -> None:
    attempt, examples = fuzz.TARGETS[name]
    taken, refused = 0, 0
    for example in examples():
        for size in (len(example), len(example) // 2, 0):
            try:
                attempt(example[:size])
                taken += 1
            except ServerError as error:
                assert str(error)
                refused += 1
    assert taken > 0 and refused > 0


def test_every_target_is_tried(fuzz: ModuleType) -> None:
    assert set(fuzz.TARGETS) == {"images", "forms", "messages"}
