"""ADP-C (Liu et al., ICLR 2022): an HRNet with an exit after each stage, and masks from each exit to the next.

The trainable network with the reference meaning. What one request has reached is a `Progress`, a value of its own;
nothing of it is ever kept on a module. Imports no executor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from models.anytime import Step
from models.imaging.preprocess import check_input
from models.network.confidence import Masks, active
from models.network.configs import ModelConfig
from models.network.hrnet import Bottleneck, HighResolutionModule, Make, Transition, resize
from models.network.masked import Chain, Conv2d, MaskedConv2d


@dataclass(frozen=True)
class Progress:
    """How far a batch of inputs has come.

    `features`: the branches, finest first, each (N, C_b, h / 2^b, w / 2^b). `masks`: of the latest exit.
    `scores`: (N, outputs, h, w) of the latest exit after carry-over. `decided`: uint8 (N, 1, h, w), see `Exit`.
    """

    features: tuple[Tensor, ...]
    masks: Masks | None = None
    scores: Tensor | None = None
    decided: Tensor | None = None


class AdpcNet(nn.Module):
    """The network of a `ModelConfig`; every mode of the paper is a configuration of it.

    Tensor names are those of released checkpoints, so that their weights load as they are.
    """

    def __init__(self, config: ModelConfig) -> None:
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
            for exit_index in (1, 2, 3):
                channels = (256,) if exit_index == 1 else spec.channels(exit_index)
                self.add_module(
                    f"exit{exit_index}", self._head(dense if exit_index == 1 else masked, exit_index, channels)
                )
        self.last_layer = self._head(masked, 4, spec.channels(4))
        self.steps = self._steps()

    def _head(self, make: Make, exit_index: int, channels: tuple[int, ...]) -> Chain:
        """Section 2, "Head Redesign"; the last exit keeps the original head."""
        config = self.config
        redesigned = config.heads == "redesigned" and exit_index < 4
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
        depth = config.downsamplings[exit_index - 1]
        layers: list[nn.Module] = []
        for hop in range(depth):
            layers += [nn.AvgPool2d(2), make(total if hop == 0 else width, width, 1, bias=True)]
            layers += [nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [_upsample(), make(width, width, 1, bias=True)]
            layers += [nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()]
        return Chain(*layers, _upsample(), make(width, config.outputs, 1, bias=True))

    def _steps(self) -> tuple[Step, ...]:
        names = ["stem", "layer1", "exit1"]
        for stage, modules in enumerate(self.config.backbone.modules, start=2):
            names += [f"stage{stage}.{module}" for module in range(modules)] + [f"exit{stage}"]
        if self.config.heads == "one":
            names = [name for name in names if name not in ("exit1", "exit2", "exit3")]
            return tuple(Step(name, 1 if name == "exit4" else None) for name in names)
        return tuple(Step(name, int(name[4:]) if name.startswith("exit") else None) for name in names)

    def start(self, images: Tensor) -> Progress:
        """`images`: float (N, 3, H, W), normalised, H and W multiples of 32. Raises ValueError on other sizes."""
        check_input(images)
        return Progress((images,))

    def advance(self, progress: Progress, step: Step, adaptive: bool | None = None) -> Progress:
        """One step. `adaptive` makes masks at exits; None follows the configuration and `self.training`."""
        xs, masks = progress.features, progress.masks
        if step.name == "stem":
            x = self.relu(self.bn1(self.conv1(xs[0])))
            return replace(progress, features=(self.relu(self.bn2(self.conv2(x))),))
        if step.name == "layer1":
            return replace(progress, features=(self.layer1(xs[0]),))
        if step.module is not None:
            stage, place = step.module
            if place == 0:
                xs = self.get_submodule(f"transition{stage - 1}")(xs, masks)
            return replace(progress, features=self.get_submodule(step.name)(xs, masks))
        return self._exit(progress, step, self._adaptive() if adaptive is None else adaptive)

    def _exit(self, progress: Progress, step: Step, adaptive: bool) -> Progress:
        xs, masks = progress.features, progress.masks
        last = step is self.steps[-1]
        scores = self.head(step)(self.read(xs, step), masks)
        decided = torch.full_like(scores[:, :1], step.exit or 0, dtype=torch.uint8)
        if masks is not None and progress.scores is not None and progress.decided is not None:
            scores = torch.where(masks.positions, scores, progress.scores)  # equation 7
            decided = torch.where(masks.positions, decided, progress.decided)
        masking = self.config.masking
        masks = None
        if masking is not None and adaptive and not last:
            masks = Masks(active(scores.detach(), masking, step.exit or 0))
        return Progress(xs, masks, scores, decided)

    def head(self, step: Step) -> nn.Module:
        """The head of the exit that `step` completes."""
        return self.last_layer if step is self.steps[-1] else self.get_submodule(step.name)

    def read(self, xs: tuple[Tensor, ...], step: Step) -> Tensor:
        """What that head reads of the branches, finest first: (N, C, h, w) at the size of the finest."""
        plain_pose = self.config.task == "pose" and (step is self.steps[-1] or self.config.heads == "plain")
        if plain_pose or len(xs) == 1:
            return xs[0]
        return torch.cat([xs[0], *(resize(x, xs[0]) for x in xs[1:])], 1)

    def _adaptive(self) -> bool:
        masking = self.config.masking
        return masking is not None and masking.adaptivity in ("both", "training" if self.training else "inference")

    def exits(self, images: Tensor, adaptive: bool | None = None) -> Iterator[Progress]:
        """The progress at every exit; see `advance`."""
        progress = self.start(images)
        for step in self.steps:
            progress = self.advance(progress, step, adaptive)
            if step.exit is not None:
                yield progress

    def forward(self, images: Tensor, adaptive: bool | None = None) -> tuple[Tensor, ...]:
        """The scores of every exit, each (N, outputs, H / 4, W / 4): for training and evaluation."""
        return tuple(found.scores for found in self.exits(images, adaptive) if found.scores is not None)


def _convolution(
    window: int | None, channels: int, out: int, kernel: int, stride: int = 1, *, bias: bool = False
) -> nn.Module:
    if window is None:
        return Conv2d(channels, out, kernel, stride, kernel // 2, bias=bias)
    return MaskedConv2d(channels, out, kernel, stride, padding=kernel // 2, bias=bias, window=window)


def _upsample() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
