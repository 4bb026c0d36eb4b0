"""The quality stop: its promise, its file, and the uncertainty that it goes by."""

import json
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from models import quality
from models.anytime import Exit
from models.checkpoint import save_directory
from models.directory import CONFIG_FILE, QUALITY_FILE, find_models, fingerprint
from models.imaging.geometry import Frame
from models.network.confidence import confidence
from models.quality import Quality, breakable, threshold, uncertainty

Population = tuple[NDArray[np.float64], NDArray[np.float64]]


def population(images: int, seed: int, noise: float = 0.3) -> Population:
    """Uncertainties and changes at three exits. Both fall from exit to exit, and they are correlated."""
    rng = np.random.default_rng(seed)
    hard = rng.gamma(4, 0.25, (images, 1))
    uncertain = hard * (0.09, 0.07, 0.04) * rng.lognormal(0, 0.1, (images, 3))
    changed = uncertain * (0.9, 0.8, 0.5) * rng.lognormal(0, noise, (images, 3))
    return uncertain.clip(0, 1), changed.clip(0, 1)


def broken(people: Population, below: float, epsilon: float) -> float:
    """The share of images that would stop at an exit which is not within epsilon."""
    uncertain, changed = people
    return float(((uncertain < below) & (changed > epsilon)).any(1).mean())


def tail(images: int, count: int) -> Fraction:
    """The probability that at most `count` of `images` break the bound, if each does with probability 1/10."""
    return sum((comb(images, k) * Fraction(9) ** (images - k) for k in range(count + 1)), Fraction()) / 10**images


@pytest.mark.parametrize("images", [0, 1, 21, 22, 37, 38, 50, 51, 101, 367, 1000])
def test_how_many_may_break_a_threshold_is_the_binomial_test(images: int) -> None:
    count = breakable(images)
    assert count == 0 or tail(images, count - 1) <= Fraction(1, 10)
    assert tail(images, count) > Fraction(1, 10) or images == 0
    assert count <= (images + 1) // 10, "more than conformal risk control allows"


def test_so_many_images_that_probabilities_underflow() -> None:
    assert 4800 < breakable(50_000) < 5000


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.1])
def test_the_promise_over_many_calibrations(epsilon: float) -> None:
    """Learn-then-Test: in at least 9 calibrations of 10, at most 1 of all images in 10 breaks the bound."""
    everyone = population(20_000, seed=1)
    failed, stopped = 0, 0.0
    for seed in range(200):
        below = threshold(*population(60, seed=100 + seed), epsilon)
        failed += broken(everyone, below, epsilon) > 0.1
        stopped += float((everyone[0] < below).any(1).mean()) / 200
    assert failed <= 20
    assert stopped > 0.1, "a rule that never stops keeps any promise"


def test_what_is_stopped_keeps_the_bound_too() -> None:
    """No early exit is within 0.001. If one image in twenty stopped, the promise would hold for the average over all
    images, but none of the stopped ones would keep the bound."""
    uncertain, changed = population(100, seed=2)
    assert broken((uncertain, changed), float(np.sort(uncertain.min(1))[4]), 0.001) == 0.04
    assert threshold(uncertain, changed, 0.001) == 0


def test_too_few_images_never_stop() -> None:
    uncertain = np.full((21, 3), 0.1)
    assert threshold(uncertain, np.zeros((21, 3)), 0.05) == 0
    found = Quality.fit(uncertain, np.zeros((21, 3)), "val", "")
    assert found.steps == () and not found.stops(0.0, 0.99)


def test_no_uncertainty_is_trusted_that_no_image_showed() -> None:
    uncertain, _ = population(50, seed=3)
    found = Quality.fit(uncertain, np.zeros_like(uncertain), "val", "")
    assert found.threshold(0.01) == pytest.approx(uncertain.max(), abs=2 / quality.GRID)
    assert not found.stops(float(uncertain.max()) + 0.001, 0.99)


def test_a_threshold_by_hand() -> None:
    """30 images and two exits: breakable is 1, so the threshold is the least uncertainty of an exit above epsilon."""
    assert breakable(30) == 1
    uncertain = np.stack([np.linspace(0.2, 0.49, 30), np.linspace(0.1, 0.39, 30)], 1)
    changed = np.stack([np.full(30, 0.02), np.full(30, 0.01)], 1)
    changed[17, 0], changed[25, 1] = 0.3, 0.2
    assert threshold(uncertain, changed, 0.05) == uncertain[25, 1]
    assert threshold(uncertain, changed, 0.25) == uncertain[17, 0]
    assert threshold(uncertain, changed, 0.3) == uncertain.max()
    assert threshold(uncertain, changed, 0.015) == uncertain[0, 0], "every first exit is above it"


