"""Scores and costs of a model whose every answer is given, against figures worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from given import Given, heatmaps
from PIL import Image

from models.__main__ import main
from models.anytime import AnytimeModel, State
from models.checkpoint import save_directory
from models.commands.evaluate import table
from models.data import mpii
from models.data.people import Person, Skeleton
from models.data.scenes import Scene, class_table
from models.evaluation import evaluate


def test_costs_of_every_exit_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes 0.5 s: exit 1 is the second step, so 1000 ms for one image; two images share the time. What the
    caller does at an exit is not counted.

    Two pairs of images run together, then one alone: the median of 500, 500 and 1000 ms is 500. Shares are means over
    five images. The last exit masks nothing.
    """
    model = Given(tiny.SEGMENTATION, [[None] * 4] * 5)
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: model.clock_s)
    costs = evaluate.ExitCosts(4)
    image = np.zeros((8, 8, 3), np.uint8)
    for count, active in ((2, 0.75), (2, 0.5), (1, 0.25)):
        model.active = (active, 0.5, 0.25, 0.125)
        for exit_index, found in enumerate(costs.watch(model, [model.begin(image) for _ in range(count)]), 1):
            assert [exit_.index for exit_ in found] == [exit_index] * count
            model.clock_s += 100
    assert costs.by_exit() == [
        {"exit": 1, "gmacs": 1, "masked": 0.45, "ms": 500},  # 1 - (2 * 0.75 + 2 * 0.5 + 0.25) / 5
        {"exit": 2, "gmacs": 2, "masked": 0.5, "ms": 750},
        {"exit": 3, "gmacs": 3, "masked": 0.75, "ms": 1000},
        {"exit": 4, "gmacs": 4, "masked": 0, "ms": 1250},
    ]


@pytest.mark.parametrize(
    "masking",
    [None, replace(tiny.SEGMENTATION.masking, adaptivity="training")],  # type: ignore[type-var]
)
def test_nothing_is_masked_by_a_model_that_masks_nothing_at_inference(masking: Any) -> None:
    model = Given(replace(tiny.SEGMENTATION, masking=masking), [[None] * 4])
    costs = evaluate.ExitCosts(4)
    list(costs.watch(model, [model.begin(np.zeros((8, 8, 3), np.uint8))]))
    assert [row["masked"] for row in costs.by_exit()] == [0] * 4


