"""The fastest way to run each masked convolution, measured before a size is served or read from a file.

The file is JSON, for example

    {"NVIDIA H200": {"3x3 48 -> 48 at 2^15": {"dense_from": 0.8, "tile": {"rows": 128, "columns": 64, "depth": 32,
    "warps": 4, "stages": 4, "cached": false}}}}

by the GPU's name and by `tuning_key`; the fields are those of `LayerTuning` and `Tile`. The package comes with such a
file (`TUNED`). What it lacks is measured when a size is first served.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from triton.runtime.errors import OutOfResources

from models.executors.gpu.geometry import DeviceGeometry
from models.executors.gpu.graphs import capture
from models.executors.gpu.layers import Tile, TritonConvolution, candidate_tiles, layer_name
from models.executors.gpu.ops import RowOps
from models.executors.gpu.streams import SideStreams

TUNED = Path(__file__).with_name("tuned.json")
NEVER_DENSE = 1.0
"""A `dense_from` that no active share is above."""


@dataclass(frozen=True)
class LayerTuning:
    """How a masked convolution is run. `dense_from`: the active share, 0..1 in tenths, above which it is faster to
    compute every position with cuDNN; `NEVER_DENSE` if it never is. `tile`: the fastest one for listed rows."""

    tile: Tile
    dense_from: float

    def __str__(self) -> str:
        return f"dense above {self.dense_from:.0%} active" if self.dense_from < NEVER_DENSE else "sparse"


def gpu_name(device: torch.device) -> str:
    """The name that a device has in the file; empty for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def tuning_key(conv: TritonConvolution, positions: int) -> str:
    """The name that a convolution has in the file: its kernel, its padded channels, and the least power of two that is
    not below the number of positions of its result."""
    return f"{conv} at 2^{(positions - 1).bit_length()}"


def read(path: Path, gpu: str) -> dict[str, LayerTuning]:
    """What was measured on `gpu`, by `tuning_key`; empty if there is no file. Raises ValueError on a broken one."""
    try:
        found = json.loads(path.read_text()).get(gpu, {})
        return {key: LayerTuning(Tile(**each["tile"]), float(each["dense_from"])) for key, each in found.items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no measured layers: {error}; write it anew, or remove it") from error


def write(path: Path, gpu: str, tunings: Mapping[str, LayerTuning]) -> None:
    """Adds `tunings`, by `tuning_key`, to those of `gpu` in the file, in place of earlier ones of the same key."""
    found = json.loads(path.read_text()) if path.exists() else {}
    found[gpu] = dict(sorted({**found.get(gpu, {}), **{key: asdict(each) for key, each in tunings.items()}}.items()))
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def measure(conv: TritonConvolution, shape: torch.Size, geometry: DeviceGeometry) -> LayerTuning:
    """Measures `conv` on noise of `shape` (N, h, w, in_channels), with row lists in `geometry`, which it overwrites.

    Tiles are compared with half of all positions active. The time over listed rows is taken as linear in the active
    share, between half and all.
    """
    x = torch.randn(shape, device=conv.weights.device).to(conv.weights.dtype)
    mask = geometry.mask
    inside = torch.zeros((len(mask), 2), dtype=torch.int32, device=x.device)
    streams = SideStreams(enabled=False)
    name = layer_name(conv, x)

    def seconds(share: float, tile: Tile, dense: frozenset[str] = frozenset()) -> float:
        mask.zero_()
        mask[:, : round(share * mask.shape[1])] = 1
        geometry.update(inside, conv.reach, streams, full_halo=False)
        ops = RowOps(geometry, streams, dense=dense, tiles={name: tile})
        try:
            return time_of(lambda: ops.convolve(conv, x))
        except OutOfResources:  # the tile is too large for this GPU's shared memory
            return float("inf")

    tiles = candidate_tiles(conv, shape[0] * shape[1] * shape[2] // conv.stride**2)
    half, tile = min(((seconds(0.5, tile), tile) for tile in tiles), key=lambda timed: timed[0])
    full, dense = seconds(1, tile), seconds(1, tile, frozenset((name,)))
    dense_from = 1 + (dense - full) / (2 * (full - half)) if full > half else float(dense >= full)
    # Tenths, because every share that is told apart costs a graph.
    return LayerTuning(tile, round(min(max(dense_from, 0.0), NEVER_DENSE), 1))


def time_of(job: Callable[[], object], repeats: int = 8, trials: int = 3) -> float:
    """Seconds that `job` takes on the GPU, without its launches: the fastest of some trials."""
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
