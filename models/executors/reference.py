"""The reference executor: it runs the network's own layers, which compute every position and then apply the masks.

Every other executor is compared with it. It runs networks of all families, wherever torch runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import Exit, ExitMap, MapMemory, State, Step, check_batch, check_mask
from models.imaging.geometry import Box, Frame, Size
from models.imaging.postprocess import rendering, whole
from models.imaging.preprocess import check_input, prepare, seen
from models.network.adpc import AdpcNet
from models.network.confidence import Masks, make_mask
from models.network.configs import Extra
from models.network.flops import costs, step_costs
from models.network.network import Network, Progress, Stepwise, batched, one_of
from models.network.quantised import QuantisedNetwork
from models.quantisation import Precision, Scales


@dataclass
class ReferenceState(State):
    """A request's progress through the network, and its multiply-adds so far."""

    progress: Progress = field(default_factory=lambda: Progress(()))
    macs: float = 0.0


class ReferenceExecutor:
    """Runs a network of any family step by step on one device, a batch of requests at a time; see `AnytimeModel`.

    `scales`: of the features of a network of family adpc, to compute in plain integers; None to compute in float32.
    Raises ValueError if they do not fit the network.
    """

    executor = "reference"
    precision: Precision = "fp32"

    def __init__(self, network: Network, device: str = "cpu", scales: Scales | None = None) -> None:
        network = network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.network: Stepwise = network
        if scales is not None:
            if not isinstance(network, AdpcNet):
                raise ValueError(f"{network.config.name} has no eight bits; compute it in fp32")
            self.network, self.precision = QuantisedNetwork(network, scales), "int8"
        self.config = network.config
        self.device = device
        self.steps = network.steps

    def begin(self, image: NDArray[np.uint8], box: Box | None = None) -> ReferenceState:
        return self.start(*prepare(image, self.config, box))

    def start(self, inputs: Tensor, frame: Frame) -> ReferenceState:
        check_input(inputs, images=1)
        inputs = inputs.to(self.device, memory_format=torch.channels_last)
        height, width = inputs.shape[-2:]
        return ReferenceState(frame, (height, width), progress=self.network.start(inputs))

    def details(self, state: State) -> dict[str, Tensor]:
        """See `Network.details`."""
        assert isinstance(state, ReferenceState)
        network = self.network
        found = network.details(state.progress) if isinstance(network, Network) else {}
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    @torch.inference_mode()
    def advance(self, states: Sequence[State], slice_s: float | None = None) -> bool:
        position, own = check_batch(states, self.steps, ReferenceState)
        step = self.steps[position]
        before = [state.progress.masks for state in own]
        after = self.network.advance(batched([state.progress for state in own]), step)
        for index, state in enumerate(own):
            state.progress = one_of(after, index) if len(own) > 1 else after
            state.next_step = len(self.steps) if after.final else state.next_step + 1
            if not after.changed:
                state.macs -= self._step_macs(step, state.shape)
            if step.exit is not None:
                state.macs += self._macs(step.exit, state.shape, before[index])
                state.exit = self._exit(step.exit, state)
        return True

    def override(self, state: State, mask: Tensor, *, shrinking: bool = False) -> None:
        """See `Overridable.override`; the reference computes every position whatever `shrinking` promises.

        Raises ValueError on a mask of another shape or dtype, and before the first exit.
        """
        assert isinstance(state, ReferenceState)
        check_mask(mask, state.shape)
        state.latest()
        state.progress = replace(state.progress, masks=Masks(mask[None, None]))

    def render(self, state: State, extra: Extra | None = None) -> ExitMap:
        return whole(self.rendering(state, extra))

    def rendering(
        self, state: State, extra: Extra | None = None, out: MapMemory | None = None
    ) -> Iterator[ExitMap | None]:
        return rendering(state.latest(), self.config, state.frame, extra, out=out)

    def _exit(self, index: int, state: ReferenceState) -> Exit:
        scores, decided = state.progress.scores, state.progress.decided
        assert scores is not None and decided is not None
        masking = self.config.exit_masking
        masks = state.progress.masks
        mask = (masks.finest if masks else make_mask(scores, masking, index))[0, 0]
        height, width = seen(self.config, state.frame, state.shape)
        active_share = float(mask[:height, :width].float().mean())
        changed, final = state.progress.changed, state.progress.final
        return Exit(index, scores[0], decided[0, 0], mask, active_share, round(state.macs), changed, final)

    def _macs(self, index: int, shape: Size, masks: Masks | None) -> float:
        """Multiply-adds from the exit before to this one, under the mask that the exit before made."""
        groups = costs(self.config, *shape)[index - 1]
        shares: dict[Size, float] = {}
        if masks is not None:
            sizes = [size for size, masked in groups if masked]
            means = [masks.at(masks.finest.float().new_empty(1, 1, *size)).mean() for size in sizes]
            shares = dict(zip(sizes, torch.stack(means).tolist(), strict=True)) if means else {}
        return sum(cost.macs(shares.get(size, 1.0)) for (size, _), cost in groups.items())

    def _step_macs(self, step: Step, shape: Size) -> float:
        """Multiply-adds of one step, which its exit counts though it computed nothing."""
        return sum(cost.macs(1) for cost in dict(step_costs(self.config, *shape))[step].values())
