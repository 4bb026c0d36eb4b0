"""The lifeline: a worker ends with its front end, at once and whatever it is doing."""

import os
import select
import threading


def end_with(fd: int) -> None:
    """End this process as soon as the other end of the socket `fd` is closed, from a thread that only waits for that.

    The worker itself reads its socket between two steps only, and not at all while it loads.
    """
    hangs_up = select.poll()
    hangs_up.register(fd, 0)  # a hang-up is reported whatever is asked for

    def wait() -> None:
        hangs_up.poll()
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
