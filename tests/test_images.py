"""Image files as the commands read them: as the server does, and with the name of a file that is broken."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from models.__main__ import main
from models.checkpoint import save_directory
from models.data.street import Scene, class_table
from server.decoding.decode import decode

SAVED = {
    "16 bits": (lambda: Image.fromarray(np.arange(5400, dtype=np.uint16).reshape(60, 90) * 12), "png", {}),
    "upside down": (lambda: Image.fromarray(tiny.image()), "jpg", {0x0112: 3}),
    "on its side": (lambda: Image.fromarray(tiny.image()), "jpg", {0x0112: 6}),
}


@pytest.mark.parametrize("name", SAVED)
def test_data_sets_are_read_as_the_server_reads(name: str, tmp_path: Path) -> None:
    make, ending, tags = SAVED[name]
    exif, path = Image.Exif(), tmp_path / f"photo.{ending}"
    for tag, value in tags.items():
        exif[tag] = value
    make().save(path, exif=exif)
    image = Scene(path, path, "drive", class_table(range(3))).image()
    assert (image == decode(path.read_bytes(), 2**20)).all() and len(np.unique(image)) > 50


BROKEN = {
    "image cut off": ("images", lambda data: data[: len(data) // 2], "cannot be read as an image"),
    "labels cut off": ("labels", lambda data: data[: len(data) // 2], "cannot be read as an image"),
    "no image": ("images", lambda _: b"hello", "cannot be read as an image"),
    "labels of another size": ("labels", None, r"is 30x20, but .*scene_1\.png is 60x90; a label map has its image's"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_scored_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, damage, sentence = BROKEN[name]
    for kind in ("images", "labels"):
        (tmp_path / "val" / kind).mkdir(parents=True)
    Image.fromarray(tiny.image()).save(tmp_path / "val" / "images" / "scene_1.png")
    Image.fromarray(tiny.image()[..., 0] % 3).save(tmp_path / "val" / "labels" / "scene_1.png")
    path = tmp_path / "val" / folder / "scene_1.png"
    if damage is None:
        Image.new("L", (20, 30)).save(path)
    else:
        path.write_bytes(damage(path.read_bytes()))
    save_directory(tmp_path / "model", tiny.network())
    command = ["evaluate", str(tmp_path / "model"), "--data", str(tmp_path), "--split", "val", "--device", "cpu"]
    assert main([*command, "--executor", "reference"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(path) in last and re.search(sentence, last)