def scene(folder: Path, name: str, labels: list[list[int]]) -> Scene:
    """A scene whose label 11 is void."""
    array = np.array(labels, np.uint8)
    Image.fromarray(np.zeros((*array.shape, 3), np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(array).save(folder / f"{name}_labels.png")
    return Scene(folder / f"{name}.png", folder / f"{name}_labels.png", "drive", class_table(range(3)))


def test_miou_is_of_one_confusion_over_all_images_without_void(tmp_path: Path) -> None:
    """Labels 0 0 0 1 and 1 1 void void. Exit 1 says 0 everywhere: class 0 has 3 of 6, class 1 none of 3, class 2 does
    not occur: mIoU 25 %. Exit 2 is right, but for void. Exit 3 says 1 everywhere: 0 of 3, 3 of 6. Exit 4 is right, but
    for one pixel of class 1 that it takes for 2: 3 of 3, 2 of 3, 0 of 1: 55.56 %. Their mean: 51.39."""
    scenes = [scene(tmp_path, "a", [[0, 0, 0, 1]]), scene(tmp_path, "b", [[1, 1, 11, 11]])]
    answers = [
        [[[0, 0, 0, 0]], [[0, 0, 0, 1]], [[1, 1, 1, 1]], [[0, 0, 0, 1]]],
        [[[0, 0, 0, 0]], [[1, 1, 0, 2]], [[1, 1, 1, 1]], [[1, 2, 0, 0]]],
    ]
    result = evaluate.segmentation(Given(tiny.SEGMENTATION, answers), scenes)
    assert [row["miou"] for row in result["exits"]] == [25.0, 100.0, 25.0, 55.56]
    assert result["mean"] == 51.39
    assert [row["exit"] for row in result["exits"]] == [1, 2, 3, 4]
    assert result["exits"][0]["classes"] == {"sky": 50.0, "road": 0.0, "car": None}
    assert result["exits"][3]["classes"] == {"sky": 100.0, "road": 66.67, "car": 0.0}


class EndsEarly(Given):
    """Its second exit is final, as that of a network whose iterates have converged."""

    def advance(self, states: Sequence[State], slice_s: float | None = None) -> bool:
        super().advance(states, slice_s)
        for state in states:
            if state.exit is not None and state.exit.index == 2:
                state.exit, state.next_step = replace(state.exit, final=True), len(self.steps)
        return True


def test_a_final_exit_counts_for_the_exits_that_are_left(tmp_path: Path, person: Person) -> None:
    """Labels 0 0 0 1. Exit 1 says 0 everywhere: 3 of 4, 0 of 1, so 37.5 %. Exit 2 is right, and so are 3 and 4, which
    are not computed. Of the joints, exit 1 finds 2 of 5, and exit 2 3 of 5."""
    model = EndsEarly(tiny.SEGMENTATION, [[[[0, 0, 0, 0]], [[0, 0, 0, 1]]]])
    result = evaluate.segmentation(model, [scene(tmp_path, "a", [[0, 0, 0, 1]])])
    assert [row["miou"] for row in result["exits"]] == [37.5, 100, 100, 100]
    assert [row["gmacs"] for row in result["exits"]] == [1, 2, 2, 2]
    result = evaluate.pose(EndsEarly(tiny.POSE, [[LOST, FOUND]]), [person], flip=False)
    assert [row["pck"] for row in result["exits"]] == [row["pckh"] for row in result["exits"]] == [40, 60, 60, 60]


WRIST, OTHER_WRIST = 10, 15


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """A right wrist at (12, 8), position (3, 2); a torso of 10 pixels from (0, 0) and a head of 2 pixels."""
    Image.fromarray(tiny.image(32, 32)).save(tmp_path / "person.png")
    joints = np.zeros((16, 3), np.float32)
    joints[WRIST] = 12, 8, 1
    joints[13] = 0, 0, 1  # left shoulder
    joints[2] = 10, 0, 1  # right hip
    joints[8] = 0, 0, 1  # upper neck
    joints[9] = 2, 0, 1  # head top
    return Person(tmp_path / "person.png", joints, (0, 0, 32, 32), mpii.SKELETON)


RIGHT = ((13, 0, 0, 1.0), (8, 0, 0, 1.0), (9, 0, 0, 1.0), (2, 0, 0, 1.0))
"""Left shoulder and neck where they are; head top 2 pixels off, right hip 10."""
FOUND, LOST = heatmaps((WRIST, 3, 2, 1.0), *RIGHT), heatmaps((WRIST, 3, 3, 1.0), *RIGHT)
"""The wrist where it is, and 4 pixels off."""


def test_pck_and_pckh_by_hand_without_the_mirrored_image(person: Person) -> None:
    """A torso of 10 pixels allows less than 2. Exits 1 and 2 find the wrist, exits 3 and 4 are 4 pixels off; shoulder
    and neck are right, the hip is 10 off and the head top 2. Of five joints 3, 3, 2, 2 are right. PCKh allows less than
    1 pixel, half of the head, and counts the same."""
    model = Given(tiny.POSE, [[FOUND, FOUND, LOST, LOST]])
    result = evaluate.pose(model, [person], flip=False)
    assert len(model.begun) == 1
    assert [row["pck"] for row in result["exits"]] == [60, 60, 40, 40]
    assert [row["pckh"] for row in result["exits"]] == [60, 60, 40, 40]
    assert (result["mean"], result["mean_pckh"], result["mean_pckh_by_joint"]) == (50, 50, 50)


def test_pckh_goes_by_the_data_set_s_head_size_where_there_is_one(person: Person) -> None:
    """A head of 20 pixels: all within 10 are right, but for the hip, which is 10 off."""
    (row, *_) = evaluate.pose(Given(tiny.POSE, [[LOST] * 4]), [replace(person, head_px=20.0)], flip=False)["exits"]
    assert (row["pck"], row["pckh"]) == (40, 80)


def test_both_means_of_people_and_joints(person: Person) -> None:
    """The first person has a wrist and a torso, but no head. PCK counts 2 of 3, 3 of 5 and 2 of 5 joints as right:
    7 / 13 = 53.85 %. PCKh leaves the first person out: 5 of 10."""
    few = replace(person, joints=only(person, WRIST, 13, 2))
    result = evaluate.pose(Given(tiny.POSE, [[FOUND] * 4, [FOUND] * 4, [LOST] * 4]), [few, person, person], flip=False)
    assert (result["exits"][0]["pck"], result["exits"][0]["pckh"]) == (53.85, 50)


def test_both_means_of_pckh(person: Person) -> None:
    """Two of three people have but wrist, neck and head top, of which the neck alone is right. Of 11 joints 3 + 2 are
    right: 45.45 %. By joint, the wrist is right in 1 of 3, shoulder and neck always, hip and head top never: 46.67
    %."""
    few = replace(person, joints=only(person, WRIST, 8, 9))
    result = evaluate.pose(Given(tiny.POSE, [[FOUND] * 4, [LOST] * 4, [LOST] * 4]), [person, few, few], flip=False)
    assert (result["exits"][0]["pckh"], result["exits"][0]["pckh_by_joint"]) == (45.45, 46.67)
    assert (result["mean_pckh"], result["mean_pckh_by_joint"]) == (45.45, 46.67)


def only(person: Person, *joints: int) -> Any:
    """The person's joints, of which these alone are labelled."""
    return np.where(np.isin(np.arange(16), joints)[:, None], person.joints, np.float32(0))


def test_the_mirrored_image_s_heatmaps_are_turned_back_and_averaged(person: Person) -> None:
    """Alone, the image's wrist is 4 pixels off, at height 1. In the mirror the other wrist, at height 2, is at position
    8 - 3 = 5 of 0 to 7, so at 3 once it is turned back: that wins the mean, at 1 against 0.5."""
    mirror = heatmaps((OTHER_WRIST, 5, 2, 2.0), (12, 7, 0, 1.0), (8, 7, 0, 1.0), (9, 7, 0, 1.0), (3, 7, 0, 1.0))
    model = Given(tiny.POSE, [[LOST] * 4, [mirror] * 4])
    result = evaluate.pose(model, [person])
    assert [row["pck"] for row in result["exits"]] == [60] * 4
    assert len(model.begun) == 2
    assert np.array_equal(model.begun[1][0], model.begun[0][0][:, ::-1])
    assert not np.array_equal(model.begun[1][0], model.begun[0][0])
    again = Given(tiny.POSE, [[LOST] * 4])
    assert [row["pck"] for row in evaluate.pose(again, [person], flip=False)["exits"]] == [40] * 4


def test_a_mean_of_exits_needs_all_of_them() -> None:
    assert evaluate.mean_of([{"miou": 50.0}, {"miou": 60.02}], "miou") == 55.01
    assert evaluate.mean_of([{"miou": 50.0}, {"miou": None}], "miou") is None


def test_heatmaps_of_the_mirrored_crop_by_hand() -> None:
    """Position p of the mirror is position 8 - p of the crop; position 0 of the crop repeats position 1."""
    maps = torch.arange(8.0).view(1, 1, 8).repeat(3, 1, 1) + torch.tensor([0.0, 10.0, 20.0]).view(3, 1, 1)
    back = evaluate.unmirrored(maps, ((0, 2),))
    assert back[:, 0].tolist() == [
        [27, 27, 26, 25, 24, 23, 22, 21],
        [17, 17, 16, 15, 14, 13, 12, 11],
        [7, 7, 6, 5, 4, 3, 2, 1],
    ]


def test_people_of_another_skeleton_are_scored_by_their_own(person: Person) -> None:
    """Two joints, at (0, 0) and (12, 8), whose distance is torso and head: 14.42 pixels. Exits 1 and 2 find both; exits
    3 and 4 find the second 4 pixels off, which is beyond a fifth of the torso and within half of the head."""
    skeleton = Skeleton(joints=2, torsos=((0, 1),), head=(0, 1))
    other = replace(person, joints=np.array([[0, 0, 1], [12, 8, 1]], np.float32), skeleton=skeleton)
    config = replace(tiny.POSE, outputs=2, labels=(), palette=(), skeleton=(), flip_pairs=())
    right, wrong = heatmaps((0, 0, 0, 1.0), (1, 3, 2, 1.0))[:2], heatmaps((0, 0, 0, 1.0), (1, 3, 3, 1.0))[:2]
    result = evaluate.pose(Given(config, [[right, right, wrong, wrong]]), [other], flip=False)
    assert [row["pck"] for row in result["exits"]] == [100, 100, 50, 50]
    assert [row["pckh"] for row in result["exits"]] == [100] * 4
    with pytest.raises(
        ValueError, match=r"person\.png has 16 joints, but the model has 2; choose a model of these joints"
    ):
        evaluate.pose(Given(config, [[right] * 4]), [person], flip=False)


def test_the_table_by_hand() -> None:
    pose = {"exit": 1, "gmacs": 1.25, "masked": 0.4167, "ms": 12.34, "pck": 60.0, "pckh": None, "pckh_by_joint": 50.0}
    means = {"mean": 60.0, "mean_pckh": None, "mean_pckh_by_joint": 50.0}
    assert table({"exits": [pose], **means}).splitlines() == [
        "exit     pck    pckh  pckh_by_joint   GMACs  masked       ms",
        "   1   60.00       -          50.00   1.250   41.7%     12.3",
        "mean   60.00       -          50.00",
    ]
    street = {"exit": 4, "gmacs": 10.0, "masked": 0.0, "ms": 1234.5, "miou": 5.0, "classes": {}}
    assert table({"exits": [street], "mean": 5.0}).splitlines() == [
        "exit    miou   GMACs  masked       ms",
        "   4    5.00  10.000    0.0%   1234.5",
        "mean    5.00",
    ]


def test_options_reach_the_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[Any] = []

    def evaluated(model: AnytimeModel, *given: object, **options: object) -> dict[str, Any]:
        called.append((model.config.masking, given, options))
        return {"exits": [], "mean": None}

    monkeypatch.setattr("models.commands.evaluate.evaluate", evaluated)
    save_directory(tmp_path, tiny.network())
    command = ["evaluate", str(tmp_path), "--data", "data", "--split", "val", "--json", "--device", "cpu"]
    for more in ([], ["--no-flip", "--drive", "d1", "--threshold", "0.9"], ["--no-masks"]):
        assert main([*command, *more]) == 0
    masking = tiny.SEGMENTATION.masking
    assert masking is not None
    given = Path("data"), "val"
    assert called == [
        (masking, given, {"drive": None, "flip": True}),
        (replace(masking, threshold=0.9), given, {"drive": "d1", "flip": False}),
        (replace(masking, adaptivity="training"), given, {"drive": None, "flip": True}),
    ]
