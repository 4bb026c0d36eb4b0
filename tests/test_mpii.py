"""MPII in the files that HRNet's authors publish: reader, ground truth, PCKh of predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from models.__main__ import main
from models.checkpoint import save_directory
from models.data import mpii
from models.evaluation import pckh, scores
from models.training import tasks
from models.training.recipe import Phase, Recipe

NAMES = [
    "rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor", "neck", "head", "rwri", "relb", "rsho", "lsho",
    "lelb", "lwri",
]  # fmt: skip
PEOPLE = 5


def truth_file(path: Path, places: NDArray[Any], missing: NDArray[Any], names: list[str] = NAMES) -> Path:
    """A `gt_valid.mat` as published: joints' names in a cell row, arrays with the people last, head boxes of 40x30."""
    cells = np.empty((1, 16), object)
    cells[0] = names
    boxes = np.zeros((2, 2, places.shape[2]))
    boxes[1] = [[40], [30]]
    held = {"dataset_joints": cells, "pos_gt_src": places, "jnt_missing": missing, "headboxes_src": boxes}
    savemat(path, held)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five people in two pictures; joints lie within 20..80, one is missing."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "annot").mkdir()
    for index in range(2):
        Image.fromarray(tiny.image(90, 100, index)).save(tmp_path / "images" / f"{index}.jpg")
    places = rng.integers(20, 80, (16, 2, PEOPLE)).astype(float)
    missing = np.zeros((16, PEOPLE), np.uint8)
    missing[3, 1] = 1
    people = [
        {
            "image": f"{index % 2}.jpg",
            "joints": places[:, :, index].tolist(),
            "joints_vis": (1 - missing[:, index]).tolist(),
            "center": [50.0, 40.0],
            "scale": 0.4,
        }
        for index in range(PEOPLE)
    ]
    for name in ("train", "valid"):
        (tmp_path / "annot" / f"{name}.json").write_text(json.dumps(people))
    truth_file(tmp_path / "annot" / "gt_valid.mat", places, missing)
    return tmp_path


def test_people_are_read_from_zero(data: Path) -> None:
    people = mpii.read(data, "train")
    row = json.loads((data / "annot" / "train.json").read_text())[1]
    np.testing.assert_allclose(people[1].joints[:, :2], np.array(row["joints"]) - 1)
    assert people[1].joints[3, 2] == 0
    assert people[1].joints[:, 2].sum() == 15
    assert people[1].head_px is None
    # Centre 50, 40 counted from 1 at pixels' centres; 15 * 0.4 lower; 80 pixels tall.
    assert people[1].box == pytest.approx((49.5 - 40, 39.5 + 6 - 40, 80, 80))
    assert people[1].image().shape == (90, 100, 3)


def test_val_takes_labels_and_heads_from_the_ground_truth(data: Path) -> None:
    people = mpii.read(data, "val")
    assert [person.head_px for person in people] == pytest.approx([30.0] * PEOPLE)  # 0.6 of the diagonal
    np.testing.assert_allclose(people[1].joints, mpii.read(data, "train")[1].joints)


