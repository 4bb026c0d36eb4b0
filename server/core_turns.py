"""How long a thread's turns on a core are. The shorter they are, the sooner the thread runs when it wakes up
(sched_setattr(2), since Linux 6.12).

The front end and the decoders often run for a fraction of a millisecond, and requests wait for that, while a worker
computes on all cores. Threads and child processes begin with the turns of the thread that starts them.
"""

import ctypes
import os
import platform
import struct
import sys

SHORT_S = 0.0001
"""The shortest turns that Linux grants."""
CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""The numbers of the system calls sched_setattr and sched_getattr."""
ATTRIBUTES = struct.Struct("IIQiIQQQII")
"""struct sched_attr: size, policy, flags, niceness, priority, turn in nanoseconds, and what other policies need."""


def take_short_turns() -> None:
    """Take short turns from now on, in this thread. Does nothing where the system cannot do that."""
    _take_turns(SHORT_S)


def take_usual_turns() -> None:
    """Take turns of the system's own length again."""
    _take_turns(0.0)


def turn_s() -> float:
    """The seconds of this thread's turns; 0 where the system does not tell."""
    attributes = _attributes()
    return 0.0 if attributes is None else attributes[5] / 1e9


def _take_turns(seconds: float) -> None:
    attributes = _attributes()
    if attributes and attributes[1] in (os.SCHED_OTHER, os.SCHED_BATCH):  # elsewhere the value means something else
        attributes[5] = round(1e9 * seconds)
        ctypes.CDLL(None).syscall(CALLS[platform.machine()][0], 0, ATTRIBUTES.pack(*attributes), 0)


def _attributes() -> list[int] | None:
    """What the system's scheduler knows of this thread, in the order of `ATTRIBUTES`."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return None
    found = ctypes.create_string_buffer(ATTRIBUTES.size)
    failed = ctypes.CDLL(None).syscall(CALLS[platform.machine()][1], 0, found, ATTRIBUTES.size, 0)
    return None if failed else list(ATTRIBUTES.unpack(found.raw))
