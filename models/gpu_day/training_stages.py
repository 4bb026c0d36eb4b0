"""Training on a GPU that is there for minutes: `profile` finds the fastest form of a step, `schedules` trains as many
steps as the time allows. Needs PyTorch with CUDA and Triton, and no installed package beside those.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.directory import ZOO
from models.network.configs import ModelConfig, config
from models.training import tasks
from models.training.graph import WARM_UP, Update
from models.training.recipe import FILE, Phase, Recipe
from models.training.train import Run, Speed, stream, update_of

Line = Callable[[str], None]
Clock = Callable[[], float]

PROFILE, TRAINING = "profile.json", "training.json"
TIMED = 15
"""Steps, for a row of the profile and for the rate that a schedule is sized to."""
ROW_S = 12.0
"""What a row of the profile may be expected to take before the first one is known."""
SHOWN_KERNELS = 15
BENCHMARKED = 4
"""Algorithms that cuDNN tries for a convolution where it is asked to benchmark."""
MASKED_SHARE = 0.12
SMALL_BELOW, SMALL_SHARE = 3000, 0.4
"""A schedule of fewer steps begins with so large a share of small crops, of which more fit into the time."""
SMALL = {"batch": 64, "crop": (192, 256), "scale": (0.4, 1.2)}
MARGIN = 0.97
"""Of the time left, what a schedule is sized to."""
AHEAD = 10
"""Steps that may be queued on the GPU: the clock is read that late."""
SCORING_S = 15.0
"""What saving and scoring may be expected to take before they are known."""
SAMPLE_EVERY = 25
"""Steps between points of the training curve."""


@dataclass(frozen=True)
class Variant:
    """A form of a training step. `loss`: the kernel for the loss. `off`: kernels of fused/layers.py not to use.
    `benchmark`: cuDNN tries algorithms. `half`: labels at half resolution. `masks`: exits mask what follows. `small`:
    small crops. Those three train something else, so that they are measured and never win."""

    name: str
    padded: bool = True
    kernels: bool = True
    channels_last: bool = True
    loss: bool = True
    off: tuple[str, ...] = ()
    benchmark: bool = False
    half: bool = False
    masks: bool = False
    small: bool = False

    @property
    def speed(self) -> Speed:
        return Speed(self.padded, self.kernels, self.channels_last)

    @property
    def wins(self) -> bool:
        return not (self.half or self.masks or self.small)


BEST = Variant("padded, channels last, all kernels")
PLAIN = Variant("padded, channels last, no kernels", kernels=False, loss=False)
VARIANTS = (
    BEST,
    replace(BEST, name="its loss by torch", loss=False),
    replace(BEST, name="its upsampling by torch (atomics)", off=("enlarge",)),
    replace(BEST, name="its batch normalisation by torch", off=("normalise",)),
    replace(BEST, name="under masks", masks=True),
    replace(BEST, name="small crops, 64 of 192x256", small=True),
    Variant("not padded, channels last, no kernels", padded=False, kernels=False, loss=False),
    PLAIN,
    replace(BEST, name="cuDNN benchmarks", benchmark=True),
    Variant("not padded, contiguous, no kernels", padded=False, kernels=False, loss=False, channels_last=False),
    replace(BEST, name="its loss at half resolution", half=True),
)
CPU = Variant("not padded, no kernels", padded=False, kernels=False, loss=False)
"""On a device without Triton."""


def phase_of(variant: Variant, full: Phase) -> Phase:
    phase = replace(full, masks=variant.masks)
    return replace(phase, **SMALL) if variant.small else phase


def prepare(run: Run, task: tasks.Task, variant: Variant, distillation: float = 0.0) -> Update:
    """The update of a run, in the form of `variant`. Raises RuntimeError where that needs a GPU and there is none."""
    device = next(run.network.parameters()).device
    if (variant.kernels or variant.loss) and device.type != "cuda":
        raise RuntimeError(f"the kernels of {variant.name!r} need a GPU, and the device is {device.type}")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = variant.benchmark, BENCHMARKED
    if device.type == "cuda":
        from models.training.fused import entropy, network_layers  # noqa: PLC0415  (Triton: only where a GPU is)

        network_layers.SWITCHED_OFF.clear()
        network_layers.SWITCHED_OFF.update(variant.off)
        if isinstance(task, tasks.Segmentation):
            task.compare = entropy.segmentation if variant.loss else tasks.losses.segmentation
    return update_of(
        run,
        task,
        mixed=device.type == "cuda",
        compiled=False,
        distillation=distillation,
        order=variant.speed.order,
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed_steps(
    run: Run, task: tasks.Task, update: Update, phase: Phase, halved: bool, steps: int, clock: Clock
) -> float:
    """Steps a second, once a step of this form is captured. The whole step: batch, update, mean."""
    device = next(run.network.parameters()).device

    def step(number: int) -> None:
        inputs, targets = task.batch(number)
        targets = targets[:, ::2, ::2].contiguous() if halved else targets
        run.losses += update(inputs, targets, None if phase.masks else False)
        run.follow(0.01)

    for number in range(WARM_UP + 2):
        step(number)
    wait(device)
    started = clock()
    for number in range(steps):
        step(number)
    wait(device)
    return steps / max(clock() - started, 1e-9)


def profile(
    data: Path,
    output: Path,
    deadline: float,
    line: Line,
    device: str = "cuda",
    *,
    name: str = "camvid-adpc-w18",
    variants: Sequence[Variant] = VARIANTS,
    clock: Clock = time.monotonic,
    timed: int = TIMED,
    model: ModelConfig | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Steps a second of every variant that there is time for, a line each; `PROFILE` is written after each, with the
    fastest one's name, and at the end its kernels. A variant that fails costs its row only.

    `deadline`: by `clock`. A row is begun if the slowest one so far would end before it.
    """
    where = torch.device(device)
    model, base = model or config(name), recipe or Recipe.load(ZOO / name / FILE)
    full = base.phases[-1]
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"device": _device_name(where), "torch": torch.__version__, "rows": rows, "winner": None}
    started = clock()
    task = tasks.load(model, replace(base, phases=(full,)), data, where)
    line(f"profile: {task.examples} examples on {report['device']} after {clock() - started:.1f} s")
    longest = ROW_S if where.type == "cuda" else 0.0
    for variant in variants:
        if rows and clock() + longest > deadline:
            line(f"profile: {variant.name}: no time left")
            continue
        began = clock()
        phase = phase_of(variant, full)
        row: dict[str, Any] = {**asdict(variant), "batch": phase.batch, "crop": phase.crop}
        try:
            with stream(where):
                rate, row["losses"] = _row(
                    model, replace(base, phases=(phase,), init=None), task, variant, where, timed, clock
                )
            row |= {"steps_per_s": rate, "images_per_s": rate * phase.batch}
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30 if where.type == "cuda" else None
            told = f"{rate:6.2f} steps/s  {rate * phase.batch:6.0f} images/s  losses {row['losses']}"
        except Exception as error:  # whatever a variant raises costs its row only
            row["error"] = f"{type(error).__name__}: {error}"[:500]
            told = f"failed: {row['error'][:200]}"
        _forget(where)
        row["seconds"] = clock() - began
        longest = max(longest if len(rows) else 0.0, row["seconds"])
        rows.append(row)
        line(f"profile: {variant.name:42s} {told}  (in {row['seconds']:.1f} s)")
        right = [found for found in rows if "error" not in found and _variant(found).wins]
        if right:
            report["winner"] = max(right, key=lambda found: found["steps_per_s"])["name"]
        _write(output / PROFILE, report)
    winner = next((found for found in rows if found["name"] == report["winner"]), None)
    if winner is not None and where.type == "cuda" and clock() + winner["seconds"] < deadline + ROW_S:
        with suppress(Exception):  # a profiler that fails costs its table only
            with stream(where):
                report["kernels"] = _kernels(model, replace(base, phases=(full,)), task, _variant(winner), where)
            for found in report["kernels"][:SHOWN_KERNELS]:
                line(f"profile: {found['us_per_step']:8.0f} us  {found['calls_per_step']:5.0f} x  {found['name'][:90]}")
            _write(output / PROFILE, report)
        _forget(where)
    line(f"profile: fastest: {report['winner']}")
    return report


