"""What a caller does with an answer: pictures, notebooks, and the values of `supervision`."""

import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from adpc_client import Exit, ImageError, Labels
from PIL import Image

MASK = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
FOUND = Exit(
    exit=2,
    exits=4,
    final=False,
    elapsed_ms=12.0,
    unsure=0.5,
    size=(2, 3),
    labels=Labels(("sky", "road", "tree"), PALETTE),
    extra=None,
    _mask=MASK,
    _keypoints=None,
)
POSE = replace(
    FOUND,
    size=(40, 60),
    labels=Labels(("a", "b"), np.array([[255, 0, 0], [0, 255, 0]], np.uint8), ((0, 1),)),
    _mask=None,
    _keypoints=np.array([[10, 20, 0.9], [50, 20, 0.8]], np.float32),
)


@pytest.fixture
def supervision(monkeypatch):
    """Stands for the package, which the tests do without: its classes hold what they are given."""
    module = SimpleNamespace(Detections=SimpleNamespace, KeyPoints=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "supervision", module)


def test_a_mask_is_an_indexed_picture_and_a_notebook_shows_it():
    picture = FOUND.picture()
    assert np.array_equal(np.asarray(picture), MASK)
    assert picture.convert("RGB").getpixel((1, 0)) == (40, 50, 60)
    shown = Image.open(io.BytesIO(FOUND._repr_png_()))
    assert shown.mode == "P" and np.array_equal(np.asarray(shown), MASK)


def test_a_mask_is_drawn_over_any_kind_of_photo(tmp_path):
    blue = np.zeros((2, 3, 3), np.uint8)
    blue[..., 2] = 100
    photo = Image.fromarray(blue)
    photo.save(tmp_path / "photo.png")
    for image in (photo, blue, tmp_path / "photo.png", (tmp_path / "photo.png").read_bytes(), photo.resize((30, 20))):
        drawn = FOUND.overlay(image, 0.5)
        assert drawn.size == (3, 2) and drawn.getpixel((1, 0)) == (20, 25, 80)
    assert FOUND.overlay(blue[..., ::-1], 0.5, bgr=True).getpixel((1, 0)) == (20, 25, 80)
    with pytest.raises(ImageError, match="cannot be read"):
        FOUND.overlay(b"no photo")


@pytest.mark.usefixtures("supervision")
def test_pixels_without_a_class_show_the_photo_and_are_no_detection():
    part = replace(FOUND, _mask=np.array([[255, 1, 255], [255, 1, 255]], np.uint8))
    drawn = part.overlay(np.full((2, 3, 3), 90, np.uint8), 0.5)
    assert [drawn.getpixel((x, 0)) for x in (0, 1)] == [(90, 90, 90), (65, 70, 75)]
    assert part.picture().convert("RGB").getpixel((0, 0)) == (0, 0, 0)
    assert part.to_supervision().class_id.tolist() == [1]


def test_a_skeleton_is_drawn_where_it_is_sure():
    photo = Image.new("RGB", (60, 40), (9, 9, 9))
    assert POSE.overlay(photo).getpixel((30, 20)) == (0, 255, 0)
    assert POSE.overlay(photo).getpixel((10, 20)) == (255, 0, 0)
    assert photo.getpixel((30, 20)) == (9, 9, 9)
    assert POSE.picture().getpixel((30, 20)) == (0, 255, 0) and POSE.picture().getpixel((0, 0)) == (0, 0, 0)
    guess = np.array([[10, 20, 0.9], [50, 20, 0.01]], np.float32)
    assert replace(POSE, _keypoints=guess).overlay(photo).getpixel((30, 20)) == (9, 9, 9)


def test_colours_beyond_the_palette_differ():
    colours = FOUND.labels.colours(8)
    assert np.array_equal(colours[:3], PALETTE) and len(np.unique(colours, axis=0)) == 8


@pytest.mark.usefixtures("supervision")
def test_supervision_gets_one_detection_for_each_class():
    got = replace(FOUND, _mask=np.array([[0, 5, 5], [0, 0, 5]], np.uint8)).to_supervision()
    assert got.xyxy.tolist() == [[0, 0, 1, 1], [1, 0, 2, 1]] and got.class_id.tolist() == [0, 5]
    assert got.mask.dtype == bool and got.mask[1].tolist() == [[False, True, True], [False, False, True]]
    assert got.data["class_name"].tolist() == ["sky", "5"]  # a class that the model does not name


@pytest.mark.usefixtures("supervision")
def test_supervision_gets_the_joints_of_one_person():
    got = POSE.to_supervision()
    assert got.xy.tolist() == [[[10, 20], [50, 20]]] and got.confidence.shape == (1, 2)


def test_without_supervision_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        FOUND.to_supervision()
