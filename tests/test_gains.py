"""What exits are worth: the fit, what it keeps, the file, and the utilities that it comes from."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from given import Given

from models.checkpoint import save_directory
from models.commands.calibrate import table
from models.data.mpii import SKELETON
from models.data.people import Person
from models.directory import GAINS_FILES, fingerprint
from models.evaluation.gains import FOLDS, PROFILES, fit, helps, measure, report
from models.evaluation.observations import ObservedExit, miou, pck
from models.gains import Gains, NextGain, Profile, Term


def profiles(images: int = 400, seed: int = 0) -> list[Profile]:
    """Exit 2 adds 0.1 + 0.5 * (active share of exit 1 - 0.5), and exit 3 adds 0.05, both but for noise."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.3, 0.7, images)
    gains = np.stack([np.full(images, 0.6), 0.1 + 0.5 * (share - 0.5), np.full(images, 0.05)], 1)
    utility = np.cumsum(gains + rng.normal(0, 0.02, gains.shape), 1).clip(0, 1)
    return [
        Profile(
            tuple(worth), (active, 0.4, 0.3), tuple(rng.uniform(0, 1, 3)), tuple(rng.uniform(0, 1, 3)), (9.0, 4.0, 5.0)
        )
        for worth, active in zip(utility.tolist(), share.tolist(), strict=True)
    ]


def test_what_predicts_a_gain_is_found_and_what_does_not_is_left_out() -> None:
    first, second, third = (fit(profiles(), index) for index in (1, 2, 3))
    assert first.mean == pytest.approx(0.6, abs=0.01) and first.terms == third.terms == ()
    (term,) = second.terms
    assert (term.predictor, term.mean) == ("active_share", pytest.approx(0.5, abs=0.02))
    assert term.slope == pytest.approx(0.5, abs=0.05)
    assert second.error == pytest.approx(0.02, abs=0.003) and second.mean_error == pytest.approx(0.061, abs=0.006)
    assert third.mean == pytest.approx(0.05, abs=0.01) and third.error == third.mean_error


