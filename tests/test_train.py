"""Training: a run that was stopped goes on to the same weights; recipes; the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from models.__main__ import main
from models.checkpoint import load_directory, save_directory
from models.commands.train import PLOT
from models.data import datasets
from models.network import families
from models.network.adpc import AdpcNet
from models.network.adpc_configs import Heads
from models.training import tasks
from models.training.recipe import Phase, Recipe, setting
from models.training.train import CHECKPOINT, Run, start_at_zero

RECIPE = Recipe(
    splits=("train",),
    phases=(
        Phase(steps=3, batch=2, crop=(32, 32), scale=(0.5, 1.0), masks=False),
        Phase(steps=3, batch=3, crop=(32, 64), scale=(0.7, 1.5)),
    ),
)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.commands.train.plot_history", lambda *_: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tiny.write_scenes(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(families, "CONFIGS", {"tiny": tiny.SEGMENTATION})
    path = tmp_path / "train.json"
    path.write_text(json.dumps(RECIPE.to_json()))
    return path


def train(data: Path, recipe: Path, output: Path, *more: str) -> dict[str, torch.Tensor]:
    command = ["train", "tiny", "--data", str(data), "--recipe", str(recipe), "--output", str(output)]
    assert main([*command, "--device", "cpu", "--score-every", "2", *more]) == 0
    state: dict[str, torch.Tensor] = torch.load(output / CHECKPOINT, weights_only=True)["network"]
    return state


def history(output: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = torch.load(output / CHECKPOINT, weights_only=True)["history"]
    return found


def test_the_losses_are_drawn(data: Path, recipe: Path, tmp_path: Path) -> None:
    train(data, recipe, tmp_path, "--stop-after", "2")
    with Image.open(tmp_path / PLOT) as picture:
        assert picture.size == (1200, 480)


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_stopped_ends_with_the_same_weights(data: Path, recipe: Path, tmp_path: Path) -> None:
    whole = train(data, recipe, tmp_path / "whole")
    train(data, recipe, tmp_path / "parts", "--minutes", "0")
    for _ in range(2):
        stopped = train(data, recipe, tmp_path / "parts", "--resume", "--stop-after", "2")
        assert any(not torch.equal(stopped[name], whole[name]) for name in whole)
    parts = train(data, recipe, tmp_path / "parts", "--resume")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    means = [load_directory(tmp_path / name).state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(means[0][name], means[1][name]) for name in means[0])
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


@pytest.mark.usefixtures("undrawn")
def test_the_seed_decides_the_weights(data: Path, recipe: Path, tmp_path: Path) -> None:
    first, again = (train(data, recipe, tmp_path / name) for name in ("first", "again"))
    other = train(data, recipe, tmp_path / "other", "--set", "seed=1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("heads", ["redesigned", "plain", "one"])
def test_a_network_with_masks_starts_from_one_without(tmp_path: Path, heads: Heads) -> None:
    dense = AdpcNet(replace(tiny.SEGMENTATION, masking=None, heads=heads))
    save_directory(tmp_path, dense)
    run = Run.begin(tiny.SEGMENTATION, replace(RECIPE, init=str(tmp_path)), torch.device("cpu"))
    theirs, ours = dense.state_dict(), run.network.state_dict()
    same = {name for name in theirs if name in ours and torch.equal(theirs[name], ours[name])}
    assert {"conv1.weight", "stage4.0.branches.3.0.conv2.weight"} <= same
    assert (any(name.startswith("exit1") and name.endswith("weight") for name in same)) == (heads == "redesigned")


@pytest.mark.usefixtures("undrawn")
def test_another_run_starts_from_weights(data: Path, recipe: Path, tmp_path: Path) -> None:
    train(data, recipe, tmp_path / "first")
    train(data, recipe, tmp_path / "second", "--set", f"init={json.dumps(str(tmp_path / 'first'))}", "--minutes", "0")
    first, second = (load_directory(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("undrawn")
def test_mixed_precision_rounds_what_is_multiplied_and_keeps_the_weights_whole(
    data: Path, recipe: Path, tmp_path: Path
) -> None:
    mixed, whole = (train(data, recipe, tmp_path / name, f"--{name}") for name in ("mixed", "no-mixed"))
    weights = [name for name in whole if name.endswith("weight")]
    assert all(mixed[name].dtype == torch.float32 and mixed[name].isfinite().all() for name in weights)
    assert any(not torch.equal(mixed[name], whole[name]) for name in weights)


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_neither_mixed_with_another_nor_lost(
    data: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    command = ["train", "tiny", "--data", str(data), "--recipe", str(recipe), "--output", str(output)]
    command += ["--device", "cpu"]
    assert main([*command, "--resume"]) == 1
    assert f"there is no run in {output} to go on with; leave out --resume" in capsys.readouterr().err
    assert not output.exists()
    train(data, recipe, output, "--stop-after", "1")
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    data.rename(tmp_path / "elsewhere")  # all this is said before the data are read, which may take minutes
    assert main(command) == 1
    assert f"{output} holds a run; --resume goes on with it" in capsys.readouterr().err
    assert main([*command, "--resume", "--set", "seed=3", "--set", "phases.0.batch=4"]) == 1
    assert f"{output} was trained by a recipe with other phases, seed; give its own" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == files
    checkpoint = output / "checkpoint.pt"
    checkpoint.write_bytes(files["checkpoint.pt"][:1000])
    assert main([*command, "--resume"]) == 1
    error = capsys.readouterr().err
    assert f"{checkpoint} cannot be read: " in error and error.endswith("; remove it to start anew\n")
    (tmp_path / "elsewhere").rename(data)
    checkpoint.unlink()
    train(data, recipe, output, "--stop-after", "1")


def test_a_checkpoint_is_never_there_without_the_weights_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison scores the weights of a run that is complete by its checkpoint."""

    def full(*_: object) -> None:
        raise OSError("no space left")

    def broken(*_: object) -> None:
        raise RuntimeError("unexpected pos 576 vs 534")

    run = Run.begin(tiny.SEGMENTATION, RECIPE, torch.device("cpu"))
    run.save(tmp_path)
    run.step = 6
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", broken)
        with pytest.raises(OSError, match=r"checkpoint\.pt cannot be written: unexpected pos 576 vs 534"):
            run.save(tmp_path)
    monkeypatch.setattr("models.training.train.save_directory", full)
    with pytest.raises(OSError, match="no space left"):
        run.save(tmp_path)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 0


