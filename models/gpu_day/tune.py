"""Measures the fastest tile of each masked layer, and saves it in the file that the executor reads."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from models.gpu_day.stages import MissingError


def tune(output: Path, deadline: float, line: Callable[[str], None], device: str, networks: Sequence[str]) -> bool:
    """Measures the layers of `networks`, each given as CONFIGURATION@HxW. After each, writes the file and copies it to
    `output`."""
    if device == "cpu":
        raise MissingError("without a GPU there is nothing to measure")
    import torch  # noqa: PLC0415 - takes seconds, and the dry run has nothing to measure

    from models.bench.gpu_runtimes import network  # noqa: PLC0415 - needs a GPU
    from models.commands.options import parse_size  # noqa: PLC0415 - only here
    from models.executors.gpu.executor import TritonExecutor  # noqa: PLC0415 - needs Triton
    from models.executors.gpu.tuning import NEVER_DENSE, TUNED, gpu_name, write  # noqa: PLC0415 - needs Triton
    from models.imaging.geometry import Frame  # noqa: PLC0415 - only here

    longest_s = 0.0
    for each in networks:
        if deadline - time.monotonic() < longest_s:
            line(f"{each}: no time left; the server measures it when it starts")
            continue
        began_s = time.monotonic()
        name, _, text = each.partition("@")
        size = parse_size(text)
        executor = TritonExecutor(network(name), device)
        state = executor.start(torch.randn(1, 3, *size, device=device), Frame(*size))
        executor.advance([state])
        tunings = executor.measured
        write(TUNED, gpu_name(torch.device(device)), tunings)
        shutil.copy(TUNED, output / TUNED.name)
        spent_s = time.monotonic() - began_s
        longest_s = max(longest_s, spent_s)
        dense = sum(tuning.dense_from < NEVER_DENSE for tuning in tunings.values())
        line(f"{each}: {len(tunings)} layers in {spent_s:.1f} s, {dense} of them dense at a high active share")
        del state, executor
        torch.cuda.empty_cache()
    return True
