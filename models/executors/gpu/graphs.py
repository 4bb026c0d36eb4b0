"""CUDA graphs: a job is run once, so that all it needs is compiled, then recorded, and from then on replayed."""

import gc
from collections.abc import Callable
from typing import Any, Protocol

import torch

Replay = Callable[[], object]


class Recorder(Protocol):
    """Turns jobs, which always use the same tensors, into replays."""

    def record(self, job: Callable[[], object]) -> Replay:
        """Records `job` and returns what runs it again.

        The recorded run of the job makes new tensors, into which replays write. Until the first replay their contents
        are undefined, because recording executes nothing. Tensors that earlier runs of the job made are not written.
        """


class CudaGraphs:
    """Records graphs that share one memory pool, because no two of them are replayed at the same time.

    What one graph leaves for another must be kept referenced: a graph that is recorded later may be given memory that
    nobody refers to.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, job: Callable[[], object]) -> Replay:
        job()  # compiles kernels and lets cuDNN measure its own, neither of which may happen during a recording
        return capture(job, self._pool).replay


def capture(job: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
    """`job` as a graph.

    Unlike torch.cuda.graph, this collects no garbage before, which would take most of the time, and none during the
    recording, because a graph that is destroyed meanwhile would spoil this one.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                job()
            finally:
                graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
    return graph
