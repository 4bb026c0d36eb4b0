"""The comparison: every row in the table, trained or not; resuming; one model under every row's masks."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from models.__main__ import main
from models.checkpoint import load_directory, save_directory
from models.commands import compare
from models.network import families
from models.training.comparison import report as compare_report
from models.training.comparison import runner
from models.training.comparison import variants as compare_variants
from models.training.comparison.variants import variants
from models.training.recipe import Phase, Recipe

RECIPE = Recipe(
    splits=("train",),
    phases=(
        Phase(steps=2, batch=2, crop=(32, 64), scale=(0.7, 1.5), masks=False),
        Phase(steps=2, batch=2, crop=(32, 64), scale=(0.7, 1.5)),
    ),
    hold_out=("drive1",),
)


class Command:
    """`python -m models compare` on a tiny data set."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.rows = variants(tiny.SEGMENTATION)
        tiny.write_scenes(folder / "data")
        (folder / "recipe.json").write_text(json.dumps(RECIPE.to_json()))
        self.words = ["compare", "--config", "tiny", "--device", "cpu", "--executor", "reference"]
        self.words += ["--data", str(folder / "data"), "--output", str(self.output)]
        self.words += ["--recipe", str(folder / "recipe.json")]

    def __call__(self, *more: str) -> dict[str, Any]:
        assert main([*self.words, *more]) == 0
        found: dict[str, Any] = json.loads((self.output / compare_report.JSON).read_text())
        return found

    def table(self) -> list[str]:
        return (self.output / compare_report.TABLE).read_text().splitlines()

    def line(self, name: str) -> str:
        return next(line for line in self.table() if line.endswith(f"`{name}` |"))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(families, "CONFIGS", {"tiny": tiny.SEGMENTATION})
    monkeypatch.setattr(compare_variants, "SWEEPS", {"top_k": (0.7, 0.3), "random": (0.5,)})
    return Command(tmp_path)


def test_rows_are_trained_once_and_scored(command: Command) -> None:
    found = command("--rows", "hrnet,adpc-dense,sampling,d111,criteria")
    assert (found["scored_on"], found["images"]) == ("drive1", 2)
    assert list(found["rows"]) == ["hrnet", "adpc-dense", "sampling", "d111", "top_k-0.7", "top_k-0.3", "random-0.5"]
    trained = {path.name for path in command.output.iterdir() if path.is_dir()}
    assert trained == {"hrnet", "rh", "adpc", "sampling", "d111"}
    assert all(result["step"] == RECIPE.steps for result in found["rows"].values())
    gmacs = {name: [row["gmacs"] for row in result["exits"]] for name, result in found["rows"].items()}
    assert [len(gmacs[name]) for name in ("hrnet", "sampling")] == [1, 4]
    assert gmacs["top_k-0.7"][3] < gmacs["top_k-0.3"][3] < gmacs["adpc-dense"][3]
    assert gmacs["sampling"][0] == gmacs["adpc-dense"][0]
    missing = {line.split("`")[1]: line.split(" | ")[-2] for line in command.table() if " not " in line}
    assert missing == dict.fromkeys(("rh", "adpc-inference", "adpc"), "not scored") | dict.fromkeys(
        ("ee", "mdeq", "d333", "window3", "window5", "window9"), "not trained"
    )
    with Image.open(command.output / compare_report.PLOT) as picture:
        assert picture.size == (3 * 720, 540)


def test_a_row_that_is_not_trained_or_not_finished_says_so(command: Command) -> None:
    found = command("--rows", "adpc-inference", "--steps", "1")
    assert found["rows"]["adpc-inference"]["step"] == 1
    assert "stopped at step 1 of 4" in command.line("adpc-inference")
    assert "| not scored |" in command.line("rh")
    assert "| not scored |" in command.line("top_k-0.7")
    assert "| not trained |" in command.line("sampling")
    assert all(command.line(row.name) for row in command.rows)
    assert command("--rows", "rh", "--no-training", "--resume")["rows"]["rh"]["step"] == 1
    found = command("--rows", "adpc-inference", "--resume")
    assert (found["rows"]["adpc-inference"]["step"], found["rows"]["rh"]["step"]) == (4, 1)
    assert "4 steps" in command.line("adpc-inference")


