"""How many steps of a schedule fit into its time, and how they are divided into phases."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from models.gpu_day.variants import small
from models.training import tasks
from models.training.recipe import Phase, Recipe

MASKED_SHARE = 0.12
"""The share of the steps that train with masks; they come last."""
SMALL_SHARE = 0.4
"""The share of the steps with small crops, with which a segmentation schedule from random weights begins."""
EMA_SHARE = 1 / 12
"""The mean of the weights covers at most this share of the steps."""
MARGIN = 0.97
"""The share of the time left that a schedule plans to use."""


@dataclass(frozen=True)
class SchedulePlan:
    """One schedule to train. `name` also names its folder. `seconds`: what it may take from loading to scoring.
    `hold_out`: drives that are scored and not trained on. `init`: the model whose weights it starts from; None means
    random weights. `recipe`: fields of the recipe to change, named as in `Recipe.override`."""

    name: str
    seconds: float
    hold_out: tuple[str, ...] = ()
    init: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SchedulePlan":
        """Raises TypeError on an unknown field."""
        return cls(**{**data, "hold_out": tuple(data.get("hold_out", ()))})

    def applied(self, base: Recipe) -> Recipe:
        """`base` with this plan's changes, and with the number of steps that `base` has."""
        return replace(base.override(self.recipe), hold_out=self.hold_out, init=self.init)


@dataclass
class Rates:
    """Measured steps a second of full crops without masks, of full crops with masks, and of small crops."""

    full: float | None = None
    masked: float | None = None
    small: float | None = None

    def of(self, phase: Phase, full: Phase) -> float:
        """The rate of `phase`. `full` is a phase with full crops, which tells them from small ones."""
        rate = self.masked if phase.masks else self.full if phase.crop == full.crop else self.small
        if rate is None:
            raise RuntimeError(f"the rate of {phase} was not measured")
        return rate


def begins_small(recipe: Recipe, task: object) -> bool:
    """Returns whether the schedule of `task` begins with small crops: only a segmentation from random weights does.

    Two networks were scored on a drive that neither was trained on. The one that began with small crops had 4 mIoU more
    at exit 1 than the one that saw full crops only (docs/gpu.md).
    """
    return recipe.init is None and not isinstance(task, tasks.Pose)


def fitted(base: Recipe, seconds: float, rates: Rates) -> Recipe:
    """`base` with as many steps as fit into `seconds`: small crops first, if `rates.small` is known, and masks last."""
    last = base.phases[-1]
    forms = [replace(last, masks=False), replace(last, masks=True)]
    shares = [1 - MASKED_SHARE, MASKED_SHARE]
    if rates.small is not None:
        forms, shares = [small(last), *forms], [SMALL_SHARE, 1 - MASKED_SHARE - SMALL_SHARE, MASKED_SHARE]
    cost = sum(share / rates.of(form, last) for share, form in zip(shares, forms, strict=True))
    steps = max(int(seconds / cost), 3)
    counts = [max(round(share * steps), 1) for share in shares]
    counts[-2] = max(steps - sum(counts) + counts[-2], 1)
    phases = tuple(replace(form, steps=count) for form, count in zip(forms, counts, strict=True))
    return replace(base, phases=phases, ema_steps=_ema(base, steps))


def refitted(recipe: Recipe, done: int, took_s: float, left_s: float, rates: Rates) -> Recipe:
    """`recipe` with its remaining steps fitted to the `left_s` seconds that are left, given that its first `done` steps
    took `took_s` seconds."""
    last = recipe.phases[-1]
    before = 0
    gone: list[int] = []
    for phase in recipe.phases:
        gone.append(min(max(done - before, 0), phase.steps))
        before += phase.steps
    seconds = [1 / rates.of(phase, last) for phase in recipe.phases]
    expected_s = sum(steps * each for steps, each in zip(gone, seconds, strict=True))
    rest = [phase.steps - steps for phase, steps in zip(recipe.phases, gone, strict=True)]
    rest_s = sum(steps * each for steps, each in zip(rest, seconds, strict=True)) * took_s / expected_s
    share = left_s * MARGIN / rest_s
    phases = tuple(
        replace(phase, steps=steps + (max(int(more * share), 1) if more else 0))
        for phase, steps, more in zip(recipe.phases, gone, rest, strict=True)
    )
    return replace(recipe, phases=phases)


def _ema(base: Recipe, steps: int) -> int:
    return max(min(base.ema_steps, round(EMA_SHARE * steps)), 1)
