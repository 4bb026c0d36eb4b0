from pathlib import Path

import live
import pytest

from server.catalog import palette_bytes, read_catalog
from server.errors import NotFoundError

PALETTE = ((128, 128, 128), (128, 64, 128))


def test_classes_without_a_colour_get_different_ones() -> None:
    assert palette_bytes(PALETTE, 2) == bytes(value for colour in PALETTE for value in colour)
    colours = palette_bytes((), 256)
    assert len({colours[3 * index : 3 * index + 3] for index in range(256)}) == 256
    assert colours[3:12] == bytes([128, 0, 0, 0, 128, 0, 128, 128, 0])  # PASCAL VOC's first ones


def test_no_class_gets_the_colour_of_another() -> None:
    colours = palette_bytes([(128, 0, 0), (0, 128, 0)], 5)
    assert len({colours[3 * index : 3 * index + 3] for index in range(5)}) == 5


def test_models_are_found_by_name_and_the_default_answers_for_none(tmp_path: Path) -> None:
    catalog = read_catalog(live.write_configs(tmp_path), default="tiny-segmentation")
    assert catalog.get(None) is catalog.get("tiny-segmentation")
    assert [catalog.served(name) for name in (None, "tiny-pose", "nobody", 7)] == [
        "tiny-segmentation",
        "tiny-pose",
        None,
        None,
    ]
    with pytest.raises(NotFoundError, match="no model is called 'nobody'; served are tiny-pose, tiny-segmentation"):
        catalog.get("nobody")


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model directory"):
        read_catalog(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        read_catalog(tmp_path / "nothing")
