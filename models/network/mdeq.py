"""The multiscale deep equilibrium network (MDEQ; Bai, Koltun and Kolter, NeurIPS 2020) as an anytime network.

The image is injected once. Then f is evaluated once a step, and the solver's answer, the iterate with the smallest
residual, is decoded after the iterations that the configuration names. There are no masks: group norms couple all
positions of a branch. Modules have the names of the released checkpoints.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from models.anytime import Step
from models.network.mdeq_configs import MdeqConfig
from models.network.mdeq_layers import BranchwiseConv2d, EquilibriumLayer, WeightNormConv2d
from models.network.network import Network, Progress
from models.network.solver import Anderson, Broyden, FixedPointSolver, PlainIteration, Solution

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
    before the first evaluation. `decoded`: (N,), the residuals of the answers that the latest exit decoded."""

    solution: Solution | None = None
    decoded: Tensor | None = None


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
                return self._evaluate(progress, adaptive)
            case Decoding():
                return self._decode(progress, step.exit, adaptive)
        raise TypeError(f"{step} is no step of {type(self).__name__}")

    def _evaluate(self, progress: MdeqProgress, adaptive: bool | None) -> MdeqProgress:
        """The progress after one more evaluation of f, which is spared once every request has ended."""
        injection, solution = progress.features[0], progress.solution
        if solution is None:
            solution = self.solver.start(injection.new_zeros(len(injection), self._values(injection)))
        if adaptive is not False and bool(solution.ended.all()):
            return replace(progress, changed=False)
        z = self.fullstage(self._branches(solution.z, injection), injection)
        solution = self.solver.advance(solution, torch.cat([x.flatten(1) for x in z], 1), unrolled=self.training)
        return replace(progress, solution=solution, changed=True)

    def _decode(self, progress: MdeqProgress, exit_index: int, adaptive: bool | None) -> MdeqProgress:
        """The progress at an exit. Decoding is spared if no iterate has been better since the exit before."""
        solution = progress.solution
        assert solution is not None
        final = adaptive is not False and bool(solution.ended.all())
        same = progress.decoded is not None and torch.equal(progress.decoded, solution.lowest)
        if adaptive is not False and same:
            return replace(progress, changed=False, final=final)
        scores = self.last_layer(self._branches(solution.best, progress.features[0]))
        decided = torch.full_like(scores[:, :1], exit_index, dtype=torch.uint8)
        decoded = solution.lowest
        return replace(progress, scores=scores, decided=decided, decoded=decoded, changed=True, final=final)

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
