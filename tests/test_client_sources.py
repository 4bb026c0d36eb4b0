"""What frames come from: names, iterators and callables; in which order, at which pace, and what is left out."""

import errno
import importlib
import io
import os
import sys
from contextlib import suppress

import av
import numpy as np
import pytest
from adpc_client import ImageError, video
from adpc_client.sources import open_bytes, open_source
from adpc_client.standard_input import open_input
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


def test_one_image_has_no_pace(folder):
    for opened in (lambda: open_source(folder / "10.png", 5), lambda: open_bytes((folder / "10.png").read_bytes(), 5)):
        with pytest.raises(ValueError, match="is one image, which has no pace; leave fps out"):
            opened()


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
        ("camera:front", {}, ValueError, "camera:front names no camera; give its number, for example camera:0"),
        (-1, {}, ValueError, "camera:-1 names no camera"),
        (PIXELS, {}, TypeError, "one image"),
        ([PIXELS], {"fps": 0}, ValueError, "fps is 0"),
        ([PIXELS], {"fps": float("inf")}, ValueError, "fps is inf"),
    ],
)
def test_what_is_no_source(source, options, kind, complaint, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
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


def test_a_number_is_that_of_a_camera(monkeypatch):
    monkeypatch.setattr(video, "_read_live", lambda device, name, bgr, **options: iter([(device, options["options"])]))
    monkeypatch.setattr(sys, "platform", "linux")
    expected = ("/dev/video2", {"framerate": "5"})
    assert [frame.image for frame in open_source(2, fps=5).frames] == [expected]
    assert [frame.image for frame in open_source("camera:2", fps=5).frames] == [expected]


@pytest.mark.parametrize(
    ("there", "allowed", "complaint"),
    [
        ([], True, "there is no {}/video0; connect a camera, or stream a video file instead"),
        (
            ["video4", "video2"],
            True,
            "there is no {0}/video0; there are {0}/video2, {0}/video4: give the number of one of them, or",
        ),
        (["video0"], False, r"you may not use {}/video0; join its group \(sudo usermod -aG video \$USER\) and log in"),
        (["video0"], True, "it is busy; check that no other program uses {}/video0, or stream a video file instead"),
    ],
)
def test_a_camera_that_cannot_be_opened_says_what_to_do(tmp_path, monkeypatch, there, allowed, complaint):
    def busy(device, name, bgr, **options):
        raise ImageError(f"{name} cannot be read") from OSError("it is busy")
        yield

    monkeypatch.setattr(video, "_CAMERA", {"linux": ("v4l2", f"{tmp_path}/video{{}}")})
    monkeypatch.setattr(video, "_read_live", busy)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "access", lambda path, mode: allowed)
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(ImageError, match="camera:0 cannot be opened: " + complaint.format(tmp_path)) as raised:
        list(open_source("camera:0").frames)
    assert raised.value.__suppress_context__  # the sentence says it all


def test_a_camera_that_breaks_off_says_why(monkeypatch):
    def unplugged(device, name, bgr, **options):
        yield PIXELS
        raise ImageError(f"{name} was unplugged")

    monkeypatch.setattr(video, "_read_live", unplugged)
    frames = open_source("camera:0").frames
    assert next(frames).image is PIXELS
    with pytest.raises(ImageError, match=r"^camera:0 was unplugged$"):
        next(frames)


class Input(io.RawIOBase):
    """Standard input whose writer goes on for ever: reading it to its end would never return."""

    def __init__(self, data):
        self._file = io.BytesIO(data)

    def read(self, size=-1):
        assert size >= 0, "nobody may wait for the end"
        return self._file.read(min(size, 100))  # as a pipe does, which returns what has come so far


@pytest.mark.parametrize("ending", [".mkv", ".ts"])
def test_a_video_is_played_while_it_comes_through_standard_input(tmp_path, ending):
    path = tmp_path / f"film{ending}"
    with av.open(path, "w") as film:
        track = film.add_stream("mpeg2video", rate=25)
        track.width, track.height, track.pix_fmt = 96, 64, "yuv420p"
        for level in range(0, 200, 20):
            film.mux(track.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), level, np.uint8), "rgb24")))
        film.mux(track.encode())
    source = open_input(Input(path.read_bytes()))
    assert source.paced and [frame.image.shape for frame in source.frames] == [(64, 96, 3)] * 10


def test_what_must_be_complete_is_read_to_its_end(tmp_path):
    shades = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 120)]
    shades[0].save(tmp_path / "moving.gif", save_all=True, append_images=shades[1:])
    shades[0].save(tmp_path / "still.png")
    with (tmp_path / "moving.gif").open("rb", buffering=0) as file:
        assert [frame.image.mode for frame in open_input(file).frames] == ["RGB"] * 2  # Pillow reads it, not FFmpeg
    with (tmp_path / "still.png").open("rb", buffering=0) as file:
        assert [frame.image for frame in open_input(file).frames] == [(tmp_path / "still.png").read_bytes()]
    with pytest.raises(ImageError, match=r"standard input is empty; send the bytes of an image or a video"):
        open_input(io.BytesIO())


@pytest.mark.parametrize("name", ["film.mp4", "camera:0", "rtsp://camera/1"])
def test_videos_and_cameras_name_the_extra_that_they_need(tmp_path, monkeypatch, name):
    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    source = open_source(name if ":" in name else tmp_path / name)
    with pytest.raises(ImageError, match=r"pip install 'adpc-client\[video\]'"):
        next(source.frames)
