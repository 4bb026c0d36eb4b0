"""The training stages of a GPU's day, on a CPU with a tiny network and a clock that the test turns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from models.checkpoint import load_directory, save_directory
from models.gpu_day import profile as profile_module
from models.gpu_day import schedules as schedules_module
from models.gpu_day import variants as variants_module
from models.gpu_day.profile import profile
from models.gpu_day.schedules import schedules
from models.gpu_day.sizing import Rates, SchedulePlan, begins_small, fitted, refitted
from models.gpu_day.variants import CPU
from models.training.recipe import Phase, Recipe
from models.training.tasks import Pose, Segmentation

RECIPE = Recipe(splits=("train",), phases=(Phase(steps=100, batch=2, crop=(32, 32), scale=(0.5, 1.0)),))


class Clock:
    """A clock that moves by `step_s` whenever it is read."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(variants_module, "SMALL_BATCH", 3)
    monkeypatch.setattr(variants_module, "SMALL_CROP", (32, 64))
    tiny.write_scenes(tmp_path / "data")
    return tmp_path / "data"


def test_profile_measures_every_form_and_one_that_fails_costs_its_row(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    variants = (
        replace(CPU, name="plain"),
        replace(CPU, name="padded", padded=True),
        replace(CPU, name="kernels", kernels=True),
        replace(CPU, name="half", half=True),
        replace(CPU, name="masks", masks=True),
        replace(CPU, name="small", small=True),
    )
    report = profile(
        data, tmp_path / "out", 1e9, lines.append, "cpu", variants=variants, model=tiny.SEGMENTATION, recipe=RECIPE,
        clock=Clock(1.0), timed=1,
    )  # fmt: skip
    rows = {row["name"]: row for row in report["rows"]}
    assert [name for name, row in rows.items() if "error" in row] == ["kernels"]
    assert "need a GPU" in rows["kernels"]["error"]
    assert rows["small"]["images_per_s"] == 3 * rows["small"]["steps_per_s"]
    assert report["winner"] in ("plain", "padded")
    assert json.loads((tmp_path / "out" / profile_module.PROFILE).read_text())["winner"] == report["winner"]
    found = profile_module.winner(tmp_path / "out" / profile_module.PROFILE)
    assert found is not None and found.name == report["winner"]
    assert sum("steps/s" in line for line in lines) == 5


def test_profile_begins_no_row_that_would_end_too_late(data: Path, tmp_path: Path) -> None:
    variants = tuple(replace(CPU, name=f"v{index}") for index in range(9))
    lines: list[str] = []
    clock = Clock(1.0)
    report = profile(
        data, tmp_path / "out", 18.0, lines.append, "cpu", variants=variants, model=tiny.SEGMENTATION, recipe=RECIPE,
        clock=clock, timed=1,
    )  # fmt: skip
    assert 2 <= len(report["rows"]) < 9
    assert lines[-2].endswith("no time left")


def test_schedules_end_before_the_deadline_and_start_anew(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    clock = Clock(1.0)
    plans = [SchedulePlan("held-out", 60, ("drive1",)), SchedulePlan("all", 60), SchedulePlan("again", 60)]
    results = schedules(
        data, tmp_path / "out", 1000, lines.append, "cpu", plans=plans, model=tiny.SEGMENTATION, recipe=RECIPE,
        variant=replace(CPU, padded=True), clock=clock, timed=2,
    )  # fmt: skip
    assert not any("error" in result for result in results), lines
    for result, plan in zip(results, plans, strict=True):
        assert 45 < result["seconds"] <= 60
        assert result["steps"] == result["planned"]
        recipe = Recipe.load(tmp_path / "out" / plan.name / "train.json")
        assert recipe.steps == result["planned"]
        assert recipe.hold_out == plan.hold_out
        assert [phase.masks for phase in recipe.phases] == [False, False, True]
        assert sorted(path.name for path in (tmp_path / "out" / plan.name).iterdir()) == [
            "config.json", "model.safetensors", "train.json",
        ]  # fmt: skip
        assert [point["step"] for point in result["curve"]][-1] == result["steps"]
        network = load_directory(tmp_path / "out" / plan.name)
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    weights = [load_directory(tmp_path / "out" / plan.name).conv1.weight for plan in plans]
    assert torch.equal(weights[1], weights[2]) == (results[1]["steps"] == results[2]["steps"])
    assert not torch.equal(weights[0], weights[1])
    assert len(json.loads((tmp_path / "out" / schedules_module.TRAINING).read_text())["runs"]) == 3


def test_a_plan_that_fails_costs_itself_only(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    results = schedules(
        data, tmp_path / "out", 1000, lines.append, "cpu",
        plans=[SchedulePlan("bad", 60, ("nowhere",)), SchedulePlan("good", 60)],
        model=tiny.SEGMENTATION, recipe=RECIPE, clock=Clock(1.0), timed=1,
    )  # fmt: skip
    assert "hold_out names nowhere" in results[0]["error"]
    assert results[1]["scores"]


def test_a_plan_has_its_own_start_and_its_own_recipe(data: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    save_directory(given, tiny.network(tiny.SEGMENTATION, seed=3))
    plan = SchedulePlan.from_json(
        {"name": "tuned", "seconds": 20, "init": str(given), "recipe": {"learning_rate": 1e-9, "phases.-1.batch": 3}}
    )
    lines: list[str] = []
    result, other = schedules(
        data, tmp_path / "out", 1000, lines.append, "cpu", plans=[plan, SchedulePlan("random", 20)],
        model=tiny.SEGMENTATION,
        recipe=RECIPE, clock=Clock(0.5), timed=1,
    )  # fmt: skip
    assert result["scores_of_init"] == pytest.approx(result["scores"], abs=5)
    assert other["scores_of_init"] is None
    recipe = Recipe.load(tmp_path / "out/tuned/train.json")
    assert recipe.init == str(given) and recipe.learning_rate == 1e-9
    assert {phase.batch for phase in recipe.phases} == {3}
    weights = [load_directory(path).conv1.weight for path in (given, tmp_path / "out/tuned", tmp_path / "out/random")]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(weights[0], weights[2], atol=1e-2)


@pytest.mark.parametrize("small", [None, 40.0])
@pytest.mark.parametrize("seconds", [30.0, 140.0, 400.0])
def test_a_schedule_fits_the_seconds(seconds: float, small: float | None) -> None:
    rates = Rates(full=20.0, masked=10.0, small=small)
    recipe = fitted(RECIPE, seconds, rates)
    crops = [phase.crop for phase in recipe.phases]
    assert crops == ([variants_module.SMALL_CROP] if small else []) + [(32, 32), (32, 32)]
    assert seconds - 0.5 < time_of(recipe, rates) < seconds + 0.1
    assert recipe.phases[-1].masks and recipe.phases[-1].steps == round(0.12 * recipe.steps)
    assert recipe.ema_steps == min(RECIPE.ema_steps, round(recipe.steps / 12))


def time_of(recipe: Recipe, rates: Rates) -> float:
    return sum(phase.steps / rates.of(phase, recipe.phases[-1]) for phase in recipe.phases)


@pytest.mark.parametrize("done", [100, 700, 950])
def test_a_slower_machine_takes_fewer_of_the_steps_that_remain(done: int) -> None:
    rates = Rates(full=20.0, masked=10.0, small=40.0)
    recipe = fitted(RECIPE, 50.0, rates)
    first = replace(recipe, phases=tuple(replace(phase, steps=count) for phase, count in cut(recipe, done)))
    took = 2 * time_of(replace(first, phases=(*first.phases, recipe.phases[-1])), rates) - 2 * time_of(
        replace(recipe, phases=recipe.phases[-1:]), rates
    )
    found = refitted(recipe, done, took, 30.0, rates)
    assert cut(found, done) == cut(recipe, done)
    rest_s = 2 * (time_of(found, rates) - took / 2)
    assert 30.0 * 0.9 < rest_s <= 30.0


def cut(recipe: Recipe, done: int) -> list[tuple[Phase, int]]:
    """The phases up to a step, with how many of their steps were done, whatever their number of steps is."""
    found: list[tuple[Phase, int]] = []
    for phase in recipe.phases:
        if done > 0:
            found.append((replace(phase, steps=1), min(done, phase.steps)))
        done -= phase.steps
    return found


@pytest.mark.parametrize(
    ("init", "task", "small"),
    [(None, Segmentation, True), ("any", Segmentation, False), (None, Pose, False)],
)
def test_schedules_of_segmentation_from_random_weights_begin_small(
    init: str | None, task: type[object], small: bool
) -> None:
    assert begins_small(replace(RECIPE, init=init), task.__new__(task)) == small
