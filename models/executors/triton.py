"""The GPU executor: only rows that matter are computed, every step is one CUDA graph. On a CPU: Triton's interpreter.

A `Plan` owns the memory and the graphs of one input size and batch. Requests live in a plan while they advance and
take their features along when others need the place. Nothing waits for the device but the end of an exit.
"""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.adpc import AdpcNet
from models.anytime import AnytimeModel, Exit, ExitMap, Extra, State, Step, check_batch
from models.confidence import active
from models.configs import Masking
from models.executors.reference import UNSURE
from models.executors.triton_choices import Choice, capture, choose
from models.executors.triton_layers import IMAGE_CHANNELS, Layer, padded
from models.executors.triton_network import Branches, TritonNetwork
from models.executors.triton_pass import LEVELS, SETTLED_BY, Pass, empty_rows, list_rows, settle
from models.flops import Size, costs
from models.postprocess import render
from models.preprocess import STRIDE, Box, Frame, prepare

TOLERANCE = 0.05
"""Mean difference of scores over their mean size that rounding to halves can explain."""
PLANS = 8
"""Sizes and batches whose graphs are kept; the one that was not used for longest makes room."""


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


class TritonExecutor:
    """Runs an `AdpcNet` step by step in half precision. See `AnytimeModel`.

    `choices`: for each size and batch that was warmed up, how each masked layer was measured to be fastest.
    `forced`: by exit, positions bool (1 or N, 1, h, w) that stay active whatever the scores say; for measurements, to
    be set before the first request.
    """

    executor = "triton"

    def __init__(self, network: AdpcNet, device: str = "cuda", dtype: torch.dtype = torch.float16) -> None:
        self.config = network.config
        self.device = device
        self.steps = network.steps
        self.network = TritonNetwork(network, torch.device(device), dtype)
        self.choices: dict[str, Mapping[str, Choice]] = {}
        self.forced: dict[int, Tensor] = {}
        self._plans: dict[tuple[Size, int], Plan] = {}

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> TritonState:
        return self.start(*prepare(image, self.config, box, self.device))

    def start(self, inputs: Tensor, frame: Frame) -> TritonState:
        height, width = inputs.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(f"the input is {height}x{width}; both must be multiples of 32: pad it")
        crop = (height // STRIDE, width // STRIDE)
        if self.config.task == "segmentation":  # padding is nobody's pixel
            crop = (-(-frame.height // STRIDE), -(-frame.width // STRIDE))
        return TritonState(frame, (height, width), saved=Saved((inputs.to(self.device),), ()), crop=crop)

    @torch.inference_mode()
    @torch.backends.cudnn.flags(enabled=True, benchmark=True)
    def advance(self, states: Sequence[State]) -> None:
        own = [state for state in states if isinstance(state, TritonState)]
        index = check_batch(states, self.steps)
        step = self.steps[index]
        shares = [state.shares[0] for state in own if state.shares]
        with self._on_device():
            plan = self._plan(own[0].shape, len(own))
            plan.seat(own, index)
            plan.run(index, max(shares, default=1.0))
            for state in own:
                state.next_step += 1
            if step.exit is not None:
                self._finish(step.exit, own, plan)

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        if state.exit is None:
            raise ValueError(f"no exit is finished after {state.next_step} of {len(self.steps)} steps; advance further")
        return render(state.exit, self.config, state.frame, extra)

    @torch.inference_mode()
    def check(self, reference: AnytimeModel) -> None:
        """Compare the exits of a small input with those of `reference`, whose masks both follow.

        Kernels are compiled here and now, for whatever GPU, driver and compiler there are. Raises RuntimeError if that
        fails, or if scores differ by more than half precision explains.
        """
        inputs = torch.randn((1, 3, 64, 96), generator=torch.Generator().manual_seed(0))
        ours, theirs = self.start(inputs, Frame(64, 96)), reference.start(inputs, Frame(64, 96))
        for step in self.steps:
            try:
                self.advance([ours])
            except Exception as error:
                raise RuntimeError(f"the GPU executor fails on {self.device} in {step.name}: {error}") from error
            reference.advance([theirs])
            if ours.exit is not None and theirs.exit is not None:
                difference = (ours.exit.scores - theirs.exit.scores).abs().mean() / theirs.exit.scores.abs().mean()
                if not difference < TOLERANCE:
                    raise RuntimeError(
                        f"the GPU executor is off by {difference:.1%} on {self.device} after {step.name}; "
                        f"half precision explains {TOLERANCE:.0%}"
                    )
                if ours.plan is not None:
                    with self._on_device():
                        ours.plan.follow(theirs.exit.active)

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device != "cpu" else nullcontext()

    def _plan(self, shape: Size, batch: int) -> "Plan":
        key = shape, batch
        plan = self._plans.pop(key, None)
        if plan is None:
            while len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans))).vacate()
            plan = Plan(self.network, shape, batch, self.forced)
            self.choices[f"{shape[0]}x{shape[1]}x{batch}"] = plan.choices
        self._plans[key] = plan
        return plan

    def _finish(self, index: int, states: Sequence[TritonState], plan: "Plan") -> None:
        statistics = plan.fetch_statistics()
        height, width = (side // STRIDE for side in plan.shape)
        sizes = [(height >> level, width >> level) for level in range(LEVELS)]
        scores = plan.scores[..., : self.config.outputs].permute(0, 3, 1, 2)
        for row, state in enumerate(states):
            masked = dict(zip(sizes, state.shares, strict=True)) if state.shares else {}
            groups = costs(self.config, *state.shape)[index - 1]
            state.macs += sum(cost.macs(masked.get(size, 1.0)) for (size, _), cost in groups.items())
            inside = state.crop[0] * state.crop[1]
            state.exit = Exit(
                index,
                scores[row].clone(),
                plan.decided[row].clone(),
                plan.mask[row] != 0,
                float(statistics[row, 7]) / inside,
                round(state.macs),
            )
            if plan.adaptive and index < self.config.exits:
                state.shares = tuple(float(statistics[row, level]) / (h * w) for level, (h, w) in enumerate(sizes))


class Plan:
    """Tensors and graphs for batches of `batch` inputs of `shape`."""

    def __init__(self, network: TritonNetwork, shape: Size, batch: int, forced: dict[int, Tensor]) -> None:
        self.network, self.shape, self.batch = network, shape, batch
        self.config, device = network.config, network.device
        self.masking: Masking = self.config.masking or UNSURE[self.config.task]
        self.adaptive = self.config.masking is not None and self.config.masking.adaptivity != "training"
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
        self.seen: dict[str, tuple[Layer, torch.Size]] = {}
        self.fixed = dict(forced)
        self.streams: list[torch.cuda.Stream] | None = [] if device.type == "cuda" else None
        self._graphs: dict[tuple[int, frozenset[str]], torch.cuda.CUDAGraph] = {}
        self._seated: list[weakref.ref[TritonState]] = []
        if device.type == "cuda":
            self.pool = torch.cuda.graph_pool_handle()
            self._warm_up()

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

    def run(self, index: int, share: float) -> None:
        """Step `index`; `share` of positions is active, which decides how masked layers are run."""
        dense = self.dense(share)
        if self.network.device.type != "cuda":
            self._step(index, dense)
            return
        if (index, dense) in self._graphs:
            self._graphs[index, dense].replay()
            return
        self._step(index, dense)  # compiles what is new, which must not happen while a graph is captured
        self._graphs[index, dense] = self._capture(index, dense)

    def dense(self, share: float) -> frozenset[str]:
        """The masked layers that are faster dense when `share` of positions is active."""
        return frozenset(name for name, choice in self.choices.items() if share > choice.dense_from)

    def follow(self, positions: Tensor) -> None:
        """Go on with these active positions, bool (h, w), and not with the latest exit's own."""
        self.mask.copy_(positions)
        self._list()

    def fetch_statistics(self) -> NDArray[np.int32]:
        """Of the exit that ran last, see `list_rows`; waits for the device."""
        if self.network.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return np.asarray(self.on_host.numpy())

    def _maps(self) -> tuple[Tensor, ...]:
        return self.scores, self.decided, self.mask

    def _step(self, index: int, dense: frozenset[str]) -> None:
        network = self.network
        step = network.steps[index]
        xs = self._after(index - 1)
        first = next(i for i, s in enumerate(network.steps) if s.exit is not None)
        rows = self.rows if self.adaptive and index > first else ()
        tiles = {name: choice.tile for name, choice in self.choices.items()}
        work = Pass(rows, self.shape[0] // STRIDE, self.streams, dense=dense, tiles=tiles, seen=self.seen)
        if step.exit is None:
            module = step.name.startswith("stage")
            after = network.run(step, xs, work, self._after(index) if module else ())
            if not module:  # cuDNN takes no place for its result
                self._places[step.name] = list(after)
            return
        network.head(step, xs, work, self.scores)
        self._settle(step, first=not rows)
        self._list()
        self.on_host.copy_(self.counts[LEVELS:].view(self.batch, 8), non_blocking=True)

    def _settle(self, step: Step, first: bool) -> None:
        index, scores = step.exit or 0, self.scores[..., : self.config.outputs]
        if self.masking.criterion in SETTLED_BY:
            settle(self.masking, index, scores, self.mask, self.decided, first=first)
        else:
            self.decided.masked_fill_((self.mask != 0) | first, index)
            if self.masking.criterion == "random" and index not in self.fixed:  # drawn on the host, so in no graph
                self.fixed[index] = active(scores.permute(0, 3, 1, 2), self.masking, index)
            if index not in self.fixed:
                self.mask.copy_(active(scores.permute(0, 3, 1, 2), self.masking, index)[:, 0])
        if index in self.fixed:
            self.mask.copy_(self.fixed[index][:, 0])

    def _list(self) -> None:
        work = Pass(self.rows, self.shape[0] // STRIDE, self.streams)
        everywhere = self.masking.criterion not in SETTLED_BY
        list_rows(work, self.counts, self.crop, self.network.reach, everywhere=everywhere)

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
        modules = sum(step.name.startswith("stage") for step in steps)
        return f"module {modules % 2}" if modules else steps[-1].name

    def _warm_up(self) -> None:
        """Compile, choose and capture every step, on noise."""
        self.image[..., :3].normal_()
        self.crop.fill_(1 << 30)
        for index in range(len(self.network.steps)):
            self._step(index, frozenset())
        for name, (layer, shape) in self.seen.items():
            self.choices[name] = choose(layer, shape, self.rows, self.counts, self.shape[0] // STRIDE)
        for index in range(len(self.network.steps)):
            self.run(index, share=0)
        torch.cuda.synchronize()

    def _capture(self, index: int, dense: frozenset[str]) -> torch.cuda.CUDAGraph:
        return capture(lambda: self._step(index, dense), self.pool)
