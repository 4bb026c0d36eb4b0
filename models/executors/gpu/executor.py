"""The GPU executor: only rows that matter are computed, every step is one CUDA graph. On a CPU: Triton's interpreter.

A `Plan` owns the memory and the graphs of one input size and batch. Requests live in a plan while they advance and
take their features along when others need the place. Nothing waits for the device but the end of an exit.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import Exit, ExitMap, State, check_batch, check_mask
from models.executors.gpu.graphs import CudaGraphs, Recorder
from models.executors.gpu.lowering import TritonNetwork
from models.executors.gpu.program import Plan, Saved, TritonState
from models.executors.gpu.tuning import TUNED, Choice, gpu_name, read
from models.imaging.geometry import Box, Frame, Size
from models.imaging.postprocess import render
from models.imaging.preprocess import check_input, prepare, seen
from models.network.adpc import AdpcNet
from models.network.configs import Extra
from models.network.flops import costs

PLANS = 8
"""Sizes and batches whose graphs are kept; the one that was not used for longest makes room."""


class TritonExecutor:
    """Runs an `AdpcNet` step by step in half precision. See `AnytimeModel`.

    `choices`: for each size and batch that was warmed up, how each masked layer is run, by `ops.name`.
    `measured`: those of them that no file told, by `ops.kind`, see `tuning.write`.
    `forced`: by exit, positions bool (1 or N, 1, h, w) that stay active whatever the scores say; for measurements, to
    be set before the first request.
    """

    executor = "triton"

    def __init__(
        self,
        network: AdpcNet,
        device: str = "cuda",
        dtype: torch.dtype = torch.float16,
        graphs: Callable[[], Recorder | None] | None = None,
        tuned: Path = TUNED,
    ) -> None:
        """`graphs` makes what records a plan's steps; None: CUDA graphs on a GPU, nothing on a CPU. If it makes None,
        steps are run as they are, and no layer is measured. `tuned`: a file of layers that were measured before, see
        `tuning`."""
        self.config = network.config
        self.device = device
        self.steps = network.steps
        self.network = TritonNetwork(network, torch.device(device), dtype)
        self.choices: dict[str, Mapping[str, Choice]] = {}
        self.measured: dict[str, Choice] = {}
        self._tuned = read(tuned, gpu_name(self.network.device))
        self.forced: dict[int, Tensor] = {}
        self._graphs = CudaGraphs if graphs is None and device != "cpu" else graphs
        self._plans: dict[tuple[Size, int], Plan] = {}

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> TritonState:
        return self.start(*prepare(image, self.config, box, self.device))

    def start(self, inputs: Tensor, frame: Frame) -> TritonState:
        check_input(inputs, images=1)
        shape = (int(inputs.shape[2]), int(inputs.shape[3]))
        self.network.check_indices(shape, 1)
        crop = seen(self.config, frame, shape)
        return TritonState(frame, shape, saved=Saved((inputs.to(self.device),), ()), crop=crop)

    @torch.inference_mode()
    @torch.backends.cudnn.flags(enabled=True, benchmark=True)
    def advance(self, states: Sequence[State]) -> None:
        index, own = check_batch(states, self.steps, TritonState)
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
        return render(state.latest(), self.config, state.frame, extra)

    @torch.inference_mode()
    def override(self, state: State, mask: Tensor, *, shrinking: bool = False) -> None:
        """See `Overridable.override`; what is saved depends on the criterion of the configuration alone, so that masks
        of one whose masks shrink must shrink. Raises ValueError on a mask of another shape or dtype."""
        assert isinstance(state, TritonState)
        check_mask(mask, state.shape)
        with self._on_device():
            plan = self._plan(state.shape, 1)
            plan.seat([state], state.next_step)
            plan.follow(mask)
            self._share([state], plan)

    @torch.inference_mode()
    def rehearse(self, state: State) -> None:
        """Run every step as `state` would, each masked layer over its rows and densely: what can be launched, is."""
        assert isinstance(state, TritonState)
        with self._on_device():
            self._plan(state.shape, 1).rehearse(dense=True)

    def features(self, state: State) -> tuple[Tensor, ...]:
        """The branches that the latest step of `state` left, each (1, C, h, w), finest first; to find faults with.

        Only positions that are active, or next to a block of the finest size with an active one, are computed; the
        others are left from earlier requests.
        """
        assert isinstance(state, TritonState)
        with self._on_device():
            plan = self._plan(state.shape, 1)
            plan.seat([state], state.next_step)
            return plan.features(state.next_step - 1)

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device != "cpu" else nullcontext()

    def _plan(self, shape: Size, batch: int) -> "Plan":
        key = shape, batch
        plan = self._plans.pop(key, None)
        if plan is None:
            while len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans))).leave()
            recorder = self._graphs() if self._graphs else None
            plan = Plan(self.network, shape, batch, self.forced, recorder, tuned=self._tuned)
            self.measured |= plan.measured
            self.choices[f"{shape[0]}x{shape[1]}x{batch}"] = plan.choices
        self._plans[key] = plan
        return plan

    def _finish(self, index: int, states: Sequence[TritonState], plan: Plan) -> None:
        statistics = plan.fetch_statistics()
        sizes = plan.sizes
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
            self._share(states, plan)

    @staticmethod
    def _share(states: Sequence[TritonState], plan: Plan) -> None:
        """Tell `states` which shares of positions are active from now on."""
        for state, counts in zip(states, plan.fetch_statistics(), strict=True):
            state.shares = tuple(float(counts[level]) / (h * w) for level, (h, w) in enumerate(plan.sizes))
