"""Readers, and evaluation through an executor."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scipy.io import savemat

from models.__main__ import main
from models.checkpoint import save_directory
from models.training import evaluate
from models.training.data import camvid, lsp
from models.training.data.people import crop, joints_box


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for kind in ("images", "labels"):
        (tmp_path / "val" / kind).mkdir(parents=True)
    for index in range(3):
        Image.fromarray(tiny.image(50, 70, index)).save(tmp_path / "val" / "images" / f"drive{index % 2}_{index}.png")
        labels = np.full((50, 70), index, np.uint8)
        labels[:5] = 11
        Image.fromarray(labels).save(tmp_path / "val" / "labels" / f"drive{index % 2}_{index}.png")
    return tmp_path


@pytest.fixture
def people(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    joints = np.zeros((14, 3, 4))
    joints[:, :2] = rng.uniform(10, 50, (14, 2, 4))
    joints[:, 2] = 1
    joints[0, 2, 0] = 0
    for index in range(4):
        Image.fromarray(tiny.image(60, 64, index)).save(tmp_path / "images" / f"im{index + 1:05d}.png")
    savemat(tmp_path / "joints.mat", {"joints": joints})
    return tmp_path


def test_camvid_reads_scenes_and_void(scenes: Path) -> None:
    found = camvid.read(scenes, "val")
    assert [scene.drive for scene in found] == ["drive0", "drive0", "drive1"]
    labels = found[1].labels()
    assert (labels[:5] == camvid.VOID).all()
    assert (labels[5:] == 2).all()
    with pytest.raises(FileNotFoundError, match="no image in"):
        camvid.read(scenes, "test")
    found[0].label_path.unlink()
    with pytest.raises(FileNotFoundError, match="no label map"):
        camvid.read(scenes, "val")


def test_lsp_becomes_mpii(people: Path) -> None:
    person = lsp.read(people, "all")[0]
    assert person.joints.shape == (16, 3)
    assert person.joints[0, 2] == 0
    np.testing.assert_allclose(person.joints[6, :2], person.joints[[2, 3], :2].mean(0))
    np.testing.assert_allclose(person.joints[7, :2], person.joints[[12, 13], :2].mean(0))
    assert [len(lsp.read(people, split)) for split in ("train", "val", "all")] == [4, 4, 4]
    with pytest.raises(ValueError, match="choose train, val or all"):
        lsp.read(people, "test")
    (people / "images" / "im00001.png").unlink()
    with pytest.raises(ValueError, match=r"must be \(14, 3, 3\)"):
        lsp.read(people, "all")


def test_a_crop_keeps_joints_on_their_pixels(people: Path) -> None:
    person = lsp.read(people, "all")[1]
    image, joints = crop(person, 96)
    assert image.shape == (96, 96, 3)
    labelled = joints[joints[:, 2] > 0]
    assert labelled[:, :2].min() > 0
    assert labelled[:, :2].max() < 96
    spread = np.ptp(person.joints[:, :2], axis=0).max()
    assert np.ptp(joints[:, :2], axis=0).max() == pytest.approx(96 / 1.25, rel=0.05)
    assert spread == pytest.approx(max(joints_box(person.joints)[2:]))


def test_segmentation_is_scored_over_all_images(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_directory(tmp_path / "model", tiny.network())
    command = ["evaluate", str(tmp_path / "model"), "--data", str(scenes), "--split", "val", "--device", "cpu"]
    command += ["--executor", "reference"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["exit"] for row in result["exits"]] == [1, 2, 3, 4]
    assert result["mean"] == pytest.approx(sum(row["miou"] for row in result["exits"]) / 4, abs=0.01)
    assert [row["masked"] for row in result["exits"]][3] == 0
    gmacs = [row["gmacs"] for row in result["exits"]]
    assert gmacs == sorted(gmacs)
    assert main([*command, "--json", "--no-masks", "--drive", "drive1"]) == 0
    dense = json.loads(capsys.readouterr().out)
    assert dense["exits"][3]["gmacs"] > gmacs[3]
    assert main([*command, "--drive", "drive7"]) == 1
    assert "drive7" in capsys.readouterr().err
    assert main(command) == 0
    assert "mean" in capsys.readouterr().out


def test_pose_is_scored_by_torso_and_head(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_directory(tmp_path / "model", tiny.network(tiny.POSE))
    command = ["evaluate", str(tmp_path / "model"), "--data", str(people), "--split", "all", "--device", "cpu"]
    assert main([*command, "--executor", "reference", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert all(0 <= row["pck"] <= 100 and 0 <= row["pckh"] <= 100 for row in result["exits"])


def test_a_mirrored_heatmap_comes_back() -> None:
    """A joint at pixel 20 of 64 is at 43 in the mirror: position 10.75 there; it must come back to position 5."""
    heatmaps = torch.zeros(2, 1, 16)
    heatmaps[1, 0, 11] = 1
    back = evaluate.unmirrored(heatmaps, ((0, 1),))
    assert back[0, 0].argmax() == 5
    assert back[1].sum() == 0


def test_the_mirror_moves_the_box() -> None:
    image = tiny.image(10, 20)
    turned, box = evaluate.mirrored(image, (2, 3, 5, 6))
    assert box == (13, 3, 5, 6)
    assert np.array_equal(turned[:, 0], image[:, -1])
