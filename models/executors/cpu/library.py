"""The native library: found, checked against the sources beside it, and its functions declared for ctypes.

The C++ files in native/ describe what each function takes and returns.
"""

import ctypes
import importlib.util
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.sources import digest
from models.executors.cpu.structures import (
    NativeContext,
    NativeFeatureShape,
    NativeGeometry,
    NativeProgram,
    NativeStencilTap,
    NativeTileCosts,
)

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

FUNCTIONS: dict[str, tuple[object, ...]] = {  # result, arguments
    "kernels_find": (c_void_p, c_char_p),
    "kernels_name": (c_char_p, c_void_p),
    "kernels_lanes": (c_int32, c_void_p),
    "kernels_panel_vectors": (c_int32, c_void_p),
    "kernels_dot_parts": (c_int32, c_void_p),
    "kernels_dot_signed": (c_int32, c_void_p),
    "kernels_dot_tail": (c_int32, c_void_p),
    "thread_pool_create": (c_void_p, c_int32),
    "thread_pool_free": (None, c_void_p),
    "geometry_begin": (
        *(POINTER(NativeGeometry), c_void_p, c_int32, c_int32),
        *(c_int32, c_void_p, POINTER(NativeTileCosts), c_int32),
    ),
    "geometry_build": (c_int32, POINTER(NativeGeometry), c_double),
    "geometry_free": (None, c_void_p),
    "program_workspace_bytes": (c_int64, c_void_p, POINTER(NativeProgram), POINTER(NativeContext), c_int32),
    "program_begin": (
        *(c_void_p, c_void_p, c_void_p, POINTER(NativeProgram), POINTER(NativeContext), c_int32),
        *(c_void_p, c_void_p),
    ),
    "program_run": (c_int32, c_void_p, c_void_p, c_double),
    "program_free": (None, c_void_p),
    "normalise": (
        *(None, c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_void_p),
        *(c_void_p, c_int32, c_int32, c_int32),
    ),
    "label_map": (None, c_void_p, c_void_p, *[c_int32] * 4, c_void_p, c_void_p, *[c_int32] * 4),
    "update_mask": (None, c_void_p, c_void_p, *[c_int32] * 5, c_float, c_void_p, c_void_p),
    "fill_lines": (
        *(c_int32, c_int32, c_void_p, c_void_p, c_void_p, POINTER(NativeFeatureShape)),
        *(POINTER(NativeStencilTap), c_int32, c_void_p, c_int64, c_int64, c_int32, POINTER(c_double)),
    ),
    "structure_sizes": (None, POINTER(c_int32)),
    "source_digest": (c_char_p,),
}


@cache
def library() -> ctypes.CDLL:
    """The loaded library. Raises OSError if it is not built, or was built from other sources than lie beside it."""
    spec = importlib.util.find_spec("models.executors.cpu._native")
    if spec is None or spec.origin is None:
        raise OSError("the native kernels are not built; install a C++17 compiler, then run `make native`")
    lib = ctypes.CDLL(spec.origin)
    expected = digest(Path(__file__).parent / "native")
    if hasattr(lib, "source_digest"):
        lib.source_digest.restype = c_char_p
    if expected and (not hasattr(lib, "source_digest") or lib.source_digest() != expected.encode()):
        raise OSError("the native kernels were built from other sources than these; run `make native`")
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
