"""`python -m models calibrate`: what is observed of images, and what is said of the calibration."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from given import Given, heatmaps
from PIL import Image
from scipy.io import savemat

from models.__main__ import main
from models.anytime import run
from models.checkpoint import save_directory
from models.commands.calibrate import table
from models.directory import fingerprint
from models.evaluation import calibrate
from models.evaluation.calibrate import Observations, cross_validate, judge
from models.evaluation.observations import difference, observe
from models.executors.selection import build
from models.quality import Quality, uncertainty

IMAGES = 48  # halves of 24 are enough to stop


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    for split, count in (("val", IMAGES), ("few", 21)):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(tiny.image(32, 64, index)).save(tmp_path / split / "images" / f"a_{index:02}.png")
            Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / split / "labels" / f"a_{index:02}.png")
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_directory(tmp_path / "model", tiny.network())
    return tmp_path / "model"


def command(model: Path, data: Path, split: str, *more: str) -> list[str]:
    return ["calibrate", str(model), "--data", str(data), "--split", split, "--device", "cpu", "--threads", "1", *more]


def test_segmentation_from_images_to_the_file(camvid: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(model, camvid, "val", "--json", "--splits", "20", "--check", "few")) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["splits"], said["breakable"]) == (IMAGES, 20, 2)
    quality = Quality.load(model)
    assert (quality.images, quality.source) == (IMAGES, "val")
    assert [row["epsilon"] for row in said["bounds"]] == [0.02, 0.05, 0.1]
    for row in said["bounds"] + said["checked"]:
        assert row["threshold"] == quality.threshold(row["epsilon"]) if "threshold" in row else row["split"] == "few"
        assert 0 <= row["coverage"] <= 1 and 0 <= row["saved"] < 1
    with_split = quality.steps
    assert main(["calibrate", str(model), "--data", str(camvid / "val" / "images"), "--splits", "5"]) == 0
    assert "held in" in capsys.readouterr().out
    quality = Quality.load(model)
    assert (quality.steps, quality.source) == (with_split, "images"), "the same images, without labels"


def synthetic(images: int, seed: int) -> Observations:
    """Uncertainty foretells change; an exit costs as much as those before it together."""
    rng = np.random.default_rng(seed)
    uncertainty = rng.gamma(20, 0.05, (images, 1)) * (0.09, 0.07, 0.04, 0.03)
    changed = uncertainty * (0.9, 0.8, 0.5, 0) * rng.lognormal(0, 0.1, (images, 4))
    return Observations(uncertainty, changed, np.tile([1.0, 2.0, 4.0, 8.0], (images, 1)))


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.1])
def test_random_halves_show_that_the_bound_holds(epsilon: float) -> None:
    images = synthetic(100, seed=0)
    shown = cross_validate(images, epsilon, halvings=100)
    assert shown["held"] >= 90 and shown["saved"] > 0.2 and shown["changed"] < epsilon
    assert (
        shown == cross_validate(images, epsilon, halvings=100) != cross_validate(images, epsilon, halvings=100, seed=1)
    )


def test_halves_in_their_order_show_a_drift() -> None:
    """The second half changes twice as much at the same uncertainty: random halves know it, the first half does not."""
    images = synthetic(100, seed=0)
    images.changed[50:] *= 2
    shown = cross_validate(images, 0.05, halvings=20)
    assert shown["coverage"] > 0.9 and shown["in_order"] < 0.7


def test_too_few_images_leave_the_calibration_that_there_is(
    camvid: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Quality((), 100, "an earlier one", fingerprint(model)).save(model)
    assert main(command(model, camvid, "few", "--splits", "3")) == 1
    assert "21 images are too few to promise anything; give 22 or more of few" in capsys.readouterr().err
    assert Quality.load(model).source == "an earlier one"


def test_what_is_observed_is_what_is_served() -> None:
    model = build(tiny.network(), "cpu", "reference")
    image = tiny.image()
    found = observe(model, [((image, None), lambda labels: labels.mean()), ((tiny.image(40, 40), None), np.sum)])[0]
    exits = [(state.exit, state.frame, answer.array) for state, answer in run(model, image)]
    before = exits[0][2]
    for seen, (exit_, frame, labels) in zip(found, exits, strict=True):
        assert exit_ is not None and (seen.macs, seen.active_share) == (exit_.macs, exit_.active_share)
        assert seen.uncertainty == uncertainty(exit_, "segmentation", frame)
        assert seen.changed == (labels != exits[-1][2]).mean() and seen.change == (labels != before).mean()
        assert seen.utility == labels.mean() and seen.seconds > 0
        before = labels
    assert found[0].changed > 0 == found[-1].changed and found[0].change == 0 < found[1].change


def test_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    joints = np.ones((14, 3, 24))
    joints[:, :2] = np.random.default_rng(0).uniform(10, 50, (14, 2, 24))
    for index in range(24):
        Image.fromarray(tiny.image(60, 64, index)).save(tmp_path / "images" / f"im{index + 1:05d}.png")
    savemat(tmp_path / "joints.mat", {"joints": joints})
    save_directory(tmp_path / "model", tiny.network(tiny.POSE))
    assert main(command(tmp_path / "model", tmp_path, "all", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 24
    assert Quality.load(tmp_path / "model").images == 24


def test_a_joint_has_changed_beyond_a_twentieth_of_the_crop() -> None:
    last = np.zeros((4, 3), np.float32)
    moved = last.copy()
    moved[:, 0], moved[2, 1], moved[:, 2] = (
        (0, 3, 3, 5.1),
        4.1,
        9,
    )  # 0, 3, 5.08 and 5.1 pixels away; scores do not count
    assert difference(moved, last, side_px=100) == 0.5
    assert difference(moved, last, side_px=110) == 0


def test_judging_by_hand() -> None:
    """Three exits. Below 0.3, image 0 stops at exit 1 and is within epsilon; image 1 stops at exit 2 and is not; images
    2 and 3 do not stop early."""
    images = Observations(
        uncertainty=np.array([[0.2, 0.1, 0], [0.4, 0.2, 0], [0.5, 0.4, 0], [0.6, 0.3, 0.9]]),
        changed=np.array([[0.05, 0.01, 0], [0.1, 0.08, 0], [0.2, 0.1, 0], [0.2, 0.1, 0]]),
        macs=np.array([[1.0, 2, 4]] * 4),
    )
    assert judge(images, 0.3, 0.05) == pytest.approx(
        {"coverage": 0.75, "early": 0.5, "kept": 0.5, "changed": 0.13 / 4, "saved": 5 / 16}
    )
    assert judge(images, 0.0, 0.05) == {"coverage": 1, "early": 0, "kept": 1, "changed": 0, "saved": 0}


def test_wrong_usage_says_so(
    tmp_path: Path, camvid: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("models.commands.calibrate.observe", lambda *_: pytest.fail("it computes"))
    for words, message in (
        (["--splits", "0"], "--splits is 0"),
        (["--seed", "-1"], "--seed is -1; give 0 or more"),
        (["--check", "test"], f"there is no image in {camvid / 'test' / 'images'}"),
    ):
        assert main(command(model, camvid, "val", *words)) == 1
        assert message in capsys.readouterr().err
    save_directory(tmp_path / "one", tiny.network(replace(tiny.SEGMENTATION, heads="one", masking=None)))
    assert main(command(tmp_path / "one", camvid, "val")) == 1
    assert "has 1 exit" in capsys.readouterr().err
    assert not (tmp_path / "one" / "quality.json").exists()


def test_the_table_by_hand() -> None:
    shares = {"coverage": 0.95, "early": 0.3, "kept": 0.2, "changed": 0.01, "saved": 0.321}
    bound = {"epsilon": 0.02, "held": 93, "in_order": 0.4, **shares}
    checked = {"epsilon": 0.02, "split": "val", **shares}
    assert table({"splits": 100, "bounds": [bound], "checked": [checked]}).splitlines() == [
        "epsilon  held in  coverage  in order   early    kept  changed   saved",
        "   0.02    93/100     95.0%    40.0%   30.0%   20.0%    1.00%   32.1%",
        "   0.02       val    95.0%              30.0%   20.0%    1.00%   32.1%",
    ]


def test_each_half_is_judged_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four random halvings of 11 images have coverages 0.8, 0.89, 0.9 and 1: two are at least 0.9, and their mean is
    0.8975. The halves in order have 0.95 and 0.7."""
    numbers = np.arange(11.0)[:, None]
    coverages = iter((0.8, 0.89, 0.9, 1.0, 0.95, 0.7))
    calibrated: list[set[float]] = []
    judged: list[set[float]] = []

    def threshold(images: Observations, epsilon: float) -> float:
        calibrated.append(set(images.macs.flatten().tolist()))
        return len(calibrated)

    def judge(images: Observations, below: float, epsilon: float) -> dict[str, float]:
        assert (below, epsilon) == (len(calibrated), 0.05)
        judged.append(set(images.macs.flatten().tolist()))
        return {"coverage": next(coverages)}

    monkeypatch.setattr(Observations, "threshold", threshold)
    monkeypatch.setattr(calibrate, "judge", judge)
    found = cross_validate(Observations(numbers, numbers, numbers), 0.05, halvings=4)
    assert found == pytest.approx({"held": 2, "coverage": 0.8975, "in_order": 0.7})
    assert all(not one & other and one | other == set(range(11)) for one, other in zip(calibrated, judged, strict=True))
    assert len({frozenset(half) for half in calibrated[:4]}) == 4
    assert calibrated[4:] == [set(range(5, 11)), set(range(5))]