def test_the_table_serves_every_epsilon_on_the_safe_side() -> None:
    uncertain, changed = population(80, seed=4)
    found = Quality.fit(uncertain, changed, "val", "")
    epsilons, thresholds = zip(*found.steps, strict=True)
    assert list(epsilons) == sorted(set(epsilons)) and list(thresholds) == sorted(set(thresholds))
    step = 1 / quality.GRID
    for epsilon in np.random.default_rng(5).uniform(0, 0.3, 300):
        now = found.threshold(epsilon)
        assert now <= threshold(uncertain, changed, epsilon)
        assert now >= threshold(uncertain, changed, epsilon - step) - step
    assert found.threshold(1e-9) == 0 and not found.stops(0.0, 1e-9)
    assert found.stops(thresholds[-1] - step, 0.999999)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_directory(tmp_path, tiny.network())
    return tmp_path


def test_it_comes_back_from_its_file(directory: Path) -> None:
    found = Quality.fit(*population(40, seed=6), "val", fingerprint(directory))
    found.save(directory)
    assert Quality.load(directory) == found
    never = Quality((), 3, "val", fingerprint(directory))
    never.save(directory)
    assert Quality.load(directory) == never


def test_a_calibration_of_other_weights_or_masks_is_refused(directory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Quality.load(directory)
    Quality(((0.1, 0.2),), 30, "val", fingerprint(directory)).save(directory)
    config = (directory / CONFIG_FILE).read_text()
    (directory / CONFIG_FILE).write_text(config.replace('"threshold": 0.6', '"threshold": 0.7'))
    with pytest.raises(ValueError, match="was made for weights and a configuration"):
        Quality.load(directory)
    (directory / CONFIG_FILE).write_text(config.replace('"licence": ""', '"licence": "none"'))
    assert Quality.load(directory).images == 30
    save_directory(directory, tiny.network(seed=1))
    with pytest.raises(ValueError, match="python -m models calibrate"):
        Quality.load(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 3},
        {"steps": [[0.1]]},
        {"steps": [[0.2, 0.1], [0.1, 0.2]]},
        {"steps": [[0.1, float("nan")]]},
        {"steps": [[0.1, 2]]},
        {"images": "many"},
        {"fingerprint": None},
    ],
)
def test_a_broken_file_says_what_to_do(directory: Path, change: dict[str, object]) -> None:
    right = {"source": "val", "images": 30, "fingerprint": fingerprint(directory), "steps": [[0.1, 0.2]]}
    file = directory / QUALITY_FILE
    file.write_text(json.dumps(right))
    assert Quality.load(directory).stops(0.19, 0.1)
    file.write_text(json.dumps(right | change))
    with pytest.raises(ValueError, match="calibrate it anew"):
        Quality.load(directory)
    file.write_text("{")
    with pytest.raises(ValueError, match="does not hold a calibration"):
        Quality.load(directory)


def found_exit(scores: torch.Tensor) -> Exit:
    nowhere = torch.zeros(scores.shape[1:])
    return Exit(1, scores, nowhere.byte(), nowhere.bool(), 0.0, 0)


def test_uncertainty_is_the_mean_lack_of_confidence_inside_the_image() -> None:
    scores = torch.randn(5, 16, 24, generator=torch.Generator().manual_seed(0))
    inside = confidence(scores[None], "segmentation")[0, 0, :13:2, :17:2]
    assert uncertainty(found_exit(scores), "segmentation", Frame(50, 66)) == pytest.approx(1 - float(inside.mean()))
    scores[:, 13:] = scores[:, :, 17:] = 0  # padding
    assert uncertainty(found_exit(scores), "segmentation", Frame(50, 66)) == pytest.approx(1 - float(inside.mean()))


def test_uncertainty_of_a_pose_is_the_height_that_its_peaks_lack() -> None:
    heatmaps = torch.zeros(2, 8, 8)
    heatmaps[0, 3, 3], heatmaps[1, 0, 7] = 0.5, 1.2  # a peak above 1 is no surer than 1
    assert uncertainty(found_exit(heatmaps), "pose", Frame(64, 64)) == pytest.approx(0.25)
    assert uncertainty(found_exit(heatmaps - 2), "pose", Frame(64, 64)) == 1


def test_the_calibrations_that_ship_are_of_the_weights_that_ship() -> None:
    found = [Quality.load(path) for path in find_models().values() if (path / QUALITY_FILE).exists()]
    assert found and all(calibration.threshold(0.5) > 0 for calibration in found)
