"""ADP-C (Liu et al., ICLR 2022): an HRNet with an exit after each stage, and masks from each exit to the next.

This network is trained, and its results are the reference that every executor is compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from models.anytime import Step
from models.network.adpc_configs import AdpcConfig
from models.network.confidence import Masks, make_mask
from models.network.hrnet import Bottleneck, HighResolutionModule, Make, Transition, resize
from models.network.masked import Chain, Conv2d, MaskedConv2d
from models.network.network import Network, Progress


@dataclass(frozen=True)
class Stem(Step):
    """Two strided convolutions: the image at a quarter of its size."""

    @property
    def name(self) -> str:
        return "stem"


@dataclass(frozen=True)
class Layer1(Step):
    """The bottlenecks of the first stage."""

    @property
    def name(self) -> str:
        return "layer1"


@dataclass(frozen=True)
class StageModule(Step):
    """The `HighResolutionModule` at `index` (from 0) of `stage` (2 to 4). The step of index 0 also computes the
    transition into the stage."""

    stage: int
    index: int

    @property
    def name(self) -> str:
        return f"stage{self.stage}.{self.index}"


@dataclass(frozen=True)
class ExitHead(Step):
    """The head after `stage` (1 to 4), whose scores complete the exit numbered `exit`."""

    stage: int
    exit: int = field(kw_only=True)

    @property
    def name(self) -> str:
        return f"exit{self.stage}"


class AdpcNet(Network):
    """HRNet with one exit or four; every mode of the paper is a configuration of it.

    Parameters have the names of the released checkpoints, so that these load without renaming.
    """

    config: AdpcConfig

    def __init__(self, config: AdpcConfig) -> None:
        super().__init__()
        self.config = config
        spec = config.backbone
        momentum = spec.bn_momentum
        dense = partial(_convolution, None)
        masked: Make = partial(_convolution, config.masking.window if config.masking else None)
        self.conv1 = dense(3, 64, 3, 2)
        self.bn1 = nn.BatchNorm2d(64, momentum=momentum)
        self.conv2 = dense(64, 64, 3, 2)
        self.bn2 = nn.BatchNorm2d(64, momentum=momentum)
        self.relu = nn.ReLU()
        widths = [64, *([256] * (spec.layer1_blocks - 1))]
        self.layer1 = Chain(*(Bottleneck(dense, width, 64, momentum) for width in widths))
        before: tuple[int, ...] = (256,)
        for stage, modules in enumerate(spec.modules, start=2):
            after = spec.channels(stage)
            self.add_module(f"transition{stage - 1}", Transition(masked, before, after, momentum))
            finest_only = [
                stage == 4 and m == modules - 1 and spec.last_module_fuses_finest_only for m in range(modules)
            ]
            self.add_module(
                f"stage{stage}",
                nn.ModuleList(HighResolutionModule(masked, spec, stage, finest) for finest in finest_only),
            )
            before = after
        if config.heads != "one":
            self.exit1 = self._head(dense, 1, (256,))
            for stage in (2, 3):
                self.add_module(f"exit{stage}", self._head(masked, stage, spec.channels(stage)))
        self.last_layer = self._head(masked, 4, spec.channels(4))
        self.steps = self._steps()

    def _head(self, make: Make, stage: int, channels: tuple[int, ...]) -> Chain:
        """The head after a stage whose branches have these channels. Heads before the last may be redesigned (section
        2, "Head Redesign"); the last head always has the original design."""
        config = self.config
        redesigned = config.heads == "redesigned" and stage < 4
        momentum = config.backbone.bn_momentum
        if config.task == "pose" and not redesigned:
            return Chain(make(channels[0], config.outputs, 1, bias=True))
        total = sum(channels)
        if not redesigned:
            return Chain(
                make(total, total, 1, bias=True),
                nn.BatchNorm2d(total, momentum=momentum),
                nn.ReLU(),
                make(total, config.outputs, 1, bias=True),
            )
        width = config.head_channels
        depth = config.downsamplings[stage - 1]
        layers: list[nn.Module] = []
        for hop in range(depth):
            layers += [nn.AvgPool2d(2), make(total if hop == 0 else width, width, 1, bias=True)]
            layers += [nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [_upsample(), make(width, width, 1, bias=True)]
            layers += [nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()]
        return Chain(*layers, _upsample(), make(width, config.outputs, 1, bias=True))

    def _steps(self) -> tuple[Step, ...]:
        steps: list[Step] = [Stem(), Layer1()]
        if self.config.heads != "one":
            steps.append(ExitHead(1, exit=1))
        for stage, modules in enumerate(self.config.backbone.modules, start=2):
            steps += [StageModule(stage, index) for index in range(modules)]
            if self.config.heads != "one":
                steps.append(ExitHead(stage, exit=stage))
        if self.config.heads == "one":
            steps.append(ExitHead(4, exit=1))
        return tuple(steps)

    def advance(self, progress: Progress, step: Step, adaptive: bool | None = None) -> Progress:
        xs, masks = progress.features, progress.masks
        match step:
            case Stem():
                x = self.relu(self.bn1(self.conv1(xs[0])))
                return replace(progress, features=(self.relu(self.bn2(self.conv2(x))),))
            case Layer1():
                return replace(progress, features=(self.layer1(xs[0]),))
            case StageModule():
                if step.index == 0:
                    xs = self.transition(step.stage)(xs, masks)
                return replace(progress, features=self.module(step)(xs, masks))
            case ExitHead():
                scores = self.head(step)(self.read(xs, step), masks)
                return self.complete(progress, step, scores, adaptive)
        raise TypeError(f"{step} is no step of {type(self).__name__}")

    def complete(self, progress: Progress, step: ExitHead, scores: Tensor, adaptive: bool | None = None) -> Progress:
        """The progress after `step`, whose head gives `scores` (N, outputs, h, w); for `adaptive` see `advance`."""
        masks = progress.masks
        decided = torch.full_like(scores[:, :1], step.exit, dtype=torch.uint8)
        if masks is not None and progress.scores is not None and progress.decided is not None:
            scores = torch.where(masks.finest, scores, progress.scores)  # equation 7
            decided = torch.where(masks.finest, decided, progress.decided)
        masking = self.config.masking
        masks = None
        adaptive = self._adaptive() if adaptive is None else adaptive
        if masking is not None and adaptive and step.exit < self.config.exits:
            masks = Masks(make_mask(scores.detach(), masking, step.exit))
        return replace(progress, masks=masks, scores=scores, decided=decided)

    def transition(self, stage: int) -> Transition:
        """The layers that make the branches of `stage` from those of the stage before."""
        transition = self.get_submodule(f"transition{stage - 1}")
        assert isinstance(transition, Transition)
        return transition

    def module(self, step: StageModule) -> HighResolutionModule:
        """The layers of `step`, without the transition into its stage."""
        module = self.get_submodule(f"stage{step.stage}.{step.index}")
        assert isinstance(module, HighResolutionModule)
        return module

    def head(self, step: ExitHead) -> Chain:
        """The head whose scores `step` computes."""
        head = self.last_layer if step.stage == 4 else self.get_submodule(f"exit{step.stage}")
        assert isinstance(head, Chain)
        return head

    def read(self, xs: tuple[Tensor, ...], step: ExitHead) -> Tensor:
        """The input of the head of `step`, (N, C, h, w) at the size of the finest branch. `xs`: branches, the finest
        first."""
        plain_pose = self.config.task == "pose" and (step.stage == 4 or self.config.heads == "plain")
        if plain_pose or len(xs) == 1:
            return xs[0]
        return torch.cat([xs[0], *(resize(x, xs[0]) for x in xs[1:])], 1)

    def _adaptive(self) -> bool:
        masking = self.config.masking
        return masking is not None and masking.adaptivity in ("both", "training" if self.training else "inference")

    def heads(self) -> Sequence[nn.Module]:
        return [self.head(step) for step in self.steps if isinstance(step, ExitHead)]

    def in_backbone(self, name: str) -> bool:
        return name.startswith(("conv1.", "bn1.", "conv2.", "bn2.", "layer1.", "transition", "stage"))

    def own_name(self, released: str, tensor: Tensor) -> str | None:
        """HRNet calls the head of pose estimation `final_layer`. The released code of ADP-C also saves the squared
        distances of its interpolation window, which here follow from the configuration."""
        if released.endswith(".square_dis"):
            self._check_window(released, tensor)
            return None
        return released.replace("final_layer.", "last_layer.0.", 1) if released.startswith("final_layer.") else released

    def _check_window(self, released: str, tensor: Tensor) -> None:
        masking = self.config.masking
        if masking is None or tensor.shape != (masking.window, masking.window):
            raise ValueError(
                f"{released} has a window of {'x'.join(map(str, tensor.shape))}, but {self.config.name} has "
                f"{f'{masking.window}x{masking.window}' if masking else 'no masks'}; choose one with that window"
            )

    def may_lack(self, name: str) -> bool:
        """Every Lambda may be missing, and then keeps its initial value, as when the paper starts from ImageNet
        (appendix C)."""
        return name.endswith(".Lambda")

    def passes_over(self, name: str) -> bool:
        """The last module of this network may fuse into the finest branch only; then the other network's fuse layers
        into coarser branches are left out."""
        return self.config.backbone.last_module_fuses_finest_only and ".fuse_layers." in name


def _convolution(
    window: int | None, channels: int, out: int, kernel: int, stride: int = 1, *, bias: bool = False
) -> nn.Module:
    if window is None:
        return Conv2d(channels, out, kernel, stride, kernel // 2, bias=bias)
    return MaskedConv2d(channels, out, kernel, stride, padding=kernel // 2, bias=bias, window=window)


def _upsample() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
