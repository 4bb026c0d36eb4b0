"""What frames come from: names, iterators and callables; in which order, at which pace, and what is left out."""

import errno
import importlib
import io
import os
from contextlib import suppress

import numpy as np
import pytest
from adpc_client import ImageError
from adpc_client.sources import open_bytes, open_source
from PIL import Image

PIXELS = np.zeros((3, 4, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    for name in ("10.png", "2.JPG", "1.bmp", "b3.tif", "._1.png", ".hidden.png", "notes.txt"):
        if name.endswith(".txt") or name.startswith("."):
            (tmp_path / name).write_text("not a picture")
        else:
            Image.fromarray(PIXELS).save(tmp_path / name)
    return tmp_path


def names(source):
    return [frame.image.name for frame in source.frames]


def due(source):
    return [frame.due_s for frame in source.frames]


def test_a_folder_or_a_glob_gives_its_images_as_people_count(folder):
    assert names(open_source(folder)) == ["1.bmp", "2.JPG", "10.png", "b3.tif"]
    assert names(open_source(f"{folder}/*.???")) == ["1.bmp", "2.JPG", "10.png", "b3.tif"]
    assert names(open_source(f"{folder}/1*")) == ["1.bmp", "10.png"]
    (folder / "a[1].png").write_bytes((folder / "10.png").read_bytes())
    assert open_source(folder / "a[1].png").still  # a file that is called like a glob


def test_only_what_goes_on_by_itself_has_a_pace(folder):
    still, images = open_source(folder / "10.png"), [PIXELS] * 3
    assert still.still and not still.paced and [frame.image for frame in still.frames] == [folder / "10.png"]
    assert [open_source(given, fps).paced for given in (folder, iter(images)) for fps in (None, 4)] == [
        False,
        True,
        False,
        True,
    ]
    assert open_source("camera:0").paced and open_source("rtsp://camera/1").paced
    assert due(open_source(images)) == [None] * 3 and due(open_source(images, 4)) == [0.0, 0.25, 0.5]
    assert open_source(images, 4).period_s == 0.25


@pytest.mark.parametrize("end", [None, (False, None)])
def test_a_callable_is_asked_until_it_says_that_there_is_no_more(end):
    given = iter([(True, PIXELS), PIXELS, end])
    source = open_source(lambda: next(given))
    assert source.paced and source.period_s is None
    assert [frame.image is PIXELS for frame in source.frames] == [True, True]


@pytest.mark.parametrize(
    ("source", "options", "kind", "complaint"),
    [
        ("/nowhere.gif", {}, FileNotFoundError, "nowhere"),
        ("/nowhere/*.jpg", {}, ImageError, r"the glob /nowhere/\*.jpg holds no \.bmp, \.jpeg"),
        ("rtsp://camera/1", {"fps": 5}, ValueError, "leave fps out"),
        (PIXELS, {}, TypeError, "one image"),
        ([PIXELS], {"fps": 0}, ValueError, "fps is 0"),
        ([PIXELS], {"fps": float("inf")}, ValueError, "fps is inf"),
    ],
)
def test_what_is_no_source(source, options, kind, complaint):
    with pytest.raises(kind, match=complaint):
        open_source(source, **options)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "._photo.jpg").write_bytes(b"what macOS leaves on other systems' discs")
    with pytest.raises(ImageError, match=r"holds no \.bmp, \.jpeg"):
        open_source(tmp_path)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_goes_at_its_own_pace(tmp_path, form):
    shades = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 120, 250)]
    path = tmp_path / "moving"
    shades[0].save(path, form, save_all=True, append_images=shades[1:], duration=[40, 200, 80], lossless=True)
    source = open_source(path)
    frames = list(source.frames)
    assert source.paced and not source.still
    assert [frame.due_s for frame in frames] == pytest.approx([0.0, 0.04, 0.24])
    assert [int(np.asarray(frame.image).mean()) for frame in frames] == [0, 120, 250]
    assert due(open_source(path, fps=10)) == pytest.approx([0, 0.1, 0.2])
    assert len(list(open_bytes(path.read_bytes()).frames)) == 3


def test_an_animation_that_is_cut_off_names_its_file(tmp_path):
    file, noise = io.BytesIO(), np.random.default_rng(0)
    first, *others = (Image.fromarray(noise.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(3))
    first.save(file, "GIF", save_all=True, append_images=others)
    (tmp_path / "cut.gif").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"cut\.gif is broken or cut off"):
        list(open_source(tmp_path / "cut.gif").frames)


def animation():
    """A GIF of three noisy frames, 8 pixels wide and high."""
    file, noise = io.BytesIO(), np.random.default_rng(0)
    first, *others = (Image.fromarray(noise.integers(0, 255, (8, 8), np.uint8)) for _ in range(3))
    first.save(file, "GIF", save_all=True, append_images=others)
    return file.getvalue()


@pytest.mark.parametrize("length", range(14, len(animation()), 61))
def test_an_animation_is_read_or_refused_wherever_it_is_cut_off(length):
    with suppress(ImageError):
        assert len(list(open_bytes(animation()[:length]).frames)) <= 3


def test_an_animation_whose_frame_names_a_giant_size_is_broken():
    data = bytearray(animation())
    second = data.index(b"\x2c", data.index(b"\x21\xf9", data.index(b"\x2c")))  # the descriptor of its image
    data[second + 5 : second + 9] = b"\xff" * 4  # its width and height
    with pytest.raises(ImageError, match="is broken or cut off"):
        list(open_bytes(bytes(data)).frames)


def test_a_file_that_may_not_be_read_is_no_broken_image(folder, monkeypatch):
    def refused(file):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(PermissionError):
        open_source(folder / "10.png")


@pytest.mark.parametrize("form", ["MPO", "TIFF"])
def test_a_photo_with_a_preview_or_pages_is_no_animation(tmp_path, form):
    photo, preview = (Image.new("RGB", size) for size in ((48, 36), (16, 12)))
    path = tmp_path / "photo"
    photo.save(path, form, save_all=True, append_images=[preview])
    source = open_source(path)
    assert source.still and [frame.index for frame in source.frames] == [0]


def test_a_pipe_is_read_once():
    readable, writable = os.pipe()
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    os.write(writable, file.getvalue())
    os.close(writable)
    try:
        source = open_source(f"/dev/fd/{readable}")
    finally:
        os.close(readable)
    assert source.still and [frame.image for frame in source.frames] == [file.getvalue()]


@pytest.mark.parametrize("name", ["film.mp4", "camera:0", "rtsp://camera/1"])
def test_videos_and_cameras_name_the_extra_that_they_need(tmp_path, monkeypatch, name):
    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    source = open_source(name if ":" in name else tmp_path / name)
    with pytest.raises(ImageError, match=r"pip install 'adpc-client\[video\]'"):
        next(source.frames)