def test_scores_are_kept_until_there_are_newer_weights(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    before = command("--rows", "rh")
    monkeypatch.delattr("models.evaluation.evaluate.segmentation")
    assert command("--rows", "rh", "--resume") == before


def test_another_recipe_is_another_comparison(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command("--rows", "hrnet", "--steps", "1")
    assert main([*command.words, "--rows", "hrnet", "--resume", "--set", "learning_rate=1"]) == 1
    assert "is of another comparison: its recipe was" in capsys.readouterr().err
    again = [*command.words, "--rows", "hrnet", "--no-training", "--set", "learning_rate=1"]
    assert main(again) == 1
    assert "holds a comparison; --resume goes on with it, or choose another --output" in capsys.readouterr().err
    (command.output / "comparison.json").unlink()
    assert main(again) == 1
    assert "hrnet was trained by a recipe with other learning_rate; give its own" in capsys.readouterr().err
    for steps in ("0", "-1"):
        with pytest.raises(SystemExit) as ended:
            main([*command.words, "--score-every", steps])
        assert ended.value.code == 2
        assert f"{steps} is below 1" in capsys.readouterr().err
    assert main([*command.words, "--rows", "hrnets"]) == 1
    assert "no row is called hrnets; there are adpc" in capsys.readouterr().err


def test_a_broken_file_of_a_comparison_is_named_with_its_remedy(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("--rows", "hrnet", "--steps", "1")
    for name in ("hrnet/checkpoint.pt", compare_report.JSON):
        path = command.output / name
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        for more in ([], ["--no-training"]):
            assert main([*command.words, "--rows", "hrnet", "--resume", *more]) == 1
            error = capsys.readouterr().err.splitlines()[-1]
            assert str(path) in error and "; remove it to " in error
        path.unlink()
        command("--rows", "hrnet", "--steps", "1", "--resume")


def test_one_model_under_the_masks_of_every_row(command: Command, tmp_path: Path) -> None:
    save_directory(tmp_path / "model", tiny.network())
    found = command("--weights", str(tmp_path / "model"), "--split", "val")
    assert (found["scored_on"], found["images"]) == ("val", 5)
    assert set(found["rows"]) == {
        row.name for row in command.rows if row.weights == "adpc" or row.figure in ("criteria", "window")
    }
    assert "| not trained |" in command.line("d111")
    assert str(tmp_path / "model") in command.line("window9")
    gmacs = [found["rows"][name]["exits"][3]["gmacs"] for name in ("top_k-0.7", "top_k-0.3", "adpc-dense")]
    assert gmacs == sorted(gmacs)
    assert not [path for path in command.output.iterdir() if path.is_dir()]


def test_weights_that_cannot_be_scored_leave_no_report(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_directory(tmp_path / "pose", tiny.network(tiny.POSE))
    save_directory(tmp_path / "model", tiny.network())
    for words, message in (
        (
            ["--weights", str(tmp_path / "pose")],
            "the weights of tiny-pose do not fit tiny-segmentation: size mismatch for ",
        ),
        (
            ["--weights", str(tmp_path / "model"), "--rows", "hrnet,rh"],
            "--rows hrnet,rh has no row that differs from tiny",
        ),
    ):
        assert main([*command.words, *words]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not command.output.exists()


def test_weights_run_under_other_masks(tmp_path: Path) -> None:
    network = tiny.network()
    by_name = {row.name: row.model for row in variants(tiny.SEGMENTATION)}
    plain = runner.with_masks_of(network, by_name["rh"])
    again = runner.with_masks_of(plain, by_name["adpc-inference"])
    narrow = runner.with_masks_of(network, by_name["window3"])
    scales = [net.get_parameter("last_layer.0.Lambda").item() for net in (narrow, again)]
    assert scales == pytest.approx([0.6, 3])
    assert torch.equal(again.get_parameter("conv1.weight"), network.get_parameter("conv1.weight"))
    with pytest.raises(ValueError, match=r"do not fit hrnet: only one of them has exit1"):
        runner.with_masks_of(network, by_name["hrnet"])
    save_directory(tmp_path, network)
    with pytest.raises(ValueError, match="do not fit ee"):
        runner.with_masks_of(load_directory(tmp_path), by_name["ee"])


def test_rows_derive_from_adpc() -> None:
    found = {row.name: row for row in variants(tiny.SEGMENTATION)}
    assert len(found) == len(variants(tiny.SEGMENTATION))
    assert all(found[row.weights].weights == row.weights for row in found.values())
    with pytest.raises(ValueError, match="tiny-pose is not ADP-C for segmentation"):
        variants(tiny.POSE)


def test_the_shipped_recipes_load() -> None:
    for name in ("recipe-gpu.json", "recipe-cpu.json"):
        recipe = Recipe.load(compare.RECIPE.with_name(name))
        assert recipe.hold_out == ("0001TP",)
        assert recipe.steps > 0


def test_a_comparison_that_ctrl_c_stopped_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = runner.tasks.Segmentation.batch

    def interrupted(task: runner.tasks.Segmentation, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(task, step)

    with monkeypatch.context() as patched:
        patched.setattr(runner.tasks.Segmentation, "batch", interrupted)
        assert main([*command.words, "--rows", "rh,ee"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "python -m models: stopped; --resume goes on"
    assert [path.name for path in command.output.iterdir() if path.is_dir()] == ["ee"]
    found = command("--rows", "rh,ee", "--resume")["rows"]
    assert {name: result["step"] for name, result in found.items()} == {"ee": 4, "rh": 4}


def test_ctrl_c_while_rows_are_scored_ends_after_the_row(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score = runner.evaluate.segmentation

    def interrupted(*given: Any) -> dict[str, Any]:
        signal.raise_signal(signal.SIGINT)
        return score(*given)

    command("--rows", "rh", "--steps", "1")
    with monkeypatch.context() as patched:
        patched.setattr(runner.evaluate, "segmentation", interrupted)
        assert main([*command.words, "--rows", "criteria", "--resume", "--no-training"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "python -m models: stopped; --resume goes on"
    assert list(json.loads((command.output / compare_report.JSON).read_text())["rows"]) == ["rh", "top_k-0.7"]
    found = command("--rows", "criteria", "--resume", "--no-training")["rows"]
    assert list(found) == ["rh", "top_k-0.7", "top_k-0.3", "random-0.5"]