def test_the_last_exit_does_not_decide_the_threshold() -> None:
    """30 images; the first exit's uncertainty goes up to 0.49. Where it never breaks the bound, that is the
    threshold."""
    first = np.linspace(0.2, 0.49, 30)
    images = Observations(np.stack([first, np.full(30, 0.9)], 1), np.zeros((30, 2)), np.ones((30, 2)))
    assert images.threshold(0.05) == pytest.approx(0.49)


def test_joints_are_compared_at_the_size_of_the_person_s_crop() -> None:
    """A crop of 64 pixels shows 128 of the image, of which a twentieth is 6.4. Of 16 joints one moves by a position, 8
    pixels, at exit 3, and one from a quarter of a position to the left to a quarter to the right, 4 pixels."""
    early = heatmaps((0, 3, 3, 1.0), (1, 3, 3, 1.0), (1, 2, 3, 0.5))
    last = heatmaps((0, 4, 3, 1.0), (1, 3, 3, 1.0), (1, 4, 3, 0.5))
    model = Given(tiny.POSE, [[early, early, last, last]], scale=2.0)
    (found,) = observe(model, [((tiny.image(64, 64), (0, 0, 64, 64)), len)])
    assert [exit_.changed for exit_ in found] == [1 / 16, 1 / 16, 0, 0]
    assert [exit_.change for exit_ in found] == [0, 0, 1 / 16, 0]
