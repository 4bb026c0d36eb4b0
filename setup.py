"""Builds the native kernels; pyproject.toml holds the rest.

Without a C++17 compiler, or if it fails, the install goes on without kernels; the server then runs the reference
executor and logs why.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup

PACKAGE = Path("models/executors/cpu")
NATIVE = PACKAGE / "native"
SOURCE_DIGEST = runpy.run_path(str(PACKAGE / "sources.py"))["digest"](NATIVE)

setup(
    ext_modules=[
        Extension(
            "models.executors.cpu._native",
            sources=sorted(str(path) for path in NATIVE.glob("*.cpp")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            define_macros=[("SOURCE_DIGEST", f'"{SOURCE_DIGEST}"')],
            # No -march=native: the library holds kernels for every instruction set and chooses when it is loaded.
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-pthread", "-g0"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