def test_a_device_that_is_not_there_is_said(data: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "tiny"), ("compare", "--config", "tiny"):
        assert main([*command, "--data", str(data), "--recipe", str(recipe), "--output", "x", "--device", "tpu"]) == 1
        assert "device 'tpu' is unknown; use auto" in capsys.readouterr().err


def test_drives_that_cannot_be_held_out_are_named(data: Path) -> None:
    drives = {scene.drive for scene in datasets.scenes(data, "train")}
    with pytest.raises(ValueError, match=r"hold_out names 0001TB; the drives are "):
        tasks.scenes(replace(RECIPE, hold_out=("0001TB",)), data)
    with pytest.raises(ValueError, match=r"hold_out names all drives, .*; leave one to train on"):
        tasks.scenes(replace(RECIPE, hold_out=tuple(drives)), data)


def test_a_recipe_survives_json() -> None:
    assert Recipe.from_json(json.loads(json.dumps(RECIPE.to_json()))) == RECIPE


def test_fields_of_a_recipe_can_be_changed() -> None:
    changed = RECIPE.override({"phases.1.steps": 9, "augmentation.cutmix": 0.5, "hold_out": ["0001TP"]})
    assert (changed.steps, changed.augmentation.cutmix, changed.hold_out) == (12, 0.5, ("0001TP",))
    with pytest.raises(ValueError, match=r"no field 'phases\.7\.steps'"):
        RECIPE.override({"phases.7.steps": 9})
    with pytest.raises(ValueError, match="not a training recipe"):
        RECIPE.override({"colour": 1})


def test_phases_follow_each_other() -> None:
    assert [RECIPE.phase_at(step).batch for step in range(6)] == [2, 2, 2, 3, 3, 3]
    assert [RECIPE.images_before(step) for step in (0, 2, 3, 4, 6)] == [0, 4, 6, 9, 15]
    with pytest.raises(IndexError, match="6 steps"):
        RECIPE.phase_at(6)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    recipe = RECIPE.override({"phases.0.steps": 100, "phases.1.steps": 100, "warm_up": 0.1, "learning_rate": 1.0})
    rates = [recipe.learning_rate_at(step) for step in range(201)]
    assert max(rates) == pytest.approx(1, abs=0.03)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[200] == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("splits", [], "0 splits and 6 steps of training; give at least 1 of each"),
        ("splits", "train", "splits is 'train'; give a list"),
        ("phases", [], "1 splits and 0 steps of training"),
        ("phases.0.crop", [30, 64], "multiples of 32"),
        ("phases.0.crop", [0, 64], r"crop\[0\] is 0; it must be at least 1"),
        ("phases.0.batch", 1, "batch is 1; it must be at least 2"),
        ("phases.0.steps", -1, "steps is -1; it must be at least 0"),
        ("phases.0.steps", 2.5, "steps is 2.5; give a whole number"),
        ("phases.0.scale", [0, 0], r"scale\[0\] is 0; it must be above 0"),
        ("phases.0.scale", [2, 1], "scale goes from 2 to 1; give the smaller one first"),
        ("phases.0.masks", "no", "masks is 'no'; give true or false"),
        ("learning_rate", 0, "learning_rate is 0; it must be above 0"),
        ("learning_rate", "fast", "learning_rate is 'fast'; give a finite number"),
        ("weight_decay", float("nan"), "weight_decay is nan; give a finite number"),
        ("warm_up", -1, "warm_up is -1; it must be at least 0"),
        ("ema_steps", 0, "ema_steps is 0; it must be at least 1"),
        ("class_softness", 1, "class_softness is 1; it must be above 1"),
        ("hold_out", [1], r"hold_out\[0\] is 1; give text"),
        ("init", 5, "init is 5; give text"),
        ("seed", -1, "seed is -1; it must be at least 0"),
        ("augmentation.rotation_deg", -1, "rotation_deg is -1"),
        ("augmentation.shift", "a", "shift is 'a'"),
        ("augmentation.flip", 1, "flip is 1; give true or false"),
        ("augmentation.colour", 1.5, "colour is 1.5; it may be at most 1"),
        ("augmentation.gamma", 0, "gamma is 0; it must be at least 1"),
    ],
)
def test_recipes_without_meaning_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RECIPE.override({field: value})


def test_settings_are_json() -> None:
    assert setting("phases.0.steps=1000") == ("phases.0.steps", 1000)
    for text in ("steps", "hold_out=0001TP"):
        with pytest.raises(ValueError, match=text):
            setting(text)


def test_pose_heads_start_at_zero() -> None:
    network = AdpcNet(tiny.POSE)
    start_at_zero(network)
    found = network(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), adaptive=False)
    assert all(heatmaps.abs().max() < 0.1 for heatmaps in found)
