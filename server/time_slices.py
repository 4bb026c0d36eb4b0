"""The length of a thread's time slice: for how long the thread may run while other threads wait for its core.

A thread with a shorter time slice gets a core sooner when it wakes up (sched_setattr(2), since Linux 6.12).

The front end and the decoding processes often run for a fraction of a millisecond only, and a request waits for each
of these runs, while a worker computes on all cores. So they ask for short time slices. A thread or a child process
starts with the time slice of the thread that starts it.
"""

import ctypes
import os
import platform
import struct
import sys

SHORT_S = 0.0001
"""Seconds of a short time slice. Linux grants no shorter one."""
CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""For each processor architecture, the number of the system call sched_setattr and that of sched_getattr."""
ATTRIBUTES = struct.Struct("IIQiIQQQII")
"""The C structure sched_attr: size, policy, flags, niceness, priority, time slice in nanoseconds, and four fields that
only other policies use."""


def take_short_time_slices() -> None:
    """Give the calling thread short time slices. Does nothing where the system does not support that."""
    _set_time_slice(SHORT_S)


def take_usual_time_slices() -> None:
    """Give the calling thread time slices of the system's usual length again."""
    _set_time_slice(0.0)


def time_slice_s() -> float:
    """Returns the seconds of the calling thread's time slice; 0 where the system does not tell."""
    attributes = _attributes()
    return 0.0 if attributes is None else attributes[5] / 1e9


def _set_time_slice(seconds: float) -> None:
    """Sets the length of the calling thread's time slice; 0 means the usual length."""
    attributes = _attributes()
    if attributes and attributes[1] in (os.SCHED_OTHER, os.SCHED_BATCH):  # other policies use the field otherwise
        attributes[5] = round(1e9 * seconds)
        ctypes.CDLL(None).syscall(CALLS[platform.machine()][0], 0, ATTRIBUTES.pack(*attributes), 0)


def _attributes() -> list[int] | None:
    """Returns the scheduling attributes of the calling thread, in the order of `ATTRIBUTES`; None if the system does
    not tell."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return None
    found = ctypes.create_string_buffer(ATTRIBUTES.size)
    failed = ctypes.CDLL(None).syscall(CALLS[platform.machine()][1], 0, found, ATTRIBUTES.size, 0)
    return None if failed else list(ATTRIBUTES.unpack(found.raw))
