"""The steps of a network for one input size and batch.

A step is recorded once for each set of convolutions that are run densely at some active share.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from models.executors.gpu import exits
from models.executors.gpu.graphs import Recorder, Replay
from models.executors.gpu.layers import TritonConvolution
from models.executors.gpu.lowering import TritonNetwork
from models.executors.gpu.memory import BatchMemory
from models.executors.gpu.ops import RowOps
from models.executors.gpu.tuning import NEVER_DENSE, LayerTuning, measure, tuning_key
from models.imaging.geometry import Size
from models.network.adpc import ExitHead, StageModule
from models.network.confidence import make_mask


class BatchProgram:
    """Runs the steps of `batch` requests with inputs of `shape` (H, W) in its `memory`.

    `recorder`: records the steps when the program is made; None: steps are run as they are. `tuned`: by `tuning_key`,
    how masked convolutions are run; with a recorder, those that it lacks are measured first, into `measured`.
    `tunings`: by `layer_name`, how each masked convolution is run. `forced_masks`: see `TritonExecutor`.
    """

    def __init__(
        self,
        network: TritonNetwork,
        shape: Size,
        batch: int,
        forced_masks: Mapping[int, Tensor],
        recorder: Recorder | None = None,
        *,
        tuned: Mapping[str, LayerTuning],
    ) -> None:
        self.network = network
        self.memory = BatchMemory(network, shape, batch)
        self.masking = network.config.exit_masking
        self.tunings: dict[str, LayerTuning] = {}
        self.measured: dict[str, LayerTuning] = {}
        self._fixed_masks = dict(forced_masks)
        self._masked: dict[int, dict[str, tuple[TritonConvolution, torch.Size]]] = {}
        self._replays: dict[tuple[int, frozenset[str]], Replay] = {}
        if recorder is not None:
            self._warm_up(recorder, tuned)

    def run(self, index: int, share: float) -> None:
        """Runs step `index`. `share`: the active share, which decides which convolutions are run densely."""
        dense = self.dense_layers(index, share)
        if self._replays:
            self._replays[index, dense]()
        else:
            self._step(index, dense)

    def dense_layers(self, index: int, share: float) -> frozenset[str]:
        """The masked convolutions of step `index` that are faster at every position with this active share."""
        return frozenset(name for name in self._masked.get(index, ()) if share > self.tunings[name].dense_from)

    def replace_mask(self, mask: Tensor, *, full_halo: bool) -> None:
        """Goes on under `mask`, bool (h, w), in place of the latest exit's own; see `DeviceGeometry.update`."""
        self.memory.mask.copy_(mask)
        self.memory.update_geometry(full_halo=full_halo)
        self.memory.send_statistics()

    def launch_all(self, *, dense: bool) -> None:
        """Runs every step once and notes its masked convolutions. `dense`: then once more, with all of them dense."""
        for index in range(len(self.network.steps)):
            self._step(index, frozenset(), self._masked.setdefault(index, {}))
            if dense:
                self._step(index, frozenset(self._masked[index]))

    def _step(
        self, index: int, dense: frozenset[str], noted: dict[str, tuple[TritonConvolution, torch.Size]] | None = None
    ) -> None:
        """Step `index`, with `dense` convolutions at every position; for `noted` see `RowOps`."""
        network, memory = self.network, self.memory
        step = network.steps[index]
        xs = memory.after(index - 1)
        first_exit = next(i for i, other in enumerate(network.steps) if other.exit is not None)
        masked = network.config.adaptive and index > first_exit
        tiles = {name: tuning.tile for name, tuning in self.tunings.items()}
        ops = RowOps(memory.geometry if masked else None, memory.streams, dense=dense, tiles=tiles, noted=noted)
        if isinstance(step, ExitHead):
            network.head(step, xs, ops, memory.scores)
            self._update_mask(step.exit, first=not masked)
            memory.update_geometry(full_halo=not self.masking.shrinks)
            memory.send_statistics()
        elif isinstance(step, StageModule):
            network.run(step, xs, ops, memory.after(index))
        else:
            memory.keep(index, network.run(step, xs, ops, ()))  # cuDNN allocates its results itself

    def _update_mask(self, index: int, *, first: bool) -> None:
        """Equations 2 and 7 after exit `index`. `first`: all positions were computed."""
        memory, fixed = self.memory, self._fixed_masks
        scores = memory.scores[..., : self.network.config.outputs]
        if self.masking.criterion in exits.CRITERIA:
            exits.update_mask(self.masking, index, scores, memory.mask, memory.decided, first=first)
        else:
            memory.decided.masked_fill_((memory.mask != 0) | first, index)
            if self.masking.criterion == "random" and index not in fixed:
                fixed[index] = make_mask(scores.permute(0, 3, 1, 2), self.masking, index)  # by the host, so in no graph
            if index not in fixed:
                memory.mask.copy_(make_mask(scores.permute(0, 3, 1, 2), self.masking, index)[:, 0])
        if index in fixed:
            memory.mask.copy_(fixed[index][:, 0])

    def _warm_up(self, recorder: Recorder, tuned: Mapping[str, LayerTuning]) -> None:
        """Compiles, tunes and records, on noise, all that any active share calls for."""
        memory = self.memory
        memory.image[..., :3].normal_()
        memory.inside.fill_(1 << 30)
        self.launch_all(dense=False)
        for layers in self._masked.values():
            for name, (conv, shape) in layers.items():
                key = tuning_key(conv, shape[0] * shape[1] * shape[2] // conv.stride**2)
                known = tuned.get(key)
                if known is None and name not in self.tunings:
                    known = self.measured[key] = measure(conv, shape, memory.geometry)
                if known is not None:
                    self.tunings[name] = known
        dense_from = (tuning.dense_from for tuning in self.tunings.values())
        shares = {1.0, *(share for share in dense_from if share < NEVER_DENSE)}
        for index in range(len(self.network.steps)):
            for dense in {self.dense_layers(index, share) for share in shares}:
                replay = recorder.record(partial(self._step, index, dense))
                self._replays[index, dense] = replay
                replay()  # the next step runs before it is recorded, and a recording leaves its result undefined
