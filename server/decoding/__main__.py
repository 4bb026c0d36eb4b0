"""A decoding process: it decodes one image file after the other. The front end starts `python -m server.decoding`.

It shares one block of memory with the front end, which writes a file there and reads the pixels. It opens no file, sees
no image but those that it decodes, and is ended if one takes more CPU or memory than an image should.
"""

import contextlib
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from mmap import mmap
from pathlib import Path

import numpy as np

from server.decoding.decode import decode
from server.decoding.messages import DecoderAnswer, DecoderPlan
from server.errors import ServerError, unexpected
from server.time_slices import take_usual_time_slices
from server.worker.lifeline import end_with

EXPENDABLE = 700
"""The process's oom_score_adj (proc(5)): when memory runs out, the kernel kills this process before a worker or the
front end."""
BYTES_PER_PX = 24
"""Memory for each pixel of the largest image: what a WebP takes, with its canvas, its frame and its copies."""
SPARE_BYTES = 64 * 2**20


def main(fd: int, memory_fd: int, plan: DecoderPlan) -> int:
    """Decode for the front end over the socket `fd`, in the memory `memory_fd`, until the front end is gone."""
    # Ctrl-C and a supervisor's SIGTERM reach the whole process group; the front end still needs its images.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with(fd)
    with contextlib.suppress(OSError):  # elsewhere than on Linux
        Path("/proc/self/oom_score_adj").write_text(str(EXPENDABLE))
    os.nice(plan.nice)
    if plan.nice:
        take_usual_time_slices()
    memory = mmap(memory_fd, plan.memory_bytes)
    os.close(memory_fd)
    confine(plan)
    with contextlib.suppress(ConnectionError), socket.socket(fileno=fd) as connection:
        serve(connection, memory, plan, limited_cpu)
    return 0


def confine(plan: DecoderPlan) -> None:
    """From now on this process opens nothing, writes no file, and takes no more memory than an image needs."""
    most = 2 * plan.max_body_bytes + BYTES_PER_PX * plan.max_pixels + SPARE_BYTES
    with contextlib.suppress(OSError):  # elsewhere than on Linux
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + most,) * 2)
    # With 0 it could not even wait for the socket.
    for limit, value in ((resource.RLIMIT_NOFILE, 1), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))


@contextmanager
def limited_cpu(seconds: float) -> Iterator[None]:
    """The block may take `seconds` of CPU. After that, the system ends this process with SIGPROF."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def serve(
    connection: socket.socket,
    memory: mmap,
    plan: DecoderPlan,
    limited: Callable[[float], AbstractContextManager[object]],
) -> None:
    """Say hello, then decode what lies in `memory` whenever its size in bytes comes, and answer. Returns when the front
    end is gone. `limited`: encloses each decoding, and is called with the CPU seconds that it may take."""
    connection.sendall(DecoderAnswer().to_line())
    for line in connection.makefile("rb"):
        body = memory[: int(line)]
        with limited(plan.max_decode_s):
            answer = answered(body, memory, plan)
        connection.sendall(answer.to_line())


def answered(body: bytes, memory: mmap, plan: DecoderPlan) -> DecoderAnswer:
    """Decode a file, put its pixels into the memory, and say what became of it."""
    try:
        pixels = decode(body, plan.max_pixels, np.frombuffer(memory, np.uint8, offset=plan.pixels_at))
    except ServerError as error:
        return DecoderAnswer(error=error)
    except Exception as error:  # a fault: the log has the details, and the next file is not to blame
        traceback.print_exc()
        return DecoderAnswer(error=unexpected(error))
    return DecoderAnswer(*pixels.shape[:2])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), DecoderPlan.from_text(sys.argv[3])))
