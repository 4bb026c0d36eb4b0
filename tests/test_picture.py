"""Pictures of every exit."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from models.__main__ import main
from models.checkpoint import save_directory
from models.evaluation import picture
from models.executors.selection import build
from models.network.configs import ModelConfig


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(tiny.image(60, 90)).save(path)
    return path


@pytest.mark.parametrize("config", [tiny.SEGMENTATION, tiny.POSE], ids=lambda config: config.task)
def test_a_picture_is_written(config: ModelConfig, photo: Path, tmp_path: Path) -> None:
    save_directory(tmp_path / "model", tiny.network(config))
    command = ["picture", str(tmp_path / "model"), str(photo), "--executor", "reference", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / f"photo-{config.name}.png") as drawn:
        assert drawn.width == 5 * picture.COLUMN_INCHES * picture.DPI
        assert len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_what_is_shown_is_what_the_exits_said() -> None:
    model = build(tiny.network(), "cpu", "reference")
    views, frame = picture.view_exits(model, tiny.image(60, 90))
    assert [exit_.index for exit_ in views] == [1, 2, 3, 4]
    for before, after in pairwise(views):
        assert 0 < before.inactive_share < 1
        assert (after.prediction == before.prediction)[before.inactive].mean() > 0.9  # but for upsampling at borders
        assert (after.decided[before.inactive] <= before.index).all()
        assert (after.decided[~before.inactive] == after.index).all()
        assert before.gmacs < after.gmacs
    assert not views[-1].inactive.any()
    assert picture.seen(frame, model.config) == (0, 0, 90, 60)


@pytest.mark.parametrize("named", [0, 1])
def test_a_model_without_masks_leaves_nothing_inactive(named: int) -> None:
    labels, palette = tiny.SEGMENTATION.labels[:named], tiny.SEGMENTATION.palette[:named]
    config = replace(tiny.SEGMENTATION, masking=None, labels=labels, palette=palette)
    model = build(tiny.network(config), "cpu", "reference")
    image = tiny.image(60, 90)
    views, frame = picture.view_exits(model, image)
    assert all(exit_.inactive_share == 0 and not exit_.inactive.any() for exit_ in views)
    assert len(picture.draw(image, views, frame, model.config, "").axes) == 3 * 5


def test_a_network_may_have_more_exits_than_four() -> None:
    model = build(tiny.network(), "cpu", "reference")
    views, frame = picture.view_exits(model, tiny.image(60, 90))
    views += [replace(views[-1], index=index, decided=np.full_like(views[-1].decided, index)) for index in (5, 6)]
    drawn = picture.draw(tiny.image(60, 90), views, frame, model.config, "")
    shown = [text.get_text() for axes in drawn.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert shown[2:] == [f"decided at exit {index}" for index in range(1, 7)]


def test_a_person_is_cut_out() -> None:
    model = build(tiny.network(tiny.POSE), "cpu", "reference")
    views, frame = picture.view_exits(model, tiny.image(120, 200), (100, 20, 60, 80))
    assert picture.seen(frame, model.config) == (80, 10, 180, 110)  # 80 px tall, widened by 1.25
    assert views[-1].confidence[:10].max() == 0
    _, frame = picture.view_exits(model, tiny.image(120, 200), (180, 20, 60, 80))
    assert picture.seen(frame, model.config) == (160, 10, 200, 110)


def test_what_cannot_be_drawn_is_said(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_directory(tmp_path / "model", tiny.network())
    command = ["picture", str(tmp_path / "model"), "--executor", "reference", "--device", "cpu"]
    for more, message in (
        ([str(photo), str(photo)], "two images have the same name"),
        ([str(photo), "--box", "1,2,3,4"], "--box is for pose"),
        ([str(tmp_path / "none.png")], "none.png"),
    ):
        assert main([*command, *more, "--output", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, str(photo), "--box", "1,2"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*command, str(photo), "--output", str(tmp_path)]) == 1
    assert "pictures need matplotlib: pip install" in capsys.readouterr().err


def test_the_threshold_can_be_moved(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--threshold", "0.9", "--executor", "reference", "--device", "cpu", "--output", str(tmp_path)]
    save_directory(tmp_path / "model", tiny.network())
    assert main(["picture", str(tmp_path / "model"), str(photo), *command]) == 0
    save_directory(tmp_path / "dense", tiny.network(replace(tiny.SEGMENTATION, masking=None)))
    assert main(["picture", str(tmp_path / "dense"), str(photo), *command]) == 1
    assert "has no masks" in capsys.readouterr().err
