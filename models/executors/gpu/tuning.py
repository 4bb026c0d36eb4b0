"""What is measured before a size is served: each masked layer's fastest tile, and when cuDNN is faster still.

Imports the work on the GPU, no network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from models.executors.gpu.graphs import capture
from models.executors.gpu.layers import Layer, Tile, tiles
from models.executors.gpu.passes import Pass, Rows, list_rows, name


@dataclass(frozen=True)
class Choice:
    """How one masked layer is run. `dense_from`: the active share, in tenths, from which everywhere is faster; 1 or
    more: never."""

    tile: Tile
    dense_from: float

    def __str__(self) -> str:
        return f"dense above {self.dense_from:.0%} active" if self.dense_from < 1 else "sparse"


def choose(layer: Layer, shape: torch.Size, rows: Sequence[Rows], counts: Tensor, height: int) -> Choice:
    """Measure `layer` on noise of `shape`.

    `rows` and `counts`, of maps `height` high at the finest size, are overwritten. Tiles are compared at half of all
    positions. The time of a sparse layer is taken as linear in the active share.
    """
    x = torch.randn(shape, device=layer.weight.device).to(layer.weight.dtype)
    mask = rows[0].mask
    crop = torch.zeros((len(mask), 2), dtype=torch.int32, device=x.device)
    key = name(layer, x)

    def seconds(share: float, tile: Tile, dense: frozenset[str] = frozenset()) -> float:
        mask.zero_()
        mask[:, : round(share * mask.shape[1])] = 1
        work = Pass(rows, height, dense=dense, tiles={key: tile})
        list_rows(work, counts, crop, layer.reach, everywhere=False)
        try:
            return time_of(lambda: work.convolve(layer, x))
        except OutOfResources:  # a tile too large for this GPU's shared memory
            return float("inf")

    half, tile = min(
        ((seconds(0.5, tile), tile) for tile in tiles(layer, shape[0] * shape[1] * shape[2] // layer.stride**2)),
        key=lambda timed: timed[0],
    )
    full, dense = seconds(1, tile), seconds(1, tile, frozenset((key,)))
    dense_from = 1 + (dense - full) / (2 * (full - half)) if full > half else float(dense >= full)
    return Choice(tile, round(max(dense_from, 0.0), 1))  # each share that is told apart costs a graph


def time_of(job: Callable[[], object], repeats: int = 8, trials: int = 3) -> float:
    """Seconds that `job` takes on the GPU, launches not counted: the fastest of some trials."""
    job()
    graph = capture(lambda: [job() for _ in range(repeats)])
    times = []
    for _ in range(trials + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1000 / repeats)
    return min(times[1:])
