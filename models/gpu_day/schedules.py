"""Trains on a GPU that is available for minutes only: each schedule takes as many steps as its time allows."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.directory import ZOO
from models.gpu_day.profile import PROFILE, winner
from models.gpu_day.sizing import MARGIN, Rates, SchedulePlan, begins_small, fitted, refitted
from models.gpu_day.variants import (
    BEST,
    CPU,
    PLAIN,
    TIMED,
    Clock,
    Line,
    Variant,
    device_name,
    forget,
    prepare,
    rounded,
    small,
    timed_steps,
    wait,
    write,
)
from models.network.configs import ModelConfig
from models.network.families import config
from models.training import tasks
from models.training.graph import Update
from models.training.recipe import FILE, Recipe
from models.training.train import Run, stream

TRAINING = "training.json"
CHECKS = 8
"""Into how many parts a schedule is divided; after each but the last, it is refitted to the time that is left."""
AHEAD = 10
"""How many steps may be queued on the GPU; the deadline is noticed that many steps late."""
SCORING_S = 12.0
"""The time that is assumed for saving and scoring until it has been measured."""
SAMPLE_EVERY = 25
"""Steps between points of the training curve."""


@dataclass
class Trainer:
    """Trains one schedule after another with the same captured CUDA graphs. These hold addresses, so weights, moments
    and class weights are overwritten in place.

    `variant`: the form of the training step. `distillation`: the weight of distillation from the last exit. `timed`:
    steps that measure a rate. `scoring_s`: the time to keep for saving and scoring. The other fields are set on use.
    """

    model: ModelConfig
    base: Recipe
    data: Path
    device: torch.device
    variant: Variant
    distillation: float = 0.0
    clock: Clock = time.monotonic
    timed: int = TIMED
    scoring_s: float = 0.0
    run: Run | None = None
    first: Any = None
    update: Update | None = None
    rates: Rates = field(default_factory=Rates)

    def begin(self, task: Any, recipe: Recipe) -> tuple[Run, Update]:
        """Puts the run at step 0, with the weights that `recipe` starts from."""
        fresh = Run.begin(self.model, recipe, self.device, speed=self.variant.speed)
        if self.run is None or self.update is None:
            self.run, self.first = fresh, task
            self.update = prepare(fresh, task, self.variant, self.distillation)
        else:
            self.run.network.load_state_dict(fresh.network.state_dict())
            self.run.mean.load_state_dict(fresh.mean.state_dict())
            for state in self.run.optimizer.state.values():
                for value in state.values():
                    value.zero_()
            for group, new in zip(self.run.optimizer.param_groups, fresh.optimizer.param_groups, strict=True):
                group["weight_decay"] = new["weight_decay"]
            self.run.step = self.run.since = 0
            self.run.losses.zero_()
            if task is not self.first and hasattr(task, "weights"):
                self.first.weights.copy_(task.weights)
        self.run.network.train()
        return self.run, self.update

    def measure(self, task: Any, recipe: Recipe, *names: str) -> None:
        """Captures and times a step of each form in `names` that has no rate yet. It changes the weights, so `begin`
        must follow."""
        wanted = [name for name in names if getattr(self.rates, name) is None]
        if not wanted:
            return
        run, update = self.begin(task, replace(recipe, init=None))
        run.set_rate(1e-4)
        full = recipe.phases[-1]
        forms = {"full": replace(full, masks=False), "masked": replace(full, masks=True), "small": small(full)}
        for name in wanted:
            phase = replace(forms[name], steps=10_000)
            self._use(task, replace(recipe, phases=(phase,)))
            setattr(self.rates, name, timed_steps(run, task, update, phase, False, self.timed, self.clock))

    def schedule(self, plan: SchedulePlan, output: Path, deadline: float, line: Line) -> dict[str, Any]:
        """Trains `plan` with a learning rate that reaches 0 before `deadline`, and writes the model directory `output`.
        Returns scores, steps, rates and losses, as JSON."""
        started = self.clock()
        recipe = plan.applied(self.base)
        if plan.init and plan.hold_out:
            line(f"{plan.name}: {plan.init} may have been trained on {', '.join(plan.hold_out)}; its score says little")
        task: Any = tasks.load(self.model, recipe, self.data, self.device)
        wait(self.device)  # threads that load use streams of their own
        line(f"{plan.name}: {task.examples} examples after {self.clock() - started:.1f} s")
        self.measure(task, recipe, "full", "masked")
        brief = begins_small(recipe, task)
        if brief:
            self.measure(task, recipe, "small")
        line(f"{plan.name}: steps/s {asdict(self.rates)} after {self.clock() - started:.1f} s")
        run, update = self.begin(task, recipe)
        before = self.score(task, run) if plan.init else None
        if before:
            line(f"{plan.name}: {plan.init} scores {_percent(before)}")
        left = (deadline - self.clock() - self.scoring_s) * MARGIN
        rates = self.rates if brief else replace(self.rates, small=None)
        recipe = fitted(recipe, left, rates)
        line(f"{plan.name}: {recipe.steps} steps in {left:.0f} s, {_phases(recipe)}, mean over {recipe.ema_steps}")
        recipe, curve = self.train(run, update, task, recipe, deadline - self.scoring_s, line)
        trained = self.clock()
        run.save_mean(output)
        recipe.save(output)
        scores = self.score(task, run)
        self.scoring_s = max(self.scoring_s, self.clock() - trained)
        held_out = list(plan.hold_out) or "none: scored on the validation split, which the recipe may train on"
        result = {
            "name": plan.name, "scores": scores, "scores_of_init": before, "held_out": held_out, "init": plan.init,
            "distillation": self.distillation, "steps": run.step, "planned": recipe.steps,
            "rates": asdict(self.rates), "seconds": self.clock() - started, "curve": curve,
        }  # fmt: skip
        line(
            f"{plan.name}: scores {_percent(scores)} after {run.step} of {recipe.steps} steps, "
            f"{result['seconds']:.0f} s"
        )
        return result

    def score(self, task: Any, run: Run) -> list[float]:
        """The score of each exit of the mean weights, in float32. cuDNN does not search for its fastest algorithm here,
        because the search takes longer than it saves."""
        tries, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            with torch.autocast(self.device.type, enabled=False):
                found: list[float] = task.score(run.mean)
        finally:
            torch.backends.cudnn.benchmark = tries
        return found

    def _use(self, task: Any, recipe: Recipe) -> None:
        task.recipe, task.sampler = recipe, tasks.Sampler(task.examples, recipe)

    def train(  # noqa: PLR0917
        self, run: Run, update: Update, task: Any, recipe: Recipe, deadline: float, line: Line
    ) -> tuple[Recipe, list[dict[str, Any]]]:
        """Trains until the recipe's steps are done or `deadline` has come. Returns the recipe as last refitted, and
        the losses at every `SAMPLE_EVERY`th step."""
        started = self.clock()
        self._use(task, recipe)
        curve: list[tuple[int, Tensor]] = []
        queued: list[Any] = []
        checks = 1
        while run.step < recipe.steps and self.clock() < deadline:
            run.set_rate(recipe.learning_rate_at(run.step))
            torch.manual_seed(recipe.seed * 9_000_011 + run.step)
            masks = recipe.phase_at(run.step).masks
            inputs, targets = task.batch(run.step)
            found = update(inputs, targets, None if masks else False)
            run.step += 1
            run.follow(1 / min(recipe.ema_steps, 1 + run.step / 10))
            if self.device.type == "cuda":
                queued.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
                queued[-1].record()
                if len(queued) > AHEAD:
                    queued.pop(0).synchronize()
            if run.step % SAMPLE_EVERY == 0 or run.step == recipe.steps:
                curve.append((run.step, found.clone()))
            if run.step * CHECKS >= checks * recipe.steps and checks < CHECKS:
                checks += 1
                wait(self.device)
                if not found.isfinite().all():
                    raise FloatingPointError(f"the losses are {found.tolist()} after {run.step} steps")
                took = self.clock() - started
                recipe = refitted(recipe, run.step, took, deadline - self.clock(), self.rates)
                task.recipe = task.sampler.recipe = recipe
                line(f"  step {run.step} of {recipe.steps}: losses {rounded(found)}, {took:.0f} s")
        wait(self.device)
        return recipe, [{"step": step, "losses": values.tolist()} for step, values in curve]


def schedules(
    data: Path,
    output: Path,
    deadline: float,
    line: Line,
    device: str = "cuda",
    *,
    plans: Sequence[SchedulePlan],
    name: str = "camvid-adpc-w18",
    distillation: float = 0.0,
    variant: Variant | None = None,
    clock: Clock = time.monotonic,
    timed: int = TIMED,
    model: ModelConfig | None = None,
    recipe: Recipe | None = None,
) -> list[dict[str, Any]]:
    """Trains every plan, one after the other, in this process. After each it writes the model directory `output/PLAN/`
    and the curves and scores of all plans so far, in `TRAINING`. If a plan fails, the next one is trained.

    `variant`: the form of the training step; None means the fastest in `output/profile.json`, or a fixed one for the
    device if there is no such file.
    """
    where = torch.device(device)
    usual = BEST if where.type == "cuda" else CPU
    chosen = variant or winner(output / PROFILE) or usual
    output.mkdir(parents=True, exist_ok=True)
    line(f"train: {chosen.name} on {device_name(where)}")
    base = recipe or Recipe.load(ZOO / name / FILE)
    scoring_s = SCORING_S if where.type == "cuda" else 0.0
    results: list[dict[str, Any]] = []

    def trained_by(form: Variant) -> Trainer:
        return Trainer(model or config(name), base, data, where, form, distillation, clock, timed, scoring_s)

    trainer = trained_by(chosen)
    with stream(where):
        for plan in plans:
            ends = min(deadline, clock() + plan.seconds)
            try:
                results.append(trainer.schedule(plan, output / plan.name, ends, line))
            except Exception as error:  # any error ends this plan only
                results.append({"name": plan.name, "error": f"{type(error).__name__}: {error}"[:1000]})
                line(f"{plan.name}: failed: {results[-1]['error']}")
                if chosen.kernels:
                    chosen = PLAIN
                    line(f"train: from here on {chosen.name}")
                trainer = trained_by(chosen)
                forget(where)
            write(output / TRAINING, {"variant": asdict(chosen), "runs": results})
    return results


def _phases(recipe: Recipe) -> str:
    return ", ".join(
        f"{phase.steps} of {phase.batch} x {phase.crop[0]}x{phase.crop[1]}{' masked' if phase.masks else ''}"
        for phase in recipe.phases
    )


def _percent(scores: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in scores)
