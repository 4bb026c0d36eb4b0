"""Memory and recorded steps of one input size and batch, and the requests that sit in them while they advance.

Everything that one step leaves for another lies in tensors that are never replaced once steps have been recorded.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import State
from models.executors.gpu.graphs import Recorder, Replay
from models.executors.gpu.layers import IMAGE_CHANNELS, Layer, padded
from models.executors.gpu.lowering import Branches, TritonNetwork
from models.executors.gpu.ops import LEVELS, SETTLED_BY, Pass, empty_rows, kind, list_rows, settle
from models.executors.gpu.tuning import Choice, choose
from models.imaging.geometry import STRIDE, Size
from models.network.adpc import ExitHead, StageModule
from models.network.confidence import make_mask
from models.network.configs import PAPER_MASKING, Masking


@dataclass(frozen=True)
class Saved:
    """What a request takes along when it leaves a plan: its rows of the plan's tensors, copied."""

    features: Branches
    maps: tuple[Tensor, ...]


@dataclass
class TritonState(State):
    """A request: `saved` where it is not in a plan; the plan it is in; its active shares and multiply-adds so far."""

    saved: Saved | None = None
    plan: "Plan | None" = None
    crop: tuple[int, int] = (0, 0)
    shares: tuple[float, ...] | None = None
    macs: float = 0.0


