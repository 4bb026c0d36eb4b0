"""The lifeline: a worker ends with its front end, at once and whatever it is doing."""

import ctypes
import os
import select
import signal
import threading

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that the kernel sends this process once the thread that started it has ended."""


def end_with(fd: int) -> None:
    """End this process as soon as the other end of the socket `fd` is closed.

    The worker itself reads its socket between two steps only, and not at all while it loads. A thread that only waits
    for the hang-up needs the interpreter's lock to act, which native code may hold for seconds; on Linux the kernel
    ends the process without it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    hangs_up = select.poll()
    hangs_up.register(fd, 0)  # a hang-up is reported whatever is asked for

    def wait() -> None:
        hangs_up.poll()
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