def test_what_cannot_be_read_is_named(data: Path) -> None:
    with pytest.raises(ValueError, match="choose train, val, trainval"):
        mpii.read(data, "test")
    with pytest.raises(FileNotFoundError, match=r"no .*trainval\.json"):
        mpii.read(data, "trainval")
    path = data / "annot" / "train.json"
    path.write_text(json.dumps([{"image": "0.jpg", "joints": [[1, 2]] * 14, "joints_vis": [1] * 14}]))
    with pytest.raises(ValueError, match=r"joints of 0\.jpg are \(14, 2\)"):
        mpii.read(data, "train")
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="not a list of people"):
        mpii.read(data, "train")
    truth_file(data / "annot" / "gt_valid.mat", np.zeros((16, 2, 3)), np.zeros((16, 3)))
    with pytest.raises(ValueError, match=r"about 3 people, valid\.json about 5"):
        mpii.read(data, "val")
    (data / "annot" / "gt_valid.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"gt_valid\.mat"):
        mpii.read(data, "val")


def test_ground_truth_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gt.mat"
    with pytest.raises(ValueError, match="names its joints"):
        mpii.read_truth(truth_file(path, np.zeros((16, 2, 3)), np.zeros((16, 3)), NAMES[::-1]))
    with pytest.raises(ValueError, match=r"must be \(16, 2, N\)"):
        mpii.read_truth(truth_file(path, np.zeros((16, 2, 3)), np.zeros((16, 2))))
    savemat(path, {"preds": np.zeros(3)})
    with pytest.raises(
        ValueError, match="has no pos_gt_src, jnt_missing, headboxes_src, dataset_joints; it holds preds"
    ):
        mpii.read_truth(path)
    path.write_bytes(b"not a matrix")
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file"):
        mpii.read_truth(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(64))
    with pytest.raises(ValueError, match="save it with -v7"):
        mpii.read_truth(path)


def test_pckh_by_hand(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads are 30 px. Right ankles are 14.9 px off, right knees 15 (not *within* half of 30), one left hip is missing
    and another wrong, pelvis and thorax are far off and do not count."""
    truth = data / "annot" / "gt_valid.mat"
    points = mpii.read_truth(truth).joints[:, :, :2].copy()
    points[:, 0, 0] += 14.9
    points[:, 1, 1] += 15
    points[0, 3] = 1000
    points[1, 3] = np.nan  # not labelled
    points[:, [6, 7]] += 500
    savemat(data / "pred.mat", {"preds": points})
    command = ["pckh", str(data / "pred.mat"), "--annotations", str(truth)]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    half, tenth = result["pckh"]
    assert result["people"] == PEOPLE
    assert half["mean"] == round(100 * (14 * PEOPLE - 1 - PEOPLE - 1) / (14 * PEOPLE - 1), 2)  # one missing, 6 wrong
    assert half["mean_by_joint"] == round(100 * (12 + 3 / 4) / 14, 2)
    assert (half["ankle"], half["knee"], half["hip"], half["head"]) == (100, 50, 87.5, 100)
    assert (tenth["within"], tenth["ankle"]) == (0.1, 50)
    assert main([*command, "--within", "0.5"]) == 0
    assert f"{half['mean_by_joint']:.2f}" in capsys.readouterr().out


def test_a_column_of_a_joint_that_is_never_labelled_is_empty(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places, missing = np.ones((16, 2, PEOPLE)), np.zeros((16, PEOPLE), np.uint8)
    missing[[9, 12]] = 1  # head top and right shoulder
    truth = truth_file(data / "annot" / "gt_valid.mat", places, missing)
    np.save(data / "pred.npy", np.ones((PEOPLE, 16, 2)))
    command = ["pckh", str(data / "pred.npy"), "--annotations", str(truth), "--within", "0.5"]
    assert main([*command, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["pckh"]
    assert (row["head"], row["shoulder"], row["hip"], row["mean"]) == (None, None, 100, 100)
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["0.50", "-", "-", "100.00"]


def test_predictions_are_read_from_every_form(tmp_path: Path) -> None:
    points = np.arange(2 * 16 * 3, dtype=np.float32).reshape(2, 16, 3)
    savemat(tmp_path / "a.mat", {"preds": points})
    np.save(tmp_path / "a.npy", points)
    (tmp_path / "a.json").write_text(json.dumps(points.tolist()))
    for suffix in ("mat", "npy", "json"):
        np.testing.assert_array_equal(pckh.read_predictions(tmp_path / f"a.{suffix}"), points[:, :, :2])
    np.save(tmp_path / "a.npy", points[:, :14])
    with pytest.raises(ValueError, match=r"\(2, 14, 3\); they must be \(people, 16, 2\)"):
        pckh.read_predictions(tmp_path / "a.npy")
    for suffix in ("mat", "npy", "json"):
        (tmp_path / f"a.{suffix}").write_bytes(b"")
        with pytest.raises(ValueError, match=rf"a\.{suffix} cannot be read"):
            pckh.read_predictions(tmp_path / f"a.{suffix}")
    np.savez(tmp_path / "a.npz", points)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        pckh.read_predictions(tmp_path / "a.npy")
    (tmp_path / "a.h5").touch()
    with pytest.raises(ValueError, match=r"read from \.mat, \.npy, \.json"):
        pckh.read_predictions(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match=r"b\.mat"):
        pckh.read_predictions(tmp_path / "b.mat")


def test_predictions_for_others_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="for 2 people, but ground truth for 5"):
        pckh.rates(np.zeros((2, 16, 2)), mpii.read_truth(data / "annot" / "gt_valid.mat"), 0.5)


def test_a_model_is_evaluated(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_directory(tmp_path / "model", tiny.network(tiny.POSE))
    command = ["evaluate", str(tmp_path / "model"), "--data", str(data), "--split", "val", "--device", "cpu"]
    command += ["--executor", "reference"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    means = [sum(row["pckh"] for row in result["exits"]) / 4, result["mean_pckh"]]
    assert means[0] == pytest.approx(means[1], abs=0.01)
    assert all(0 <= row[score] <= 100 for row in result["exits"] for score in ("pck", "pckh", "pckh_by_joint"))
    assert main([*command, "--no-flip"]) == 0
    assert "pckh_by_joint" in capsys.readouterr().out


def test_a_network_is_trained_on_it(data: Path) -> None:
    phase = Phase(steps=2, batch=4, crop=(64, 64), scale=(0.8, 1.2))
    task = tasks.Pose(tiny.POSE, Recipe(splits=("train",), phases=(phase,)), data, torch.device("cpu"))
    images, joints = task.batch(0)
    assert (task.examples, images.shape, joints.shape) == (PEOPLE, (4, 3, 64, 64), (4, 16, 3))
    network = tiny.network(tiny.POSE)
    assert task.losses(network(images), joints).isfinite().all()
    assert all(0 <= score <= 100 for score in task.score(network))


def test_both_means_weigh_joints_differently() -> None:
    right = torch.full((4, 16), torch.nan)
    right[:, 0], right[0, 1] = 1, 0
    assert [float(mean) for mean in scores.means(right)] == pytest.approx([0.8, 0.5])
