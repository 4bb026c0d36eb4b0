"""Readers, and evaluation through an executor."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scipy.io import savemat

from models.__main__ import main
from models.checkpoint import save_directory
from models.data import camvid, cityscapes, datasets, lsp
from models.data.people import Person, Skeleton, crop, joints_box
from models.data.scenes import VOID
from models.evaluation import evaluate
from models.imaging.geometry import Box, person_square
from models.network.labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from models.training import tasks
from models.training.recipe import Phase, Recipe


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
    assert (labels[:5] == VOID).all()
    assert (labels[5:] == 2).all()
    with pytest.raises(FileNotFoundError, match="no image in"):
        camvid.read(scenes, "test")
    found[0].label_path.unlink()
    with pytest.raises(FileNotFoundError, match="no label map"):
        camvid.read(scenes, "val")


@pytest.fixture
def cities(tmp_path: Path) -> Path:
    """Cityscapes as published: an image and its map of label ids in each of two cities."""
    for city, label in (("aachen", 7), ("bochum", 33)):
        for kind in ("leftImg8bit", "gtFine"):
            (tmp_path / kind / "val" / city).mkdir(parents=True)
        name = f"{city}_000000_000019"
        Image.fromarray(tiny.image(32, 64)).save(tmp_path / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png")
        ids = np.full((32, 64), label, np.uint8)
        ids[0, :6] = 0, 34, 255, 8, 9, 20  # void, void, void (licence plate), sidewalk, void (parking), traffic sign
        for which in ("labelIds", "instanceIds"):
            Image.fromarray(ids).save(tmp_path / "gtFine" / "val" / city / f"{name}_gtFine_{which}.png")
    return tmp_path


def test_cityscapes_reads_19_of_34_labels(cities: Path) -> None:
    found = cityscapes.read(cities, "val")
    assert [scene.drive for scene in found] == ["aachen", "bochum"]
    labels = found[1].labels()
    assert labels[0, :6].tolist() == [VOID, VOID, VOID, 1, VOID, 7]
    assert (labels[1:] == 18).all()
    assert (cityscapes.CLASSES != VOID).sum() == len(CITYSCAPES_CLASSES)
    found[0].label_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no label map .*gtFine/val/aachen"):
        cityscapes.read(cities, "val")
    with pytest.raises(FileNotFoundError, match="leftImg8bit_trainvaltest"):
        cityscapes.read(cities, "train")


def test_a_network_is_trained_on_cityscapes(cities: Path) -> None:
    recipe = Recipe(splits=("val",), phases=(Phase(2, 2, (32, 32), (0.5, 1.0)),), hold_out=("bochum",))
    config = replace(tiny.SEGMENTATION, outputs=19)
    task = tasks.Segmentation(config, recipe, cities, torch.device("cpu"))
    images, labels = task.batch(0)
    assert (task.examples, images.shape, labels.shape) == (1, (2, 3, 32, 32), (2, 32, 32))
    network = tiny.network(config)
    assert task.losses(network(images), labels).isfinite().all()
    assert len(task.score(network)) == 4
    Image.fromarray(tiny.image(40, 64)).save(cityscapes.read(cities, "val")[0].image_path)
    with pytest.raises(ValueError, match=r"labelIds.png has 32x64 pixels, but its image has 40x64; make it anew"):
        tasks.Segmentation(config, recipe, cities, torch.device("cpu"))
    Image.fromarray(np.full((40, 64), 7, np.uint8)).save(cityscapes.read(cities, "val")[0].label_path)
    recipe = replace(recipe, hold_out=())
    with pytest.raises(ValueError, match=r"bochum_.* is 32x64, but the first image is 40x64; training needs one size"):
        tasks.Segmentation(config, recipe, cities, torch.device("cpu"))


def test_cityscapes_is_evaluated_by_a_model_of_its_classes(
    cities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"outputs": 19, "labels": CITYSCAPES_CLASSES, "palette": CITYSCAPES_PALETTE}
    save_directory(tmp_path / "model", tiny.network(replace(tiny.SEGMENTATION, **labels)))
    save_directory(tmp_path / "small", tiny.network())
    command = ["--data", str(cities), "--split", "val", "--device", "cpu", "--executor", "reference", "--json"]
    assert main(["evaluate", str(tmp_path / "model"), *command]) == 0
    row = json.loads(capsys.readouterr().out)["exits"][3]
    assert row["classes"].keys() == set(CITYSCAPES_CLASSES)
    assert main(["evaluate", str(tmp_path / "model"), *command, "--drive", "bochum"]) == 0
    assert main(["evaluate", str(tmp_path / "small"), *command]) == 1
    assert "has class 7 of the data set's 0 to 18, but the model has 0 to 2; choose" in capsys.readouterr().err


def test_a_folder_tells_its_data_set(scenes: Path, tmp_path: Path) -> None:
    assert len(datasets.scenes(scenes, "val")) == 3
    with pytest.raises(FileNotFoundError, match=r"neither annot/\*\.json \(MPII\) nor joints\.mat \(LSP\)"):
        datasets.people(scenes, "val")
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit .*CamVid"):
        datasets.scenes(tmp_path / "nowhere", "val")


def test_lsp_becomes_mpii(people: Path) -> None:
    person = lsp.read(people, "all")[0]
    assert person.joints.shape == (16, 3)
    assert person.joints[0, 2] == 0
    np.testing.assert_allclose(person.joints[6, :2], person.joints[[2, 3], :2].mean(0))
    np.testing.assert_allclose(person.joints[7, :2], person.joints[[12, 13], :2].mean(0))
    with pytest.raises(ValueError, match="choose train, val, all"):
        lsp.read(people, "test")
    (people / "images" / "im00001.png").unlink()
    with pytest.raises(ValueError, match=r"must be \(14, 3, 3\); remove images without joints"):
        lsp.read(people, "all")


@pytest.mark.parametrize(("ends", "midpoint"), [((2, 3), 6), ((8, 9), 7)])
def test_a_midpoint_is_labelled_where_both_its_ends_are(ends: tuple[int, int], midpoint: int) -> None:
    """LSP's hips are its joints 2 and 3, its shoulders 8 and 9."""
    joints = np.ones((14, 3), np.float32)
    assert lsp.to_mpii(joints)[midpoint, 2] == 1
    for end in ends:
        without = joints.copy()
        without[end, 2] = 0
        assert lsp.to_mpii(without)[midpoint, 2] == 0