def test_neighbours_are_kept_aside_together() -> None:
    """Frames of a clip: what changes from one part to the next seems to be predicted by a share that drifts with it,
    but in the part that is kept aside the share says nothing."""
    images = profiles(FOLDS * 20)
    drifted = [
        replace(
            profile, active_share=(0.3 + 0.002 * index, 0.4, 0.3), utility=(0.5, 0.6 + 0.1 * (index // 20 % 2), 0.8)
        )
        for index, profile in enumerate(images)
    ]
    assert fit(drifted, 2).terms == ()


@pytest.mark.parametrize(("fall", "so"), [(0.0, False), (0.5, False), (1.5, True)])
def test_a_predictor_helps_if_the_error_falls_surely(fall: float, so: bool) -> None:
    noise = np.tile([-1.0, 1.0], FOLDS // 2)  # of standard deviation 1.05, so of standard error 1 / 3
    assert helps(np.full(FOLDS, 5.0), np.full(FOLDS, 5.0) - fall - noise) is so


def test_what_is_expected_of_an_image() -> None:
    gain = NextGain(0.1, 0.02, 0.03, (Term("active_share", 0.5, 0.4), Term("change", 0.2, -1.0)))
    assert gain.expected({}) == 0.1
    assert gain.expected({"active_share": 0.6, "confidence": 0.9}) == pytest.approx(0.14)
    assert gain.expected({"active_share": 0.6, "change": 0.1}) == pytest.approx(0.24)
    assert gain.expected({"change": 0.9}) == 0


def observed(utility: float, index: int = 0) -> tuple[ObservedExit, ...]:
    return tuple(ObservedExit(0.2, 0.1, 0.1, 0.5, 10, 0.01 * (index + 1), utility + 0.1 * exit_) for exit_ in range(4))


def test_images_without_a_score_and_the_first_are_not_kept(tmp_path: Path) -> None:
    model = Given(tiny.SEGMENTATION, [])
    images = [observed(math.nan), *(observed(0.001 * index, index) for index in range(PROFILES + 100))]
    found = measure(model, images, "val", "made-for")
    assert (found.images, len(found.profiles)) == (PROFILES + 100, PROFILES)
    kept = [profile.utility[0] for profile in found.profiles]
    assert (kept[0], kept[-1]) == (0.001, pytest.approx(0.001 * (PROFILES + 99))) and kept == sorted(set(kept))
    assert found.profiles[0] == Profile((0.001, 0.101, 0.201, 0.301), (0.5,) * 4, (0.8,) * 4, (0.1,) * 4, (20.0,) * 4)
    assert [row["gain"] for row in report(found)] == [pytest.approx(0.1495), 0.1, 0.1, 0.1]
    with pytest.raises(ValueError, match="19 images of val have a score; give 20 or more"):
        measure(model, images[:20], "val", "made-for")


def test_the_file(tmp_path: Path) -> None:
    save_directory(tmp_path, tiny.network())
    for precision, name in (("fp32", "gains.json"), ("int8", "gains-int8.json")):
        gains = Gains(
            exits=(NextGain(0.6, 0.1, 0.1), NextGain(0.1, 0.02, 0.03, (Term("change", 0.2, -1.0),))),
            profiles=(Profile((0.6, 0.7), (0.5, 0.4), (0.8, 0.9), (0.0, 0.1), (9.0, 4.0)),) * 2,
            images=2,
            source="val",
            machine="a machine",
            fingerprint=fingerprint(tmp_path),
            precision=precision,
        )
        gains.save(tmp_path)
        assert Gains.load(tmp_path, precision) == gains
        assert len((tmp_path / name).read_text().splitlines()) == 15, "one line for each exit and image"
    assert Gains.load(tmp_path, "fp16").precision == "fp32"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "0123456789"}, "made for a model with fingerprint 01234567, but the model beside it has"),
        ({"precision": "int8"}, "made for int8, but its name says fp32"),
        ({"images": 0}, r"images is 0; it must be at least 1"),
        ({"exits": []}, r"profiles\[0\] has .*'utility': 2.*; give 0 values of each"),
        ({"machine": None}, "machine is None; give text"),
    ],
)
def test_a_file_that_does_not_fit_says_why(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    save_directory(tmp_path, tiny.network())
    profile = Profile((0.6, 0.7), (0.5, 0.4), (0.8, 0.9), (0.0, 0.1), (9.0, 4.0))
    Gains((NextGain(0.6, 0.1, 0.1),) * 2, (profile,), 1, "val", "a machine", fingerprint(tmp_path)).save(tmp_path)
    path = tmp_path / GAINS_FILES["fp32"]
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ValueError, match=f"{path.name}.*{message}.*calibrate .* or delete the file"):
        Gains.load(tmp_path)


def test_the_utility_of_labels_is_over_the_classes_that_the_image_has() -> None:
    """Class 0: 2 of 3 pixels found, 1 found elsewhere; class 1: 1 of 2. Class 2 is found once and not labelled."""
    labels = np.array([[0, 0, 0], [1, 1, 255]], np.uint8)
    found = np.array([[0, 0, 2], [1, 0, 2]], np.uint8)
    assert miou(found, labels, classes=4) == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert miou(labels, labels, classes=256) == 1
    assert math.isnan(miou(found, np.full_like(labels, 255), classes=4))


def test_the_utility_of_keypoints_is_the_share_that_is_found() -> None:
    joints = np.zeros((16, 3), np.float32)
    joints[:, :2] = np.arange(32).reshape(16, 2) * 10
    joints[:14, 2] = 1
    person = Person(Path("person.jpg"), joints, (0, 0, 100, 100), SKELETON)
    shown = joints.copy()
    counted = [index for index in range(14) if index not in SKELETON.unscored]
    shown[counted[:3], 0] += 1000
    assert pck(shown, person, 16) == pytest.approx(1 - 3 / len(counted))
    joints[:, 2] = 0
    assert math.isnan(pck(shown, person, 16))


def test_the_table_says_what_predicts_a_gain() -> None:
    rows = [
        {"exit": 1, "gain": 0.6394, "error": 0.026, "mean_error": 0.026, "predictors": []},
        {"exit": 2, "gain": 0.0689, "error": 0.0191, "mean_error": 0.0238, "predictors": ["active_share", "change"]},
    ]
    assert table({"splits": 1, "bounds": [], "gains": rows}).splitlines()[1:] == [
        "exit 1 adds 0.639 +- 0.026 of utility; nothing helps to predict it",
        "exit 2 adds 0.069 +- 0.024 of utility; active_share and change help to predict it (+- 0.019)",
    ]
