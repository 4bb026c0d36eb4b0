"""The tensors of one input size and batch, and the requests whose features lie in them while they advance.

Everything that one step leaves for another lies in tensors that are never replaced once steps have been recorded.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import State
from models.executors.gpu.geometry import DeviceGeometry
from models.executors.gpu.layers import IMAGE_CHANNELS, padded
from models.executors.gpu.lowering import Branches, TritonNetwork
from models.executors.gpu.streams import SideStreams
from models.imaging.geometry import STRIDE, Size
from models.network.adpc import StageModule


@dataclass(frozen=True)
class SavedRequest:
    """Copies of a request's part of a `BatchMemory`, (1, ...) each.

    `features`: the branches that its latest step left, or the input, float (1, 3, H, W), before the first step.
    `maps`: scores, decided and mask; empty before the first exit.
    """

    features: Branches
    maps: tuple[Tensor, ...]


@dataclass
class TritonState(State):
    """One request. Its tensors are either in `saved` or in `memory`.

    `inside`: height and width of the image in positions of the mask. `shares`: active share of each level for the next
    stage, the finest first; None if all is active. `macs`: multiply-adds so far. `shrinking`: whether later masks stay
    within the mask of the next stage. `overridden`: whether any mask was given, see `TritonExecutor.override`. `bound`:
    bool (h, w), the latest mask that later ones were promised to stay within; kept of overridden requests only, since
    nothing else can break the promise.
    """

    saved: SavedRequest | None = None
    memory: "BatchMemory | None" = None
    inside: tuple[int, int] = (0, 0)
    shares: tuple[float, ...] | None = None
    macs: float = 0.0
    shrinking: bool = True
    overridden: bool = False
    bound: Tensor | None = None


class BatchMemory:
    """Tensors of `batch` requests with inputs of `shape` (H, W), on the network's device.

    `image`: (N, H, W, padded channels) in the network's dtype. `scores`: float32 (N, h, w, padded outputs), with those
    of earlier exits at inactive positions. `decided`, `mask`: uint8 (N, h, w), see `Exit`; `mask` is the one of the
    next stage. `geometry`: the row lists of `mask`. `inside`: int32 (N, 2), see `TritonState`.
    """

    def __init__(self, network: TritonNetwork, shape: Size, batch: int) -> None:
        network.check_indices(shape, batch)
        self.network, self.shape, self.batch = network, shape, batch
        device, (height, width) = network.device, self.level_size(0)
        self.image = torch.zeros((batch, *shape, IMAGE_CHANNELS), dtype=network.dtype, device=device)
        self.scores = torch.zeros((batch, height, width, padded(network.config.outputs)), device=device)
        self.decided = torch.zeros((batch, height, width), dtype=torch.uint8, device=device)
        self.mask = torch.zeros_like(self.decided)
        self.geometry = DeviceGeometry(self.mask)
        self.inside = torch.zeros((batch, 2), dtype=torch.int32, device=device)
        self.streams = SideStreams(enabled=device.type == "cuda")
        statistics = self.geometry.statistics
        self._host_statistics = torch.zeros_like(statistics, device="cpu", pin_memory=device.type == "cuda")
        self._features: dict[str, list[Tensor]] = {}
        self._occupants: list[weakref.ref[TritonState]] = []

    def level_size(self, level: int) -> Size:
        """Height and width of the maps of a level."""
        return self.shape[0] // STRIDE >> level, self.shape[1] // STRIDE >> level

    def bind(self, states: Sequence[TritonState], index: int) -> None:
        """Brings `states`, which wait for step `index`, into this memory. Requests that are in the way are evicted."""
        if len(states) == len(self._occupants) and all(
            occupant() is state for occupant, state in zip(self._occupants, states, strict=True)
        ):
            return
        self.evict()
        for state in states:
            if state.memory is not None:
                state.memory.evict()
        saved = [state.saved for state in states if state.saved is not None]
        for row, request in enumerate(saved):
            if index == 0:
                self.image[row, ..., :3] = request.features[0][0].permute(1, 2, 0)
                continue
            for place, branch in zip(self.after(index - 1), request.features, strict=True):
                place[row].copy_(branch[0])
        self.inside.copy_(torch.tensor([state.inside for state in states], dtype=torch.int32))
        if saved[0].maps:
            for place, maps in zip(self._maps(), zip(*(request.maps for request in saved), strict=True), strict=True):
                place.copy_(torch.cat(maps))
            self.update_geometry(full_halo=not all(state.shrinking for state in states))
        self._occupants = [weakref.ref(state) for state in states]
        for state in states:
            state.memory, state.saved = self, None

    def evict(self) -> None:
        """Gives every request in this memory copies of what is its own. A request that was dropped needs none."""
        for row, occupant in enumerate(self._occupants):
            state = occupant()
            if state is not None and state.memory is self:  # an eviction that failed may have moved it already
                cut = slice(row, row + 1)
                features = self.after(state.next_step - 1)
                maps = tuple(place[cut].clone() for place in self._maps()) if state.exit is not None else ()
                state.saved = SavedRequest(tuple(branch[cut].clone() for branch in features), maps)
                state.memory = None
        self._occupants = []

    def close(self) -> None:
        """Evicts all requests. When this returns, nothing that runs uses the memory."""
        self.evict()
        if self.network.device.type == "cuda":
            torch.cuda.synchronize()

    def after(self, index: int) -> Branches:
        """Where the branches lie after step `index`, the finest first; index -1 stands for the image."""
        steps = self.network.steps
        while index >= 0 and steps[index].exit is not None:
            index -= 1  # an exit leaves the branches where they are
        if index < 0:
            return (self.image,)
        channels = self.network.channels(steps[index])
        places = self._features.setdefault(self._place(index), [])
        for level in range(len(places), len(channels)):
            size = (self.batch, *self.level_size(level), channels[level])
            places.append(torch.zeros(size, dtype=self.network.dtype, device=self.network.device))
        return tuple(places[: len(channels)])

    def keep(self, index: int, branches: Branches) -> None:
        """Notes where step `index`, which is not a module, leaves its branches."""
        self._features[self._place(index)] = list(branches)

    def _place(self, index: int) -> str:
        """Modules take turns with two places, so that the graphs of all of them share these."""
        steps = self.network.steps[: index + 1]
        modules = sum(isinstance(step, StageModule) for step in steps)
        return f"module {modules % 2}" if modules else steps[-1].name

    def features(self, index: int) -> Branches:
        """The branches after step `index`, each (N, C, h, w), without padded channels."""
        channels = self.network.real_channels(index)
        return tuple(
            branch[..., :count].permute(0, 3, 1, 2) for branch, count in zip(self.after(index), channels, strict=True)
        )

    def update_geometry(self, *, full_halo: bool) -> None:
        """Makes the row lists follow the mask, see `DeviceGeometry.update`."""
        self.geometry.update(self.inside, self.network.reach, self.streams, full_halo=full_halo)

    def send_statistics(self) -> None:
        """Begins to copy the statistics of the mask to the host."""
        self._host_statistics.copy_(self.geometry.statistics, non_blocking=True)

    def receive_statistics(self) -> NDArray[np.int32]:
        """Waits for the device and returns the statistics that were sent last: int32 (N, STATISTICS_COLUMNS), see
        kernels/geometry.py."""
        if self.network.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return np.asarray(self._host_statistics.numpy())

    def _maps(self) -> tuple[Tensor, ...]:
        return self.scores, self.decided, self.mask