def test_the_splits_of_lsp_never_meet(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(lsp.read(people, "train")) == len(lsp.read(people, "all")) == 4
    with pytest.raises(ValueError, match="has 4 people, and split val begins after 6000; use split all"):
        lsp.read(people, "val")
    paths = [Path(f"im{index + 1:05d}.jpg") for index in range(7000)]
    monkeypatch.setattr(lsp, "images_in", lambda _: paths)
    monkeypatch.setattr(lsp, "read_mat", lambda *_: [np.random.default_rng(0).uniform(1, 9, (14, 3, 7000))])
    train, val = ([int(person.image_path.stem[2:]) for person in lsp.read(people, split)] for split in ("train", "val"))
    assert (train, val) == (list(range(1, 6001)), list(range(6001, 7001)))
    del paths[-1]  # as where an image is missing
    with pytest.raises(ValueError, match=r"for the 6999 images of .* they must be \(14, 3, 6999\)"):
        lsp.read(people, "val")


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
    assert [row["masked"] for row in dense["exits"]] == [0] * 4
    assert main([*command, "--drive", "drive7"]) == 1
    assert "drive7" in capsys.readouterr().err
    assert main(command) == 0
    assert "mean" in capsys.readouterr().out


def test_what_is_never_labelled_has_no_score_and_what_has_no_name_a_number(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tiny.network(replace(tiny.SEGMENTATION, outputs=11, labels=("sky",), palette=((0, 0, 0),)))
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.endswith("bias") and len(tensor) == 11:
                tensor[10] = -1e3  # never found
    save_directory(tmp_path / "model", network)
    command = ["evaluate", str(tmp_path / "model"), "--data", str(scenes), "--split", "val", "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["exits"][3]
    assert list(row["classes"]) == ["sky", *map(str, range(1, 11))]
    assert row["classes"]["10"] is None and row["classes"]["1"] is not None
    for path in (scenes / "val" / "labels").iterdir():
        Image.fromarray(np.full((50, 70), 11, np.uint8)).save(path)
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr().out
    assert "NaN" not in printed
    result = json.loads(printed)
    assert (result["mean"], [row["miou"] for row in result["exits"]]) == (None, [None] * 4)
    assert main(command) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["miou", *"-----"]


def test_pose_without_heads_has_no_pckh(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    joints = np.random.default_rng(0).uniform(10, 50, (14, 3, 4))
    joints[:, 2] = 1
    joints[13, 2] = 0  # no head top
    savemat(people / "joints.mat", {"joints": joints})
    save_directory(tmp_path / "model", tiny.network(tiny.POSE))
    command = ["evaluate", str(tmp_path / "model"), "--data", str(people), "--split", "all", "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean"] >= 0
    assert [result["mean_pckh"], result["exits"][3]["pckh"], result["exits"][3]["pckh_by_joint"]] == [None] * 3
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[2:] == ["-", "-"]


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


@pytest.mark.parametrize("box", [(2, 3, 5, 6), (2.5, 3, 5, 6), (3, 3.5, 4, 4), (-4, -2, 9.6, 30), (19, 9, 1, 1)])
def test_the_mirror_s_crop_is_the_crop_s_mirror_to_the_pixel(box: Box) -> None:
    image = tiny.image(10, 20)
    turned, there = evaluate.mirrored(image, box)
    assert np.array_equal(turned[:, 0], image[:, -1])
    left, top, side = person_square(10, 20, box)
    assert person_square(10, 20, there) == (20 - left - side, top, side)


def test_a_new_data_set_is_a_reader_and_a_line_of_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two joints of hands, which nothing else knows: a network is trained, evaluated and calibrated on them."""
    hands = Skeleton(joints=2, torsos=((0, 1),), head=(0, 1))

    def read(directory: Path, split: str) -> list[Person]:
        joints = np.array([[10, 20, 1], [50, 40, 1]], np.float32)
        return [Person(path, joints, (5, 5, 50, 50), hands) for path in sorted((directory / split).iterdir())]

    monkeypatch.setattr(datasets, "POSE", (*datasets.POSE, datasets.DataSet("Hands", "*/hand*.png", read)))
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for index in range(24):
            Image.fromarray(tiny.image(60, 64, index)).save(tmp_path / "data" / split / f"hand{index:02}.png")
    config = replace(
        tiny.POSE, name="hands", outputs=2, labels=("wrist", "tip"), palette=(), skeleton=((0, 1),), flip_pairs=()
    )
    recipe = Recipe(splits=("train",), phases=(Phase(2, 2, (64, 64), (1.0, 1.0)),))
    task = tasks.Pose(config, recipe, tmp_path / "data", torch.device("cpu"))
    images, joints = task.batch(0)
    network = tiny.network(config)
    assert task.losses(network(images), joints).isfinite().all()
    assert all(0 <= score <= 100 for score in task.score(network))
    save_directory(tmp_path / "hands", network)
    save_directory(tmp_path / "people", tiny.network(tiny.POSE))
    data = ["--data", str(tmp_path / "data"), "--split", "val", "--device", "cpu", "--executor", "reference"]
    assert main(["evaluate", str(tmp_path / "hands"), *data, "--json"]) == 0
    assert all(0 <= row["pckh"] <= 100 for row in json.loads(capsys.readouterr().out)["exits"])
    assert main(["calibrate", str(tmp_path / "hands"), *data, "--splits", "2"]) == 0
    assert main(["evaluate", str(tmp_path / "people"), *data]) == 1
    assert "hand00.png has 2 joints, but the model has 16; choose a model of these joints" in capsys.readouterr().err
