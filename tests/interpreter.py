"""Triton's interpreter without what takes most of its time."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest


class PatchedForGood:
    """What the interpreter gets for the changes that a kernel makes to Triton's language, which it takes back after."""

    def restore(self) -> None:
        """The next kernel would make the same changes again."""


@contextmanager
def interpreting() -> Iterator[None]:
    """Kernels are interpreted faster inside the block. Triton must not have been imported to compile any."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch_language: Callable[[Any], Any] = interpreter._patch_lang
    scopes: dict[str, Any] = {}

    def patch_once(function: Any) -> PatchedForGood:
        """Patching the language for each kernel and each function that it calls takes a third of the time."""
        if function.__module__ not in scopes:
            scopes[function.__module__] = patch_language(function)
        return PatchedForGood()

    # Checking every sum of integers for overflow takes half of the time.
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.interpreter_builder, "options", options)
        patch.setattr(interpreter, "_patch_lang", patch_once)
        yield
    for scope in reversed(scopes.values()):
        scope.restore()
