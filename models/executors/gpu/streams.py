"""CUDA streams on which independent jobs of one step run side by side."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")


class SideStreams:
    """Streams beside the current one, made when they are first needed. Without `enabled`, jobs run one by one."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._streams: list[torch.cuda.Stream] = []

    def parallel(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """Runs jobs that do not depend on each other, each on a stream of its own, and returns their results.

        Work that is queued before this call ends before the jobs begin; work queued after it waits for all of them.
        The caller must keep the jobs' inputs until this returns.
        """
        if not self._enabled:
            return [job() for job in jobs]
        main = torch.cuda.current_stream()
        while len(self._streams) < len(jobs) - 1:
            self._streams.append(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        used = self._streams[: len(jobs) - 1]
        results = []
        for stream in used:
            stream.wait_stream(main)
        for job, stream in zip(jobs, [main, *used], strict=True):
            with torch.cuda.stream(stream):
                results.append(job())
        for stream in used:
            main.wait_stream(stream)
        return results
