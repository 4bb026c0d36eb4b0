"""CUDA graphs of one plan: a job is run once, so that all it needs is compiled, then recorded and from now on replayed.

Imports nothing of this project.
"""

import gc
from collections.abc import Callable
from typing import Any, Protocol

import torch

Replay = Callable[[], object]


class Recorder(Protocol):
    """Turns jobs, which always use the same tensors, into what is run in their place."""

    def record(self, job: Callable[[], object]) -> Replay:
        """Run `job` and record it. What a replay leaves in new tensors is in those that the recorded run made, which
        ran nothing: their contents are undefined before the first replay, and the job's earlier ones are no longer
        written."""


class CudaGraphs:
    """Graphs that share one memory pool, because they are never replayed at the same time.

    What one graph leaves for another must be kept referenced, or a graph recorded later is given its memory.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, job: Callable[[], object]) -> Replay:
        job()  # compiles kernels and measures cuDNN's, which must not happen while a graph is recorded
        return capture(job, self._pool).replay


def capture(job: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
    """`job` as a graph. Unlike torch.cuda.graph, this collects no garbage first, which would take most of the time, and
    none meanwhile, because a graph that dies then would spoil this one."""
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
