"""The native library through ctypes: its structures, and owners for what it allocates.

Imports numpy and no network. Layouts are those of native.h, field by field.
"""

import ctypes
import importlib.util
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_uint8, c_uint16, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.executors.cpu.sources import digest

LEVELS = 6
MARGIN = 5
CONVOLVE, WINOGRAD, INTERPOLATE, RESAMPLE = range(4)
ACTIVE, HALO, NEEDED, TILES_4, TILES_2, SINGLES = range(6)
SAME_ROW, NEIGHBOURS, PIXELS = range(3)

Floats = NDArray[np.float32]


class Level(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("height", "width", "pitch", "active", "needed")),
        *((name, c_int32) for name in ("tiles_4", "tiles_2", "singles")),
        ("map", POINTER(c_int32)),
        ("yx", POINTER(c_uint16)),
        ("tile_4", POINTER(c_uint16)),
        ("tile_2", POINTER(c_uint16)),
        ("single", POINTER(c_int32)),
        ("kept", POINTER(c_uint8)),
        ("window", POINTER(c_int32)),
        ("neighbour", POINTER(c_int32)),
    )


class _Geometry(Structure):
    _fields_ = (("level", Level * LEVELS),)


class Prices(Structure):
    _fields_ = tuple((name, c_float) for name in ("four", "two", "first_four", "first_two"))


class Matrix(Structure):
    _fields_ = tuple((name, c_int32) for name in ("level", "holds", "stride", "feature", "scratch"))


class Taps(Structure):
    _fields_ = (("y", c_void_p), ("x", c_void_p), ("weight_y", c_void_p), ("weight_x", c_void_p), ("taps", c_int32))


class Op(Structure):
    _fields_ = (
        ("kind", c_int32),
        *((name, c_int32) for name in ("source", "target", "residual", "kept")),
        *((name, c_int32) for name in ("source_level", "previous", "lookup", "step", "taps", "resampling")),
        *((name, c_int32) for name in ("in_", "out", "column", "scatter", "relu")),
        *((name, c_void_p) for name in ("weights", "bias", "shift")),
    )


class Job(Structure):
    _fields_ = tuple((name, c_int32) for name in ("level", "rows", "first_op", "ops", "block", "groups", "cost"))


class Pass(Structure):
    _fields_ = tuple((name, c_int32) for name in ("first_job", "jobs"))


class Program(Structure):
    _fields_ = (
        ("passes", POINTER(Pass)),
        ("jobs", POINTER(Job)),
        ("ops", POINTER(Op)),
        ("matrices", POINTER(Matrix)),
        ("pass_count", c_int32),
        ("matrix_count", c_int32),
        ("scratch_floats", c_int64),
    )


class Context(Structure):
    _fields_ = (
        ("now", POINTER(_Geometry)),
        ("previous", POINTER(_Geometry)),
        ("features", POINTER(c_void_p)),
        ("taps", POINTER(Taps)),
        ("slots", c_void_p),
    )


class Rows(Structure):
    _fields_ = tuple((name, c_int32) for name in ("height", "width", "channels"))


class Neighbour(Structure):
    _fields_ = (("dy", c_int32), ("dx", c_int32), ("weight", c_float), ("slope", c_float))


@cache
def library() -> ctypes.CDLL:
    """Raises OSError if the native code was not built on this machine, or from other sources than lie beside it."""
    spec = importlib.util.find_spec("models.executors.cpu._native")
    if spec is None or spec.origin is None:
        raise OSError("the native kernels are not built; install a C++17 compiler, then run `make native`")
    lib = ctypes.CDLL(spec.origin)
    now = digest(Path(__file__).parent / "native")
    if hasattr(lib, "sources"):
        lib.sources.restype = ctypes.c_char_p
    if now and (not hasattr(lib, "sources") or lib.sources() != now.encode()):
        raise OSError("the native kernels were built from other sources than these; run `make native`")
    for name, result, arguments in (
        (
            "geometry_create",
            POINTER(_Geometry),
            (c_void_p, c_int32, c_int32, c_int32, c_void_p, POINTER(Prices), c_int32),
        ),
        (
            "fill_lines",
            c_int32,
            (
                *(c_int32, c_void_p, c_void_p, c_void_p, POINTER(Rows), POINTER(Neighbour), c_int32),
                *(c_void_p, c_int64, c_int64, c_int32, POINTER(c_double)),
            ),
        ),
        ("geometry_free", None, (c_void_p,)),
        ("kernels_find", c_void_p, (ctypes.c_char_p,)),
        ("kernels_name", ctypes.c_char_p, (c_void_p,)),
        ("kernels_lanes", c_int32, (c_void_p,)),
        ("kernels_panel", c_int32, (c_void_p,)),
        ("active_at", None, (c_void_p, c_void_p, *[c_int32] * 5, c_float, c_void_p, c_void_p)),
        ("labels_of", None, (c_void_p, c_void_p, *[c_int32] * 4, c_void_p, c_void_p, c_int32, c_int32)),
        (
            "normalise",
            None,
            (*(c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_void_p), *(c_void_p, c_int32, c_int32, c_int32)),
        ),
        ("layout", None, (POINTER(c_int32),)),
        ("pool_create", c_void_p, (c_int32,)),
        ("pool_free", None, (c_void_p,)),
        ("program_floats", c_int64, (c_void_p, POINTER(Program), POINTER(Context), c_int32)),
        ("program_run", c_int32, (c_void_p, c_void_p, POINTER(Program), POINTER(Context), c_int32, c_void_p)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
