"""`python -m models` as a whole: every command answers --help, and Ctrl-C ends with one line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from models import __main__ as door
from models.checkpoint import save_directory
from models.commands import show
from models.data.files import in_parallel
from models.network import families
from models.training import tasks
from models.training.recipe import Phase, Recipe


@pytest.mark.parametrize("name", door.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        door.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m models {name}" in capsys.readouterr().out


WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({[*door.EXTRAS]}))
from models.__main__ import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as ended:
        assert ended.code == 0, name
    print("explained", name)
sys.exit(main(["bench", "--widths", "w18", "--sizes", "64x64", "--runtimes", "sparse", "--repeats", "1"]))
"""


def test_commands_without_optional_packages_explain_themselves_or_say_what_to_install() -> None:
    found = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], check=False, capture_output=True, text=True)
    explained = re.findall(r"^explained (.*)$", found.stdout, flags=re.M)
    assert explained == list(door.COMMANDS), found.stderr
    wanted = "\npython -m models bench: it needs scipy: pip install --editable '.[train]'\n"
    assert found.returncode == 1 and found.stderr.endswith(wanted) and "Traceback" not in found.stderr


@pytest.mark.parametrize("words", [["train", "camvid-adpc-w18"], ["compare"], ["bench"]], ids=lambda words: words[0])
def test_what_draws_at_its_end_says_at_its_start_that_it_cannot(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "output"
    assert door.main([*words, "--data", str(tmp_path), "--output", str(output)]) == 1
    wanted = f"python -m models {words[0]}: it needs matplotlib: pip install --editable '.[train]'\n"
    assert capsys.readouterr() == ("", wanted) and not output.exists()


@pytest.mark.parametrize("command", ["calibrate", "quantise"])
def test_what_is_written_at_the_end_has_a_folder_at_the_start(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_directory(tmp_path / "model", tiny.network())
    monkeypatch.setattr("os.access", lambda path, mode, **_: (path, mode) != (tmp_path / "model", os.W_OK))
    assert door.main([command, str(tmp_path / "model"), "--data", str(tmp_path / "nowhere")]) == 1
    assert f"nothing can be written to {tmp_path / 'model'}; give a folder of yours" in capsys.readouterr().err


def test_a_package_that_no_extra_brings_is_a_fault_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def incomplete(_: object) -> int:
        raise ModuleNotFoundError("No module named 'pillow'", name="pillow")

    monkeypatch.setattr(show, "main", incomplete)
    with pytest.raises(ModuleNotFoundError):
        door.main(["show", "camvid-adpc-w18"])


@pytest.mark.parametrize(
    "words",
    [
        ["bench"],
        ["calibrate", "model", "--data", "images"],
        ["compare", "--data", "camvid", "--output", "report"],
        ["evaluate", "model", "--data", "camvid", "--split", "val"],
        ["quantise", "model", "--data", "camvid"],
    ],
    ids=lambda words: words[0],
)
def test_a_number_of_threads_below_1_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        door.main([*words, "--threads", "-3"])
    assert ended.value.code == 2
    assert "argument --threads: -3 is below 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("stopped at step 7"), "stopped at step 7")],
)
def test_an_interrupted_command_ends_with_one_line(
    interrupt: KeyboardInterrupt, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise interrupt

    monkeypatch.setattr(show, "main", interrupted)
    assert door.main(["show", "camvid-adpc-w18"]) == 130
    assert capsys.readouterr() == ("", f"python -m models: {line}\n")


def test_ctrl_c_while_a_command_loads_is_said_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "add_arguments", lambda _: signal.raise_signal(signal.SIGINT))
    assert door.main(["show", "camvid-adpc-w18"]) == 130
    assert capsys.readouterr().err == "python -m models: interrupted\n"


def test_after_a_failure_the_items_that_have_not_begun_are_left() -> None:
    begun = []

    never = threading.Event()

    def fail(item: int) -> None:
        begun.append(item)
        never.wait(0.001)  # gives the thread that leaves the others a turn
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        in_parallel(fail, range(10_000))
    assert len(begun) < 10_000


Batch = Callable[[tasks.Segmentation, int], tuple[torch.Tensor, torch.Tensor]]


def interrupting(step: int, times: int = 1) -> Batch:
    """`Segmentation.batch`, but for that many Ctrl-C while this step's batch is made."""
    batch = tasks.Segmentation.batch

    def interrupted(task: tasks.Segmentation, now: int) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(times if now == step else 0):
            signal.raise_signal(signal.SIGINT)
        return batch(task, now)

    return interrupted


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that trains for 4 steps, but for its --output."""
    monkeypatch.setattr(families, "CONFIGS", {"tiny": tiny.SEGMENTATION})
    tiny.write_scenes(tmp_path / "data")
    recipe = Recipe(splits=("train",), phases=(Phase(steps=4, batch=2, crop=(32, 32), scale=(1.0, 1.0)),))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    words = ["--data", str(tmp_path / "data"), "--recipe", str(tmp_path / "recipe.json"), "--device", "cpu"]
    return ["train", "tiny", *words]


def weights(output: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(output / "checkpoint.pt", weights_only=True)["network"]
    return found


def test_a_training_that_ctrl_c_stopped_goes_on_to_the_same_weights(
    training: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main([*training, "--output", str(tmp_path / "whole")]) == 0
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(tasks.Segmentation, "batch", interrupting(1))
        assert door.main([*training, "--output", str(tmp_path / "parts")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "python -m models: stopped at step 2 of 4; --resume goes on"
    assert signal.getsignal(signal.SIGINT) == before
    assert door.main([*training, "--output", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_second_ctrl_c_ends_the_training_at_once(
    training: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks.Segmentation, "batch", interrupting(1, times=2))
    assert door.main([*training, "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "python -m models: interrupted"
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_ctrl_c_in_the_last_step_changes_nothing(
    training: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.Segmentation, "batch", interrupting(3))
    assert door.main([*training, "--output", str(tmp_path / "run")]) == 0
