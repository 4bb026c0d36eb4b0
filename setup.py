"""Builds the native kernels (pyproject.toml holds the rest). Without a C++17 compiler the install goes on without
them, and the server runs the reference executor and says so.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup

PACKAGE = Path("models/executors/cpu")
NATIVE = PACKAGE / "native"
SOURCES = runpy.run_path(str(PACKAGE / "sources.py"))["digest"](NATIVE)

setup(
    ext_modules=[
        Extension(
            "models.executors.cpu._native",
            sources=sorted(str(path) for path in NATIVE.glob("*.cpp")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            define_macros=[("SOURCES", f'"{SOURCES}"')],
            # Not -march=native: every instruction set is compiled, and the machine's best is chosen when it runs.
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-pthread", "-g0"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
