"""What is measured before a size is served: each masked layer's fastest tile, and when cuDNN is faster still.

What was measured can be kept in a file, so that the next warm-up need not measure it again: JSON,

    {"NVIDIA H100 80GB HBM3": {"3x3 48 -> 48 at 2^15": {"tile": {"rows": 128, "columns": 64, "depth": 32, "warps": 4,
    "stages": 4, "cached": false}, "dense_from": 0.8}}}

by the GPU's name and by layer: its kernel, padded channels, and the least power of two that is not below the number of
positions in its result (`ops.kind`). The fields are those of `Tile` and `Choice`. `TUNED` is read unless another
file is given; layers that are missing are measured as if there were none.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from models.executors.gpu.graphs import capture
from models.executors.gpu.layers import Layer, Tile, tiles
from models.executors.gpu.ops import Pass, Rows, list_rows, name

TUNED = Path(__file__).with_name("tuned.json")


@dataclass(frozen=True)
class Choice:
    """How one masked layer is run. `dense_from`: the active share, in tenths, from which everywhere is faster; 1 or
    more: never."""

    tile: Tile
    dense_from: float

    def __str__(self) -> str:
        return f"dense above {self.dense_from:.0%} active" if self.dense_from < 1 else "sparse"


def gpu_name(device: torch.device) -> str:
    """By which the file lists a GPU; empty for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def read(path: Path, gpu: str) -> dict[str, Choice]:
    """What was measured on `gpu`, by `ops.kind`; nothing if there is no file. Raises ValueError on a broken one."""
    try:
        found = json.loads(path.read_text()).get(gpu, {})
        return {kind: Choice(Tile(**choice["tile"]), float(choice["dense_from"])) for kind, choice in found.items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no measured layers: {error}; write it anew, or remove it") from error


def write(path: Path, gpu: str, choices: Mapping[str, Choice]) -> None:
    """Add `choices`, by `ops.kind`, to those of `gpu` in the file, in place of earlier ones for the same layers."""
    found = json.loads(path.read_text()) if path.exists() else {}
    found[gpu] = dict(sorted({**found.get(gpu, {}), **{kind: asdict(each) for kind, each in choices.items()}}.items()))
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


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
