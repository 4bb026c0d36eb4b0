"""From images to a model's scales, and what the command says that they cost."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from models.__main__ import main
from models.checkpoint import save_directory
from models.data import datasets
from models.data.scenes import Scene
from models.evaluation.quantise import (
    LOSS_LIMIT,
    choose_float_layers,
    differences,
    examples,
    layer_groups,
    stored_features,
)
from models.evaluation.ranges import BINS, DROPPED_BITS, RangeObserver, scale_of
from models.executors.selection import build
from models.network.named import feature_names
from models.quantisation import Scales


def counts(values: Sequence[float]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    bits = np.array(values, np.float32).view(np.int32) >> DROPPED_BITS
    return np.bincount(bits, minlength=BINS)


def test_a_percentile_leaves_the_largest_values_out() -> None:
    values = [*np.linspace(0, 10, 9_999), 1000.0]
    assert scale_of(counts(values), 100) == pytest.approx(1000 / 255, rel=0.005)
    assert scale_of(counts(values), 99.99) == pytest.approx(10 / 255, rel=0.005)
    assert scale_of(counts(values), 50) == pytest.approx(5 / 255, rel=0.005)
    assert scale_of(counts([0.0, 0.0]), 99.99) == pytest.approx(1 / 255, rel=1e-5)


def test_a_scale_reaches_the_largest_value() -> None:
    for value in (1e-6, 0.3, 1.0, 255.0, 7.77e4):
        assert 255 * scale_of(counts([value]), 100) >= value * (1 - 1e-5)


def test_ranges_are_of_every_feature_over_all_images() -> None:
    network = tiny.network()
    observer = RangeObserver(network)
    largest: dict[str, float] = {}
    for seed in range(2):
        one = RangeObserver(network)
        one.observe([(tiny.image(seed=seed), None)])
        for name, scale in one.scales(100).items():
            largest[name] = max(scale, largest.get(name, 0))
    observer.observe([(tiny.image(seed=seed), None) for seed in range(2)])
    assert observer.scales(100) == largest and list(largest) == feature_names(network)


def test_groups_hold_every_convolution_once() -> None:
    network = tiny.network()
    groups = layer_groups(network)
    paths = [path for group in groups.values() for path in group]
    convs = {path for path, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    assert sorted(paths) == sorted(convs)
    assert list(groups) == ["heads", "layer1", "stage2", "stage3", "stage4"]
    assert groups["heads"][0] == "exit1.1" and "last_layer.3" in groups["heads"]
    assert "transition2.2.0.0" in groups["stage3"] and "conv2" in groups["layer1"]


def test_what_float_layers_alone_read_stays_in_float() -> None:
    network = tiny.network()
    names = feature_names(network)
    assert stored_features(network, ()) == names
    left_out = set(names) - set(stored_features(network, ("exit1.1", "exit1.5", "conv2", "layer1.0.conv1")))
    # conv2 is also read by the convolution of the residual, and exit1.5 makes a feature that is pooled.
    assert left_out == {"conv1", "exit1.pooled.0", "exit1.1", "exit1.pooled.1", "exit1.5"}
    heads = stored_features(network, layer_groups(network)["heads"])
    assert not [name for name in heads if name.startswith(("exit", "last_layer", "stage4.0.out"))]
    assert "stage3.0.out.0" in heads


@pytest.mark.parametrize(
    ("heads", "stages", "chosen"),
    [
        (0.0, {}, []),
        (0.4, {}, ["heads"]),
        (0.4, {"stage2": 0.2, "stage4": 0.5}, ["heads", "stage4"]),
        (0.0, {"stage2": 0.4, "stage3": 0.4}, ["heads", "stage2", "stage3"]),
    ],
)
def test_layers_that_cost_too_much_stay_in_float(heads: float, stages: dict[str, float], chosen: list[str]) -> None:
    """Each group costs some points at the last exit unless it stays in float."""
    costs = {"heads": heads, "layer1": 0.0, "stage2": 0.0, "stage3": 0.0, "stage4": 0.0} | stages
    groups = {name: (f"{name}.conv",) for name in costs}

    def losses(float_layers: tuple[str, ...]) -> list[float]:
        return [0.0, sum(cost for name, cost in costs.items() if f"{name}.conv" not in float_layers)]

    assert max(losses(tuple(f"{name}.conv" for name in chosen))) <= LOSS_LIMIT
    assert choose_float_layers(losses, groups) == chosen


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    tiny.write_scenes(tmp_path / "camvid")
    return tmp_path / "camvid"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_directory(tmp_path / "model", tiny.network())
    return tmp_path / "model"


def test_no_image_is_both_calibrated_with_and_compared_on(camvid: Path) -> None:
    both = examples(tiny.SEGMENTATION, camvid, ("train", "val"), 3, 2)
    assert (len(both.calibration), len(both.held_out)) == (3, 2)
    assert (both.source, both.compared_on) == ("train", "val")
    one = examples(tiny.SEGMENTATION, camvid, ("val", "val"), 100, None)
    assert (len(one.calibration), len(one.held_out)) == (3, 2)
    folder = examples(tiny.SEGMENTATION, camvid / "val" / "images", ("train", "val"), 100, None)
    assert not set(folder.calibration) & set(folder.held_out) and len(folder.calibration) == 3
    assert folder.source == "every other image of images"


def test_a_folder_of_one_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(tiny.image()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has 1 image; give 2 or more"):
        examples(tiny.SEGMENTATION, tmp_path, ("train", "val"), 100, None)


def test_both_precisions_answer_an_image_that_is_read_once(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    scenes = datasets.scenes(camvid, "val")[:2]
    monkeypatch.setattr(Scene, "image", lambda scene: read.append(scene) or tiny.image(48, 64))
    model = build(tiny.network(), "cpu", "reference")
    assert differences(model, model, scenes) == [{"equal": 1.0}] * 4
    assert read == scenes


def test_from_a_data_set_to_the_file(camvid: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantise", str(model), "--data", str(camvid), "--images", "2", "--compare", "2", "--threads", "1"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["compared_images"], report["compared_on"]) == (2, 2, "val")
    for index, exit_ in enumerate(report["exits"], 1):
        assert exit_["exit"] == index and exit_["equal"] > 0.7
        assert exit_["lost"] == pytest.approx(exit_["miou_fp32"] - exit_["miou_int8"], abs=0.011)
        assert exit_["active_fp32"] == pytest.approx(exit_["active_int8"], abs=0.1)
    scales = Scales.load(model)
    assert scales is not None and list(scales.features) == feature_names(tiny.network())
    assert scales.source == "train" and scales.report == report
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "int8.json", "model.safetensors"]


def test_a_folder_of_images_shows_agreement_alone(
    camvid: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = camvid / "val" / "images", tmp_path / "output"
    output.mkdir()
    assert main(["quantise", str(model), "--data", str(images), "--output", str(output), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "compared on 2 images of the other images of images" in printed and f"{output / 'int8.json'}" in printed
    assert "layers in float32: none" in printed
    assert not (model / "int8.json").exists() and (output / "int8.json").is_file()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--images", "0", "--images is 0; give at least 1"),
        ("--compare", "0", "--compare is 0; give at least 1"),
        ("--percentile", "0", "--percentile is 0; give more than 0 and at most 100"),
        ("--output", "nowhere", "there is no folder nowhere; make it first"),
    ],
)
def test_wrong_options_are_refused(
    option: str, value: str, message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantise", str(model), "--data", ".", option, value]) == 1
    assert message in capsys.readouterr().err
