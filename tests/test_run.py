"""The run command, and the golden cases made with the authors' implementation where they lie beside the checkout."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.__main__ import main
from models.anytime import run
from models.checkpoint import save_directory
from models.executors.cpu.executor import SparseExecutor
from models.executors.selection import load
from models.network.adpc_configs import AdpcConfig

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"


def image_command(folder: Path, config: AdpcConfig = tiny.SEGMENTATION) -> list[str]:
    """Saves a tiny model and an image of 50x70 in `folder`; the command that runs one on the other."""
    save_directory(folder / "m", tiny.network(config))
    Image.fromarray(tiny.image(50, 70)).save(folder / "in.png")
    return ["run", str(folder / "m"), "--input", str(folder / "in.png")]


def test_image_in_logits_and_maps_out(tmp_path: Path) -> None:
    command = image_command(tmp_path)
    assert main([*command, "--output", str(tmp_path / "out.safetensors")]) == 0
    found = load_file(tmp_path / "out.safetensors")
    for index, (state, exit_map) in enumerate(run(load(tmp_path / "m"), tiny.image(50, 70)), 1):
        assert np.array_equal(found[f"map{index}"].numpy(), exit_map.array)
        assert torch.equal(found[f"logits{index}"][0], state.latest().scores[:, :13, :18])
        assert found[f"logits{index}"].shape == (1, 3, 13, 18)


def test_an_image_is_begun_as_the_server_begins_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor normalises the image itself; `start` takes inputs that are normalised already."""
    command = image_command(tmp_path)
    monkeypatch.delattr(SparseExecutor, "start")
    assert main([*command, "--executor", "sparse", "--output", str(tmp_path / "o")]) == 0


def test_pose_gives_keypoints(tmp_path: Path) -> None:
    command = image_command(tmp_path, tiny.POSE)
    assert main([*command, "--output", str(tmp_path / "o.safetensors")]) == 0
    found = load_file(tmp_path / "o.safetensors")
    assert found["map4"].shape == (16, 3)
    assert found["map4"].dtype == torch.float32


@pytest.mark.parametrize("tensors", [{"other": torch.zeros(1)}, {"input": torch.zeros(3, 32, 32)}])
def test_wrong_tensors_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    save_directory(tmp_path / "m", tiny.network())
    save_file(tensors, tmp_path / "in.safetensors")
    assert (
        main(["run", str(tmp_path / "m"), "--input", str(tmp_path / "in.safetensors"), "--output", str(tmp_path / "o")])
        == 1
    )
    assert "must be float (1, 3, height, width)" in capsys.readouterr().err


@pytest.mark.parametrize("executor", ["reference", "sparse"])
def test_an_empty_input_and_an_output_without_a_folder_are_named(
    tmp_path: Path, executor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_directory(tmp_path / "m", tiny.network())
    command = ["run", str(tmp_path / "m"), "--executor", executor, "--input", str(tmp_path / "in.safetensors")]
    save_file({"input": torch.zeros(1, 3, 0, 0)}, tmp_path / "in.safetensors")
    assert main([*command, "--output", str(tmp_path / "o")]) == 1
    assert "the input is 0x0; both must be multiples of 32, at least 32" in capsys.readouterr().err
    save_file({"input": torch.zeros(1, 3, 32, 32)}, tmp_path / "in.safetensors")
    for output in (tmp_path / "none" / "o", tmp_path):
        assert main([*command, "--output", str(output)]) == 1
        assert f"{output} cannot be written: " in capsys.readouterr().err


def test_a_configuration_needs_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (
        ("adpc-w48-cityscapes", "adpc-w48-cityscapes is a configuration; name a file with its weights: --weights FILE"),
        ("adpc-w99", "'adpc-w99' is neither a model directory nor a shipped model; shipped are camvid-adpc-w18, lsp"),
    ):
        assert main(["run", name, "--input", "x", "--output", "y"]) == 1
        assert message in capsys.readouterr().err


def test_the_output_may_be_what_stays_in_its_place(tmp_path: Path) -> None:
    """A link, or a device: `/dev/null` must not become a file."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert main([*image_command(tmp_path), "--output", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and "map4" in load_file(tmp_path / "elsewhere")


def test_a_threshold_needs_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({}, tmp_path / "w.pth")
    command = ["run", "ee-w18-cityscapes", "--weights", str(tmp_path / "w.pth"), "--input", "x", "--output", "y"]
    assert main([*command, "--threshold", "0.5"]) == 1
    assert "has no masks" in capsys.readouterr().err
    assert main(command) == 1
    assert "missing" in capsys.readouterr().err


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden cases are not part of the repository")
@pytest.mark.parametrize(("case", "config"), [("w18_ee", "ee-w18-cityscapes"), ("w18_rh_ca", "adpc-w18-cityscapes")])
def test_golden_cases(tmp_path: Path, case: str, config: str) -> None:
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "golden_weights.py")
    assert spec is not None
    assert spec.loader is not None
    golden_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden_weights)
    state = {}
    for line in (GOLDEN / f"{case}.keys.txt").read_text().splitlines():
        name, _, shape = line.partition(" ")
        state[name] = torch.zeros(json.loads(shape))
    golden_weights.fill(state)
    torch.save(state | load_file(GOLDEN / f"{case}.state.safetensors"), tmp_path / "w.pth")
    io = GOLDEN / f"{case}.io.safetensors"
    threshold = json.loads((GOLDEN / f"{case}.json").read_text())["confidence_threshold"]
    command = ["run", config, "--weights", str(tmp_path / "w.pth"), "--input", str(io), "--output", str(tmp_path / "o")]
    assert main([*command, *(["--threshold", str(threshold)] if threshold else [])]) == 0
    found, expected = load_file(tmp_path / "o"), load_file(io)
    for index in range(1, 5):
        wanted = expected[f"logits{index}"]
        assert (found[f"logits{index}"] - wanted).abs().max() <= 1e-3 * wanted.abs().max()
