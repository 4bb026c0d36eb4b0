"""The multiscale deep equilibrium network (MDEQ; Bai, Koltun and Kolter, NeurIPS 2020) as an anytime network.

The image is injected once. Then f is evaluated once a step, and the solver's answer, the iterate with the smallest
residual, is decoded after the iterations that the configuration names. There are no masks: group norms couple all
positions of a branch. Modules have the names of the released checkpoints.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anytime import Step
from models.network.mdeq_configs import MdeqConfig
from models.network.network import Network, Progress
from models.network.solver import Anderson, Broyden, FixedPointSolver, PlainIteration, Solution

BRANCHES = 4
BN_MOMENTUM = 0.01
INITIAL_STD = 0.01
COPIES = ("deq.", "fullstage_copy.")
"""Modules of a released checkpoint that hold f again."""


@dataclass(frozen=True)
class Injection(Step):
    """The stem and the injection into the finest branch."""

    @property
    def name(self) -> str:
        return "injection"


@dataclass(frozen=True)
class Evaluation(Step):
    """One evaluation of f, at iterate number `iteration` (0 is the start, z = 0)."""

    iteration: int

    @property
    def name(self) -> str:
        return f"f{self.iteration}"


@dataclass(frozen=True)
class Decoding(Step):
    """The head on the answer after `iteration` iterations."""

    iteration: int
    exit: int = field(kw_only=True)

    @property
    def name(self) -> str:
        return f"decode{self.iteration}"


@dataclass(frozen=True)
class MdeqProgress(Progress):
    """`features`: the image, then the injection of the finest branch, (N, c0, h, w). `solution`: see `solver`; None
    before the first evaluation."""

    solution: Solution | None = None


class WeightNormConv2d(nn.Conv2d):
    """A convolution whose weight is g * v / |v|, per output channel (Salimans and Kingma, 2016).

    `weight` is computed when it is read; without gradients it is computed again only if a parameter has changed.
    """

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2, bias=False)
        initial = self.weight.detach()
        del self.weight
        self.weight_v = nn.Parameter(initial)
        self.weight_g = nn.Parameter(_norms(initial))
        self._folded: tuple[object, Tensor] | None = None

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name == "weight" and "weight_g" in self._parameters:
            return self._weight()
        return super().__getattr__(name)

    def _weight(self) -> Tensor:
        v, g = self.weight_v, self.weight_g
        if torch.is_grad_enabled() or v.is_inference():  # the latter have no version counter
            return v * (g / _norms(v))
        key = (v.data_ptr(), v._version, g.data_ptr(), g._version)
        if self._folded is None or self._folded[0] != key:
            self._folded = key, v * (g / _norms(v))
        return self._folded[1]


class Block(nn.Module):
    """The residual block of one branch. ReLU stands before the last norm, and the injection is added before the second
    one."""

    def __init__(self, channels: int, expansion: int, groups: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.conv1 = WeightNormConv2d(channels, wide, 3)
        self.gn1 = nn.GroupNorm(groups, wide)
        self.conv2 = WeightNormConv2d(wide, channels, 3)
        self.gn2 = nn.GroupNorm(groups, channels)
        self.gn3 = nn.GroupNorm(groups, channels)

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """z: (N, channels, h, w). u: the injection, of the same shape, or None for zeros."""
        x = self.conv2(F.relu(self.gn1(self.conv1(z))))
        if u is not None:
            x = x + u
        found: Tensor = self.gn3(F.relu(self.gn2(x) + z))
        return found


class Branch(nn.Module):
    """One branch of f. The released code allows several blocks; every configuration has one."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        found: Tensor = self.blocks[0](z, u)
        return found


