"""Scenes: their images are read as the server reads them, and files that do not fit are named."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image, PngImagePlugin

from models.data import camvid
from models.data.cityscapes import CLASSES
from models.data.files import read_labels
from models.data.scenes import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    tiny.write_scenes(tmp_path)
    return camvid.read(tmp_path, "val")[0]


def test_a_model_of_fewer_classes_than_cityscapes_is_refused_even_where_no_pixel_shows_the_others(scene: Scene) -> None:
    Image.new("L", (64, 48), 7).save(scene.label_path)
    scene = Scene(scene.image_path, scene.label_path, "ulm", CLASSES)
    assert (scene.labels_for(19) == 0).all()
    with pytest.raises(ValueError, match="has class 0 of the data set's 0 to 18, but the model has 0 to 10; choose"):
        scene.labels_for(11)


def test_broken_files_are_named(scene: Scene) -> None:
    for path in (scene.image_path, scene.label_path):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read as an image"):
            scene.example(11)
        path.write_bytes(whole)
    image, labels = scene.example(11)
    assert image.shape == (48, 64, 3) and labels.shape == (48, 64)
    Image.fromarray(labels[:16, :32]).save(scene.label_path)
    with pytest.raises(
        ValueError, match=rf"{scene.label_path.name} has 16x32 pixels, but its image has 48x64; make it"
    ):
        scene.example(11)


def test_an_image_above_the_limit_of_pixels_is_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 // 2 - 1)  # Pillow refuses twice as many
    for path, read in ((scene.image_path, scene.image), (scene.label_path, lambda: read_labels(scene.label_path))):
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read as an image: .*exceeds limit"):
            read()


def test_a_decoder_that_reads_past_the_end_of_its_data_is_a_broken_file(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Image.Image) -> None:
        raise IndexError("index out of range")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ValueError, match=rf"{scene.image_path.name} cannot be read as an image: index out of range"):
        scene.image()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_are_upright(scene: Scene, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(scene.image_path) as photo:
        photo.load()
    photo.save(scene.image_path, exif=exif)
    turned = {1: photo, 3: photo.transpose(Image.Transpose.ROTATE_180), 6: photo.transpose(Image.Transpose.ROTATE_270)}
    assert np.array_equal(scene.image(), np.asarray(turned[orientation]))


def test_greys_of_16_bits_are_scaled_not_cut_off(scene: Scene) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(scene.image_path)
    assert (scene.image() == grey[..., None]).all()
