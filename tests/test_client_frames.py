"""Frames of the command `adpc`: where they come from, and that the newest replaces older ones."""

import importlib
import threading

import numpy as np
import pytest
from adpc_client import ImageError
from adpc_client.frames import NewestFrame, SourceFrame, open_source
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    for name, level in (("b.png", 20), ("a.jpg", 10), ("c.bmp", 30), ("notes.txt", 0)):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("not a picture")
        else:
            Image.new("RGB", (4, 3), (level,) * 3).save(tmp_path / name)
    return tmp_path


def test_one_image_is_still(folder):
    source = open_source(str(folder / "b.png"))
    assert source.still and [frame.image for frame in source.frames] == [folder / "b.png"]


def test_a_folder_gives_its_images_by_name(folder):
    frames = list(open_source(str(folder)).frames)
    assert [frame.image.name for frame in frames] == ["a.jpg", "b.png", "c.bmp"]
    assert [frame.due_s for frame in frames] == [None, None, None]
    assert [frame.due_s for frame in open_source(str(folder), fps=4).frames] == [0.0, 0.25, 0.5]


def test_only_what_goes_on_by_itself_has_a_pace(folder):
    assert [open_source(str(folder), fps).paced for fps in (None, 4)] == [False, True]
    assert open_source("camera:0").paced and not open_source(str(folder / "b.png")).paced


def test_a_folder_without_images(tmp_path):
    with pytest.raises(ImageError, match=r"holds no \.bmp, \.jpeg"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_goes_at_its_own_pace(tmp_path, form):
    shades = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 120, 250)]
    path = tmp_path / "moving"
    shades[0].save(path, form, save_all=True, append_images=shades[1:], duration=[40, 200, 80], lossless=True)
    source = open_source(str(path))
    frames = list(source.frames)
    assert source.paced and not source.still
    assert [frame.due_s for frame in frames] == pytest.approx([0.0, 0.04, 0.24])
    assert [int(np.asarray(frame.image).mean()) for frame in frames] == [0, 120, 250]
    assert [frame.due_s for frame in open_source(str(path), fps=10).frames] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("form", ["MPO", "TIFF"])
def test_a_photo_with_a_preview_is_no_animation(tmp_path, form):
    photo, preview = (Image.new("RGB", size) for size in ((48, 36), (16, 12)))
    path = tmp_path / "photo"
    photo.save(path, form, save_all=True, append_images=[preview])
    source = open_source(str(path))
    assert source.still and [frame.index for frame in source.frames] == [0]


@pytest.mark.parametrize("name", ["film.mp4", "camera:0"])
def test_videos_and_cameras_name_the_extra_that_they_need(tmp_path, monkeypatch, name):
    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    source = open_source(name if ":" in name else str(tmp_path / name))
    with pytest.raises(ImageError, match=r"pip install 'adpc-client\[video\]'"):
        next(source.frames)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError):
        open_source("/nowhere.gif")


def test_the_newest_frame_wins():
    """Frames 0 to 3 are pumped while the reader has taken nothing; then 4 comes alone."""
    pumped, go_on = threading.Event(), threading.Event()

    def frames():
        for index in range(4):
            yield SourceFrame(index, b"")
        pumped.set()
        go_on.wait(10)
        yield SourceFrame(4, b"")

    with NewestFrame(frames()) as newest:
        pumped.wait(10)
        assert newest.waiting
        assert newest.take().index == 3
        assert not newest.waiting
        go_on.set()
        assert newest.take().index == 4
        assert newest.take() is None
    assert newest.dropped == 3


def test_frames_wait_until_they_are_due():
    slept = []
    frames = iter([SourceFrame(0, b"", 0.0), SourceFrame(1, b"", 0.5), SourceFrame(2, b"", None)])
    with NewestFrame(frames, clock=lambda: 100.0, sleep=slept.append) as newest:
        while newest.take() is not None:
            pass
    assert slept == [0.5]


def test_what_a_source_raises_is_raised_to_the_reader():
    def frames():
        yield SourceFrame(0, b"")
        raise ImageError("broken film")

    with NewestFrame(frames()) as newest, pytest.raises(ImageError, match="broken film"):
        while newest.take() is not None:
            pass


def test_leaving_stops_a_source_that_never_ends():
    with NewestFrame(SourceFrame(index, b"", index * 3600.0) for index in range(2)) as newest:
        assert newest.take().index == 0
    assert not newest._thread.is_alive()