class Plan:
    """Tensors and recorded steps for batches of `batch` inputs of `shape`; without a recorder, steps just run.

    `choices`: how each masked layer is run: as in `tuned`, by `ops.kind`, or as measured before steps are recorded.
    `measured`: what was, by `ops.kind`.
    """

    def __init__(
        self,
        network: TritonNetwork,
        shape: Size,
        batch: int,
        forced: Mapping[int, Tensor],
        recorder: Recorder | None = None,
        *,
        tuned: Mapping[str, Choice],
    ) -> None:
        network.check_indices(shape, batch)
        self.network, self.shape, self.batch = network, shape, batch
        self.config, device = network.config, network.device
        self.masking: Masking = self.config.masking or PAPER_MASKING[self.config.task]
        self.adaptive = self.config.adaptive
        height, width = shape[0] // STRIDE, shape[1] // STRIDE
        self.scores = torch.zeros((batch, height, width, padded(self.config.outputs)), device=device)
        self.decided = torch.zeros((batch, height, width), dtype=torch.uint8, device=device)
        self.mask = torch.zeros_like(self.decided)
        self.crop = torch.zeros((batch, 2), dtype=torch.int32, device=device)
        self.on_host = torch.zeros((batch, 8), dtype=torch.int32, pin_memory=device.type == "cuda")
        self.rows, self.counts = empty_rows(self.mask)
        self.image = torch.zeros((batch, *shape, IMAGE_CHANNELS), dtype=network.dtype, device=device)
        self._places: dict[str, list[Tensor]] = {}
        self.choices: dict[str, Choice] = {}
        self._masked: dict[int, dict[str, tuple[Layer, torch.Size]]] = {}
        self.fixed = dict(forced)
        self.streams: list[torch.cuda.Stream] | None = [] if device.type == "cuda" else None
        self._replays: dict[tuple[int, frozenset[str]], Replay] = {}
        self._tuned = tuned
        self.measured: dict[str, Choice] = {}
        self._seated: list[weakref.ref[TritonState]] = []
        if recorder is not None:
            self._warm_up(recorder)

    def seat(self, states: Sequence[TritonState], index: int) -> None:
        """Bring `states` into this plan, before step `index`; whoever else is here leaves."""
        if len(states) == len(self._seated) and all(
            seat() is state for seat, state in zip(self._seated, states, strict=True)
        ):
            return
        self.vacate()
        for state in states:
            if state.plan is not None:
                state.plan.vacate()
        saved = [state.saved for state in states if state.saved is not None]
        for row, each in enumerate(saved):
            if index == 0:
                self.image[row, ..., :3] = each.features[0][0].permute(1, 2, 0)
                continue
            for place, branch in zip(self._after(index - 1), each.features, strict=True):
                place[row].copy_(branch[0])
        self.crop.copy_(torch.tensor([state.crop for state in states], dtype=torch.int32))
        if saved[0].maps:
            for place, maps in zip(self._maps(), zip(*(each.maps for each in saved), strict=True), strict=True):
                place.copy_(torch.cat(maps))
            self._list()
        self._seated = [weakref.ref(state) for state in states]
        for state in states:
            state.plan, state.saved = self, None

    def vacate(self) -> None:
        """Send the states that are here away with copies of what is theirs."""
        for row, seat in enumerate(self._seated):
            state = seat()
            if state is not None:
                cut = slice(row, row + 1)
                features = self._after(state.next_step - 1)
                maps = tuple(place[cut].clone() for place in self._maps()) if state.exit is not None else ()
                state.saved = Saved(tuple(branch[cut].clone() for branch in features), maps)
                state.plan = None
        self._seated = []

    def leave(self) -> None:
        """`vacate` for good: when this returns, nothing runs that uses the plan's memory."""
        self.vacate()
        if self.network.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def sizes(self) -> list[Size]:
        """Height and width of the branches, finest first."""
        height, width = (side // STRIDE for side in self.shape)
        return [(height >> level, width >> level) for level in range(LEVELS)]

    def run(self, index: int, share: float) -> None:
        """Step `index`; `share` of positions is active, which decides how masked layers are run."""
        dense = self.dense(index, share)
        if self._replays:
            self._replays[index, dense]()
        else:
            self._step(index, dense)

    def dense(self, index: int, share: float) -> frozenset[str]:
        """The masked layers of step `index` that are faster dense when `share` of positions is active."""
        return frozenset(name for name in self._masked.get(index, ()) if share > self.choices[name].dense_from)

    def follow(self, positions: Tensor) -> None:
        """Go on with these active positions, bool (h, w), and not with the latest exit's own."""
        self.mask.copy_(positions)
        self._list()
        self._copy_statistics()

    def fetch_statistics(self) -> NDArray[np.int32]:
        """Of the exit that ran last, see `list_rows`; waits for the device."""
        if self.network.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return np.asarray(self.on_host.numpy())

    def _maps(self) -> tuple[Tensor, ...]:
        return self.scores, self.decided, self.mask

    def _step(self, index: int, dense: frozenset[str], seen: dict[str, tuple[Layer, torch.Size]] | None = None) -> None:
        network = self.network
        step = network.steps[index]
        xs = self._after(index - 1)
        first = next(i for i, s in enumerate(network.steps) if s.exit is not None)
        rows = self.rows if self.adaptive and index > first else ()
        tiles = {name: choice.tile for name, choice in self.choices.items()}
        work = Pass(rows, self.shape[0] // STRIDE, self.streams, dense=dense, tiles=tiles, seen=seen)
        if not isinstance(step, ExitHead):
            module = isinstance(step, StageModule)
            after = network.run(step, xs, work, self._after(index) if module else ())
            if not module:  # cuDNN takes no place for its result
                self._places[step.name] = list(after)
            return
        network.head(step, xs, work, self.scores)
        self._settle(step, first=not rows)
        self._list()
        self._copy_statistics()

    def _settle(self, step: ExitHead, first: bool) -> None:
        index, scores = step.exit, self.scores[..., : self.config.outputs]
        if self.masking.criterion in SETTLED_BY:
            settle(self.masking, index, scores, self.mask, self.decided, first=first)
        else:
            self.decided.masked_fill_((self.mask != 0) | first, index)
            if self.masking.criterion == "random" and index not in self.fixed:  # drawn on the host, so in no graph
                self.fixed[index] = make_mask(scores.permute(0, 3, 1, 2), self.masking, index)
            if index not in self.fixed:
                self.mask.copy_(make_mask(scores.permute(0, 3, 1, 2), self.masking, index)[:, 0])
        if index in self.fixed:
            self.mask.copy_(self.fixed[index][:, 0])

    def _list(self) -> None:
        work = Pass(self.rows, self.shape[0] // STRIDE, self.streams)
        everywhere = not self.masking.shrinks
        list_rows(work, self.counts, self.crop, self.network.reach, everywhere=everywhere)

    def _copy_statistics(self) -> None:
        self.on_host.copy_(self.counts[LEVELS:].view(self.batch, 8), non_blocking=True)

    def _after(self, index: int) -> Branches:
        """Where the features stand after step `index`; -1: the image."""
        steps = self.network.steps
        while index >= 0 and steps[index].exit is not None:
            index -= 1  # exits leave them where they are
        if index < 0:
            return (self.image,)
        channels = self.network.channels(steps[index])
        places = self._places.setdefault(self._place(index), [])
        height, width = self.shape[0] // STRIDE, self.shape[1] // STRIDE
        for level in range(len(places), len(channels)):
            size = (self.batch, height >> level, width >> level, channels[level])
            places.append(torch.zeros(size, dtype=self.network.dtype, device=self.network.device))
        return tuple(places[: len(channels)])

    def _place(self, index: int) -> str:
        """Modules alternate between two places, so that all their graphs can share them."""
        steps = self.network.steps[: index + 1]
        modules = sum(isinstance(step, StageModule) for step in steps)
        return f"module {modules % 2}" if modules else steps[-1].name

    def rehearse(self, *, dense: bool) -> None:
        """Run every step once and note its masked layers. `dense`: then once more with all of them dense."""
        for index in range(len(self.network.steps)):
            self._step(index, frozenset(), self._masked.setdefault(index, {}))
            if dense:
                self._step(index, frozenset(self._masked[index]))

    def features(self, index: int) -> Branches:
        """The branches after step `index`, each (N, C, h, w), finest first, without padded channels. What is not
        needed is left from earlier requests."""
        channels = self.network.real_channels(index)
        return tuple(
            place[..., :count].permute(0, 3, 1, 2) for place, count in zip(self._after(index), channels, strict=True)
        )

    def _warm_up(self, recorder: Recorder) -> None:
        """Compile, choose and record on noise whatever any share of active positions calls for."""
        self.image[..., :3].normal_()
        self.crop.fill_(1 << 30)
        steps = range(len(self.network.steps))
        self.rehearse(dense=False)
        for layers in self._masked.values():
            for name, (layer, shape) in layers.items():
                capacity = shape[0] * shape[1] * shape[2] // layer.stride**2
                known = self._tuned.get(kind(layer, capacity))
                if known is None and name not in self.choices:
                    known = choose(layer, shape, self.rows, self.counts, self.shape[0] // STRIDE)
                    self.measured[kind(layer, capacity)] = known
                if known is not None:
                    self.choices[name] = known
        shares = {1.0, *(choice.dense_from for choice in self.choices.values() if choice.dense_from < 1)}
        for index in steps:
            for dense in {self.dense(index, share) for share in shares}:
                replay = recorder.record(partial(self._step, index, dense))
                self._replays[index, dense] = replay
                replay()  # or the next step would be run on what recording left undefined, and leave it to all others