def _row(
    model: ModelConfig, recipe: Recipe, task: Any, variant: Variant, device: torch.device, timed: int, clock: Clock
) -> tuple[float, list[float]]:
    """Steps a second, and the mean losses: those of variants of one seed, crop and loss agree but for rounding."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = Run.begin(model, recipe, device, speed=variant.speed)
    task.recipe, task.sampler = recipe, tasks.Sampler(task.examples, recipe)
    run.network.train()
    run.set_rate(1e-3)
    update = prepare(run, task, variant)
    # The recipe of a row has steps enough for those that are timed, see `phase_of`.
    rate = timed_steps(run, task, update, recipe.phases[0], variant.half, timed, clock)
    if not run.losses.isfinite().all():
        raise FloatingPointError(f"the losses are {run.losses.tolist()}")
    return rate, _rounded(run.losses / (WARM_UP + 2 + timed))


def _kernels(
    model: ModelConfig, recipe: Recipe, task: Any, variant: Variant, device: torch.device
) -> list[dict[str, Any]]:
    """The kernels of a step by their time, longest first."""
    run = Run.begin(model, recipe, device, speed=variant.speed)
    task.recipe, task.sampler = recipe, tasks.Sampler(task.examples, recipe)
    run.network.train()
    update = prepare(run, task, variant)
    timed_steps(run, task, update, recipe.phases[0], variant.half, 1, time.monotonic)
    steps = 3
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        timed_steps_only(run, task, update, steps)
        wait(device)
    found = [
        {
            "name": event.key,
            "us_per_step": float(event.self_device_time_total) / steps,
            "calls_per_step": event.count / steps,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda kernel: -float(kernel["us_per_step"]))[: 4 * SHOWN_KERNELS]


def timed_steps_only(run: Run, task: tasks.Task, update: Update, steps: int) -> None:
    for number in range(steps):
        update(*task.batch(number), False)
        run.follow(0.01)


def _variant(row: dict[str, Any]) -> Variant:
    names = Variant.__dataclass_fields__
    return Variant(**{key: tuple(value) if key == "off" else value for key, value in row.items() if key in names})


def winner(path: Path) -> Variant | None:
    """The fastest variant of a profile, None if there is no profile or every row failed."""
    if not path.is_file():
        return None
    report = json.loads(path.read_text())
    return next((_variant(row) for row in report["rows"] if row["name"] == report["winner"]), None)


@dataclass(frozen=True)
class Plan:
    """One schedule of a stage. `name`: of its folder. `seconds`: that it may take, all included. `hold_out`: drives."""

    name: str
    seconds: float
    hold_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rates:
    """Measured steps a second: full crops without and with masks, and small crops."""

    full: float
    masked: float
    small: float | None


def fitted(base: Recipe, seconds: float, rates: Rates, *, hold_out: tuple[str, ...], init: str | None) -> Recipe:
    """The recipe of `base` with as many steps as fit into `seconds`: small crops first where those are few, masks at the
    end."""
    small = SMALL_SHARE if rates.small is not None and seconds * rates.full < SMALL_BELOW else 0.0
    full = 1 - MASKED_SHARE - small
    cost = full / rates.full + MASKED_SHARE / rates.masked + (small / rates.small if rates.small else 0.0)
    steps = max(int(seconds / cost), 3)
    last = base.phases[-1]
    masked = max(round(MASKED_SHARE * steps), 1)
    smaller = round(small * steps)
    phases = [Phase(smaller, masks=False, **SMALL)] if smaller else []  # type: ignore[arg-type]
    phases += [replace(last, steps=steps - masked - smaller, masks=False), replace(last, steps=masked, masks=True)]
    return replace(base, phases=tuple(phases), hold_out=hold_out, init=init)


@dataclass
class Trainer:
    """Trains one schedule after another with the same captured steps: weights, moments and class weights are replaced
    where they lie."""

    model: ModelConfig
    base: Recipe
    data: Path
    device: torch.device
    variant: Variant
    distillation: float = 0.0
    clock: Clock = time.monotonic
    timed: int = TIMED
    run: Run | None = None
    first: Any = None
    update: Update | None = None
    rates: Rates | None = None
    scoring_s: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, task: Any, recipe: Recipe) -> tuple[Run, Update]:
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
            self.run.step = self.run.since = 0
            self.run.losses.zero_()
            if task is not self.first and hasattr(task, "weights"):
                self.first.weights.copy_(task.weights)
        self.run.network.train()
        return self.run, self.update

    def measure(self, task: Any) -> Rates:
        """Captures a step of each form, and times it. The run is to begin again after it."""
        run, update = self.begin(task, replace(self.base, init=None))
        run.set_rate(1e-4)
        found = {}
        last = self.base.phases[-1]
        for name, phase in (
            ("full", replace(last, masks=False)),
            ("masked", replace(last, masks=True)),
            ("small", replace(last, masks=False, **SMALL)),
        ):
            if name == "small" and self.model.task == "pose":
                continue
            recipe = replace(self.base, phases=(replace(phase, steps=10_000),))
            task.recipe, task.sampler = recipe, tasks.Sampler(task.examples, recipe)
            found[name] = timed_steps(run, task, update, phase, False, self.timed, self.clock)
        return Rates(found["full"], found["masked"], found.get("small"))

    def schedule(self, plan: Plan, output: Path, deadline: float, line: Line, init: str | None) -> dict[str, Any]:
        """Trains to the end of a cosine before `deadline`; writes a model directory. Returns what was done."""
        started = self.clock()
        splits = replace(self.base, hold_out=plan.hold_out, init=init)
        if init and plan.hold_out:
            line(f"{plan.name}: {init} may have been trained on {', '.join(plan.hold_out)}; its score says little")
        task: Any = tasks.load(self.model, splits, self.data, self.device)
        wait(self.device)  # threads that load have streams of their own
        if self.rates is None:
            self.rates = self.measure(task)
            line(f"{plan.name}: steps/s {asdict(self.rates)} after {self.clock() - started:.1f} s")
        left = (deadline - self.clock() - self.scoring_s) * MARGIN
        recipe = fitted(splits, left, self.rates, hold_out=plan.hold_out, init=init)
        run, update = self.begin(task, recipe)
        self._use(task, recipe)
        line(f"{plan.name}: {recipe.steps} steps in {left:.0f} s, {_phases(recipe)}")
        done = self._steps(run, update, task, recipe, output, deadline - self.scoring_s, line)
        trained = self.clock()
        run.save_mean(output)
        done["recipe"].save(output)
        with torch.autocast(self.device.type, enabled=False):
            scores = task.score(run.mean)
        self.scoring_s = max(self.scoring_s, self.clock() - trained)
        held_out = list(plan.hold_out) or "none: the validation split, trained on where the recipe's splits have it"
        result = {
            "name": plan.name, "scores": scores, "held_out": held_out, "init": init,
            "distillation": self.distillation, "steps": done["steps"], "planned": done["recipe"].steps,
            "rates": asdict(self.rates), "seconds": self.clock() - started, "curve": done["curve"],
        }  # fmt: skip
        line(
            f"{plan.name}: scores {', '.join(f'{value:.2f}' for value in scores)} after {done['steps']} of "
            f"{done['recipe'].steps} steps, {result['seconds']:.0f} s"
        )
        return result

    def _use(self, task: Any, recipe: Recipe) -> None:
        task.recipe = recipe
        task.sampler.recipe = recipe

    def _steps(
        self, run: Run, update: Update, task: Any, recipe: Recipe, output: Path, deadline: float, line: Line
    ) -> dict[str, Any]:
        started = self.clock()
        task.sampler = tasks.Sampler(task.examples, recipe)
        curve: list[tuple[int, Tensor]] = []
        queued: list[Any] = []
        # The first tenth, in which every form of it is warm, shows the true rate.
        check = recipe.phases[0].steps // 8 or 1
        while run.step < recipe.steps and self.clock() < deadline:
            run.set_rate(recipe.learning_rate_at(run.step))
            torch.manual_seed(recipe.seed * 9_000_011 + run.step)
            masks = recipe.phase_at(run.step).masks
            found = update(*task.batch(run.step), None if masks else False)
            run.losses += found
            run.step += 1
            run.follow(1 / min(recipe.ema_steps, 1 + run.step / 10))
            if self.device.type == "cuda":
                queued.append(torch.cuda.Event())
                queued[-1].record()
                if len(queued) > AHEAD:
                    queued.pop(0).synchronize()
            if run.step % SAMPLE_EVERY == 0 or run.step == recipe.steps:
                curve.append((run.step, found.clone()))
            if run.step == check:
                wait(self.device)
                if not found.isfinite().all():
                    raise FloatingPointError(f"the losses are {found.tolist()} after {run.step} steps")
                recipe = self._refitted(recipe, run.step, self.clock() - started, deadline - self.clock())
                self._use(task, recipe)
                line(f"  after {run.step} steps: losses {_rounded(found)}; {recipe.steps} steps in all")
            elif run.step % max(recipe.steps // 8, 1) == 0:
                line(f"  step {run.step} of {recipe.steps}: losses {_rounded(found)}, {self.clock() - started:.0f} s")
        wait(self.device)
        points = [{"step": step, "losses": values.tolist()} for step, values in curve]
        return {"steps": run.step, "recipe": recipe, "curve": points}

    def _refitted(self, recipe: Recipe, done: int, took_s: float, left_s: float) -> Recipe:
        """The steps that remain, sized to the time that is left by what the first ones took."""
        assert self.rates is not None
        rate = {True: self.rates.masked, False: self.rates.full}
        expected = (self.rates.small or rate[False]) if len(recipe.phases) > 2 else rate[False]
        slower = (took_s / done) * expected
        rest = sum(
            (phase.steps - (done if index == 0 else 0))
            / (self.rates.small if self.rates.small and phase.crop == SMALL["crop"] else rate[phase.masks])
            for index, phase in enumerate(recipe.phases)
        )
        share = left_s * MARGIN / (rest * slower)
        phases = [
            replace(
                phase,
                steps=(done if index == 0 else 0) + max(int((phase.steps - (done if index == 0 else 0)) * share), 1),
            )
            for index, phase in enumerate(recipe.phases)
        ]
        return replace(recipe, phases=tuple(phases))


def schedules(
    data: Path,
    output: Path,
    deadline: float,
    line: Line,
    device: str = "cuda",
    *,
    plans: Sequence[Plan],
    name: str = "camvid-adpc-w18",
    init: str | None = None,
    distillation: float = 0.0,
    variant: Variant | None = None,
    clock: Clock = time.monotonic,
    timed: int = TIMED,
    model: ModelConfig | None = None,
    recipe: Recipe | None = None,
) -> list[dict[str, Any]]:
    """Trains every plan, one after the other, in this process. Writes `output/PLAN/` (a model directory) for each, and
    `TRAINING` (curves and scores) after each. A plan that fails costs itself only.

    `variant`: default: the winner of `output/profile.json`; without one, the best guess.
    """
    where = torch.device(device)
    usual = BEST if where.type == "cuda" else CPU
    chosen = variant or winner(output / PROFILE) or usual
    output.mkdir(parents=True, exist_ok=True)
    line(f"train: {chosen.name} on {_device_name(where)}")
    base = recipe or Recipe.load(ZOO / name / FILE)
    results: list[dict[str, Any]] = []

    def trained_by(form: Variant) -> Trainer:
        trainer = Trainer(model or config(name), base, data, where, form, distillation, clock, timed)
        trainer.scoring_s = SCORING_S if where.type == "cuda" else 0.0
        return trainer

    trainer = trained_by(chosen)
    with stream(where):
        for plan in plans:
            ends = min(deadline, clock() + plan.seconds)
            try:
                results.append(trainer.schedule(plan, output / plan.name, ends, line, init))
            except Exception as error:  # whatever it raises costs this plan only
                results.append({"name": plan.name, "error": f"{type(error).__name__}: {error}"[:1000]})
                line(f"{plan.name}: failed: {results[-1]['error']}")
                if chosen.kernels:
                    chosen = PLAIN
                    line(f"train: from here on {chosen.name}")
                trainer = trained_by(chosen)
                _forget(where)
            _write(output / TRAINING, {"variant": asdict(chosen), "runs": results})
    return results


def _phases(recipe: Recipe) -> str:
    return ", ".join(
        f"{phase.steps} of {phase.batch} x {phase.crop[0]}x{phase.crop[1]}{' masked' if phase.masks else ''}"
        for phase in recipe.phases
    )


def _rounded(losses: Tensor) -> list[float]:
    return [round(value, 3) for value in losses.tolist()]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _plan(text: str) -> Plan:
    """NAME:SECONDS[:DRIVE]."""
    name, seconds, *drives = text.split(":")
    return Plan(name, float(seconds), tuple(drives))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure and train on a GPU that is there for minutes.")
    parser.add_argument("stage", choices=("profile", "schedule"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for all of the stage")
    parser.add_argument("--name", default="camvid-adpc-w18", help="the model to train")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plan", type=_plan, action="append", metavar="NAME:SECONDS[:DRIVE]")
    parser.add_argument("--init", help="a model that lends its weights")
    parser.add_argument("--distillation", type=float, default=0.0)
    args = parser.parse_args(argv)
    torch.set_float32_matmul_precision("high")
    deadline = time.monotonic() + args.seconds

    def line(text: str) -> None:
        print(text, flush=True)

    if args.stage == "profile":
        report = profile(args.data, args.output, deadline, line, args.device, name=args.name)
        return int(report["winner"] is None)
    results = schedules(
        args.data,
        args.output,
        deadline,
        line,
        args.device,
        plans=args.plan or [Plan("all", args.seconds)],
        name=args.name,
        init=args.init,
        distillation=args.distillation,
    )
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
