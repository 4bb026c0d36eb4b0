"""The structures and constants of native/structures.h for ctypes, field by field; their meaning is explained there.

A structure has its C++ name with `Native` in front.
"""

from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_uint8, c_uint16, c_void_p
from enum import IntEnum

LEVELS = 6
MARGIN = 5

OpKind = IntEnum("OpKind", "CONVOLVE WINOGRAD CONVOLVE_U8 INTERPOLATE RESAMPLE COPY", start=0)
LoopDomain = IntEnum("LoopDomain", "ACTIVE HALO NEEDED TILES_4X4 TILES_2X2 SINGLES", start=0)
RowDomain = IntEnum("RowDomain", "NEEDED ACTIVE ALL_POSITIONS PADDED_PIXELS", start=0)
Addressing = IntEnum("Addressing", "SAME_ROW THROUGH_MAP PADDED_IMAGE", start=0)


class NativeLevel(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("height", "width", "map_pitch", "active_rows", "needed_rows")),
        *((name, c_int32) for name in ("tiles_4x4", "tiles_2x2", "singles")),
        ("map", POINTER(c_int32)),
        ("yx", POINTER(c_uint16)),
        ("tile_4x4_yx", POINTER(c_uint16)),
        ("tile_2x2_yx", POINTER(c_uint16)),
        ("single_rows", POINTER(c_int32)),
        ("read_by_halo", POINTER(c_uint8)),
        ("window_begin", POINTER(c_int32)),
        ("neighbours", POINTER(c_int32)),
    )


class NativeGeometry(Structure):
    _fields_ = (("level", NativeLevel * LEVELS),)


class NativeTileCosts(Structure):
    _fields_ = tuple((name, c_float) for name in ("tile_4x4", "tile_2x2", "first_tile_4x4", "first_tile_2x2"))


class NativeMatrix(Structure):
    _fields_ = tuple((name, c_int32) for name in ("level", "row_domain", "row_bytes", "feature", "scratch"))


class NativeResamplingTaps(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "weight_y", "weight_x")),
        ("taps_per_axis", c_int32),
    )


class NativeOp(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("kind", "source", "target", "residual", "pre_activation")),
        *((name, c_int32) for name in ("source_level", "from_previous", "addressing", "stride", "taps")),
        *((name, c_int32) for name in ("resampling", "parts")),
        *((name, c_int32) for name in ("in_channels", "out_channels", "target_column", "scatter", "relu")),
        *((name, c_float) for name in ("source_scale", "target_scale", "residual_scale")),
        *((name, c_void_p) for name in ("weights", "bias", "shift", "scales", "first_sums")),
    )


class NativeRowLoop(Structure):
    _fields_ = tuple(
        (name, c_int32) for name in ("level", "domain", "first_op", "op_count", "block_rows", "groups", "cost")
    )


class NativePhase(Structure):
    _fields_ = tuple((name, c_int32) for name in ("first_loop", "loop_count"))


class NativeProgram(Structure):
    _fields_ = (
        ("phases", POINTER(NativePhase)),
        ("loops", POINTER(NativeRowLoop)),
        ("ops", POINTER(NativeOp)),
        ("matrices", POINTER(NativeMatrix)),
        ("phase_count", c_int32),
        ("matrix_count", c_int32),
        ("scratch_bytes", c_int64),
    )


class NativeContext(Structure):
    _fields_ = (
        ("geometry", POINTER(NativeGeometry)),
        ("previous", POINTER(NativeGeometry)),
        ("features", POINTER(c_void_p)),
        ("resamplings", POINTER(NativeResamplingTaps)),
        ("slots", c_void_p),
    )


class NativeFeatureShape(Structure):
    """See native/fill.cpp."""

    _fields_ = tuple((name, c_int32) for name in ("height", "width", "channels"))


class NativeStencilTap(Structure):
    """See native/fill.cpp."""

    _fields_ = (("dy", c_int32), ("dx", c_int32), ("weight", c_float), ("derivative", c_float))