class NormedConv(nn.Module):
    """A convolution and its group norm."""

    def __init__(self, conv: nn.Conv2d, groups: int) -> None:
        super().__init__()
        self.conv = conv
        self.gnorm = nn.GroupNorm(groups, conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.gnorm(self.conv(x))
        return found


class Fusion(nn.Module):
    """From branch j to branch i: the branch as it is, a 1x1 and nearest upsampling, or 3x3 of stride 2."""

    net: nn.Module

    def __init__(self, config: MdeqConfig, i: int, j: int) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.scale = 2 ** max(0, j - i)
        if j > i:
            self.net = NormedConv(nn.Conv2d(channels[j], channels[i], 1, bias=False), groups)
        elif j < i:
            widths = [*[channels[j]] * (i - j), channels[i]]
            self.net = nn.ModuleList(
                NormedConv(nn.Conv2d(before, after, 3, 2, 1, bias=False), groups) for before, after in pairwise(widths)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.scale > 1:
            return F.interpolate(self.net(x), scale_factor=self.scale, mode="nearest")
        if not isinstance(getattr(self, "net", None), nn.ModuleList):
            return x
        for number, layer in enumerate(self.net.children()):
            x = layer(F.relu(x) if number else x)
        return x


class EquilibriumLayer(nn.Module):
    """f(z, u)."""

    def __init__(self, config: MdeqConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.branches = nn.ModuleList(Branch(Block(width, config.expansion, groups)) for width in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(Fusion(config, i, j) for j in range(BRANCHES)) for i in range(BRANCHES)
        )
        self.post_fuse_layers = nn.ModuleList(
            NormedConv(WeightNormConv2d(width, width, 1), groups // 2) for width in channels
        )

    def forward(self, z: Sequence[Tensor], u: Tensor) -> list[Tensor]:
        """z: a tensor (N, channels, h, w) for each branch, the finest first. u: the injection of the finest branch."""
        injections = (u, *[None] * (BRANCHES - 1))
        xs = [branch(x, injection) for branch, x, injection in zip(self.branches, z, injections, strict=True)]
        found = []
        for post, fusions in zip(self.post_fuse_layers, self.fuse_layers, strict=True):
            assert isinstance(fusions, nn.ModuleList)
            fused = torch.stack([fuse(x) for fuse, x in zip(fusions, xs, strict=True)]).sum(0)
            found.append(post(F.relu(fused)))
        return found


class BranchwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of branches that are upsampled and concatenated.

    A 1x1 convolution and bilinear upsampling commute, so each branch is convolved at its own size, and the results are
    upsampled and added. That is exact but for rounding, and takes a seventh of the multiply-adds.
    """

    def __init__(self, branch_channels: tuple[int, ...], out: int) -> None:
        super().__init__(sum(branch_channels), out, 1)
        self.branch_channels = branch_channels

    def forward(self, xs: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """xs: (N, c, h, w) for each branch, the finest first. Returns (N, out, h, w) at the size of the first."""
        weights = torch.split(self.weight, list(self.branch_channels), dim=1)
        finest, *coarser = (F.conv2d(x, weight) for x, weight in zip(xs, weights, strict=True))
        for x in coarser:
            finest = finest + F.interpolate(x, finest.shape[2:], mode="bilinear", align_corners=True)
        assert self.bias is not None
        return finest + self.bias[:, None, None]

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of an output of that size."""
        inputs = sum(
            channels * (height >> branch) * (width >> branch) for branch, channels in enumerate(self.branch_channels)
        )
        return self.out_channels * inputs


class MdeqNet(Network):
    """See the module's text."""

    config: MdeqConfig

    def __init__(self, config: MdeqConfig) -> None:
        super().__init__()
        self.config = config
        width, total = config.channels[0], sum(config.channels)
        self.downsample = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width, momentum=BN_MOMENTUM),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width, momentum=BN_MOMENTUM),
            nn.ReLU(),
        )
        self.stage0 = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width, momentum=BN_MOMENTUM), nn.ReLU()
        )
        self.fullstage = EquilibriumLayer(config)
        self.last_layer = nn.Sequential(
            BranchwiseConv2d(config.channels, total),
            nn.BatchNorm2d(total, momentum=BN_MOMENTUM),
            nn.ReLU(),
            nn.Conv2d(total, config.outputs, 1),
        )
        self._initialise()
        self.solver = self._solver()
        self.steps = tuple(self._steps())

    def _initialise(self) -> None:
        """Initial weights from N(0, 0.01^2), those under weight norm aside; as published."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and not isinstance(layer, WeightNormConv2d):
                nn.init.normal_(layer.weight, std=INITIAL_STD)
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, std=INITIAL_STD)

    def _solver(self) -> FixedPointSolver:
        memory = self.config.memory
        match self.config.solver:
            case "broyden":
                return Broyden(memory, 1.0 if self.config.first_step == "corrected" else -1.0)
            case "anderson":
                return Anderson(memory)
            case "plain":
                return PlainIteration(memory)

    def _steps(self) -> Iterator[Step]:
        yield Injection()
        numbers = {iteration: exit_index for exit_index, iteration in enumerate(self.config.decoded, 1)}
        for iteration in range(self.config.decoded[-1] + 1):
            yield Evaluation(iteration)
            if iteration in numbers:
                yield Decoding(iteration, exit=numbers[iteration])

    def start(self, images: Tensor) -> MdeqProgress:
        return MdeqProgress(super().start(images).features)

    def advance(self, progress: Progress, step: Step, adaptive: bool | None = None) -> Progress:
        assert isinstance(progress, MdeqProgress)
        match step:
            case Injection():
                injection = self.stage0(self.downsample(progress.features[0]))
                return replace(progress, features=(injection,))
            case Evaluation():
                return replace(progress, solution=self._evaluate(progress))
            case Decoding():
                assert progress.solution is not None
                scores = self.last_layer(self._branches(progress.solution.best, progress.features[0]))
                decided = torch.full_like(scores[:, :1], step.exit, dtype=torch.uint8)
                return replace(progress, scores=scores, decided=decided)
        raise TypeError(f"{step} is no step of {type(self).__name__}")

    def _evaluate(self, progress: MdeqProgress) -> Solution:
        """The solution after one more evaluation of f; unchanged if every request has ended."""
        injection, solution = progress.features[0], progress.solution
        if solution is None:
            solution = self.solver.start(injection.new_zeros(len(injection), self._values(injection)))
        if bool(solution.ended.all()):
            return solution
        z = self.fullstage(self._branches(solution.z, injection), injection)
        return self.solver.advance(solution, torch.cat([x.flatten(1) for x in z], 1), unrolled=self.training)

    def _shapes(self, injection: Tensor) -> list[tuple[int, int, int]]:
        """(channels, height, width) of every branch; for the injection (N, c0, h, w)."""
        height, width = injection.shape[2:]
        return [(c, height >> branch, width >> branch) for branch, c in enumerate(self.config.channels)]

    def _values(self, injection: Tensor) -> int:
        return sum(c * height * width for c, height, width in self._shapes(injection))

    def _branches(self, z: Tensor, injection: Tensor) -> list[Tensor]:
        """Views of the branches in z, (N, n)."""
        shapes = self._shapes(injection)
        parts = torch.split(z, [c * height * width for c, height, width in shapes], 1)
        return [part.view(len(z), *shape) for part, shape in zip(parts, shapes, strict=True)]

    def details(self, progress: Progress) -> Mapping[str, Tensor]:
        """`residuals`: |f(z) - z| of every iterate so far, float32 (iterations + 1,) of the first request."""
        assert isinstance(progress, MdeqProgress)
        found = () if progress.solution is None else progress.solution.residuals
        return {"residuals": torch.stack([residual[0] for residual in found])} if found else {}

    def heads(self) -> Sequence[nn.Module]:
        return [self.last_layer]

    def in_backbone(self, name: str) -> bool:
        return name.startswith(("downsample.", "stage0.", "fullstage."))

    def own_name(self, released: str, tensor: Tensor) -> str | None:
        """Released checkpoints hold f two more times."""
        return None if released.startswith(COPIES) else released


def _norms(weight: Tensor) -> Tensor:
    """The norm of every output channel's weights: (out, in, k, k) -> (out, 1, 1, 1)."""
    norms: Tensor = weight.flatten(1).norm(dim=1)[:, None, None, None]
    return norms
