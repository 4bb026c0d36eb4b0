import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.anytime import largest, score_difference
from models.bench import command, runtimes
from models.data import scenes


def tiles(mask: np.ndarray, side: int) -> float:
    """The share of tiles with an active position."""
    height, width = mask.shape
    return float(mask.reshape(height // side, side, width // side, side).any((1, 3)).mean())


def test_drawn_scenes_have_camvids_statistics() -> None:
    shares = (0.807, 0.616, 0.370)
    found = [scenes.masks(scenes.draw(256, 512, seed), 256, 512, shares) for seed in range(4)]
    for index, (share, expected) in enumerate(zip(shares, (0.837, 0.667, 0.455), strict=True)):
        assert all(masks[index].mean() == pytest.approx(share, abs=1e-4) for masks in found)
        assert np.mean([tiles(masks[index], 8) for masks in found]) == pytest.approx(expected, abs=0.03)
    for masks in found:
        assert not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()


@pytest.mark.parametrize("share, expected", [(0, 0), (1, 1)])
def test_masks_at_the_ends(share: float, expected: float) -> None:
    assert scenes.masks(scenes.draw(32, 32, 0), 8, 8, [share])[0].mean() == expected


def arguments(**changes: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["--widths", "w18", "--sizes", "32x64", "--repeats", "1", "--threads", "1"])
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def test_everything_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(runtimes=["sparse", "torch", "onnxruntime"], sweep=(0.5,), output=tmp_path)
    assert command.main(args) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    kinds = [(row["task"]["runtime"], row["task"]["kind"], len(row["seconds"])) for row in report["rows"]]
    assert kinds == [
        ("sparse", "masked", 4), ("sparse", "masked", 4), ("sparse", "anytime", 4), ("sparse", "one exit", 1),
        ("torch", "anytime", 4), ("torch", "one exit", 1),
        ("onnxruntime", "anytime", 4), ("onnxruntime", "one exit", 1),
    ]  # fmt: skip
    assert all(row["difference"] < 1e-4 for row in report["rows"])
    assert (tmp_path / "bench.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "HRNet-W18 at 32x64" in printed and "seed: 0" in printed and "fastest dense runtime" in printed


@pytest.mark.parametrize("module, why", [
    ("raise ModuleNotFoundError('no openvino')", "no openvino"),
    ("import os; os._exit(3)", "terminated abruptly"),
])  # fmt: skip
def test_a_runtime_that_is_missing_or_dies_is_left_out(
    module: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "openvino.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    assert command.main(arguments(runtimes=["sparse", "openvino"], no_check=True, json=True)) == 0
    captured = capsys.readouterr()
    assert "left out: openvino" in captured.err and why in captured.err
    assert {row["task"]["runtime"] for row in json.loads(captured.out)["rows"]} == {"sparse"}
    with pytest.raises(ValueError, match="choose others with --runtimes"):
        command.main(arguments(runtimes=["openvino"]))


@pytest.mark.parametrize(
    "differences, wrong",
    [([1e-6, 1e-5], False), ([1e-6, 2e-4], True), ([float("nan"), 1e-6], True), ([1e-6, float("nan")], True)],
)
def test_scores_that_are_wrong_or_no_numbers_are_found(differences: list[float], wrong: bool) -> None:
    expected = torch.tensor([-2.0, 1.0])
    found = [score_difference(expected + 2 * off, expected) for off in differences]
    assert found == pytest.approx(differences, rel=0.2, nan_ok=True)
    row = command.Row(runtimes.Task("sparse", "anytime", "w18", (32, 64)), difference=largest(found))
    assert command.wrong(row) is wrong


def test_masks_of_label_maps(tmp_path: Path) -> None:
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / "val" / folder).mkdir(parents=True)
        Image.new(mode, (64, 32)).save(tmp_path / "val" / folder / "0001TP_1.png")
    labels = np.zeros((32, 64), np.uint8)
    labels[:, 32:] = 1
    Image.fromarray(labels).save(tmp_path / "val" / "labels" / "0001TP_1.png")
    task = runtimes.Task("sparse", "masked", "w18", (32, 64), (0.25,) * 3, data=str(tmp_path))
    columns = runtimes.masks(task)[0].numpy().all(0)
    assert columns.sum() == 4 and columns[6:10].all()
