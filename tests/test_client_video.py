"""Videos that the client reads and writes, made here: upright, at a player's pace, and without what is damaged."""

import struct
import wave
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
from adpc_client import ImageError, video
from adpc_client.sources import open_bytes, open_source
from adpc_client.standard_input import open_input
from adpc_client.video import FrameTimes, VideoWriter
from PIL import Image

WIDTH, HEIGHT, COUNT, FPS = 96, 64, 12, 10


def write(path, codec="mpeg4", form=None, first=0):
    """COUNT frames, the upper half red and the lower grey; `first` is the number of the first time stamp."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pixels[: HEIGHT // 2] = (200, 30, 30)
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = WIDTH, HEIGHT, "yuv420p", 4
        for index in range(COUNT):
            pixels[:, 4 * index : 4 * index + 12] = (30, 30, 200)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = first + index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames(path, **options):
    return list(open_source(path, **options).frames)


def test_a_video_plays_at_its_own_pace_or_at_the_one_that_is_asked_for(tmp_path):
    film = write(tmp_path / "film.mp4")
    got = frames(film)
    assert open_source(film).paced and [frame.index for frame in got] == list(range(COUNT))
    assert [frame.due_s for frame in got] == pytest.approx([index / FPS for index in range(COUNT)])
    assert got[0].image.shape == (HEIGHT, WIDTH, 3) and got[0].image[8, 90].argmax() == 0
    assert frames(film, bgr=True)[0].image[8, 90].argmax() == 2
    assert [frame.due_s for frame in frames(film, fps=4)][:3] == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("film.mp4", "mpeg4"),
        ("film.mov", "libx264"),
        ("film.mkv", "libx264"),
        ("film.h264", "libx264"),
        ("f.flv", "flv"),
    ],
)
def test_the_bytes_of_a_video_play_as_its_file_does(tmp_path, name, codec):
    film = write(tmp_path / name, codec)
    expected = [frame.due_s for frame in frames(film)]
    with film.open("rb", buffering=0) as piped:
        for source in (open_bytes(film.read_bytes()), open_input(piped)):
            assert source.paced and [frame.due_s for frame in source.frames] == expected


def test_a_video_that_does_not_start_at_0_starts_at_once(tmp_path):
    due_s = [frame.due_s for frame in frames(write(tmp_path / "late.mkv", first=5 * FPS))]
    assert due_s == pytest.approx([index / FPS for index in range(COUNT)], abs=2e-3)


def test_frames_without_time_stamps_come_one_after_the_other(tmp_path):
    due_s = [frame.due_s for frame in frames(write(tmp_path / "raw.h264", "libx264", "h264"))]
    assert due_s == pytest.approx([index / FPS for index in range(COUNT)])


@pytest.mark.parametrize(
    ("matrix", "size", "red_at"),
    [
        ((0, 1, -1, 0), (WIDTH, HEIGHT), (48, 56)),  # a phone held upright: turn right to see it
        ((0, -1, 1, 0), (WIDTH, HEIGHT), (48, 8)),
        ((-1, 0, 0, -1), (HEIGHT, WIDTH), (56, 48)),
    ],
)
def test_a_video_of_a_turned_phone_is_upright(tmp_path, matrix, size, red_at):
    film = write(tmp_path / "film.mp4")
    data = bytearray(film.read_bytes())
    place = data.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    film.write_bytes(data)
    image = frames(film)[0].image
    assert image.shape == (*size, 3) and image.flags.c_contiguous and image[red_at].argmax() == 0


def test_what_is_damaged_is_left_out(tmp_path):
    film = write(tmp_path / "film.mp4")
    data = bytearray(film.read_bytes())
    start = data.find(b"mdat") + 4
    length = struct.unpack(">I", data[start - 8 : start - 4])[0]
    middle = slice(start + length // 2, start + length // 2 + length // 8)
    data[middle] = b"\xa5" * (length // 8)
    film.write_bytes(data)
    got = frames(film)
    assert COUNT - 4 <= len(got) <= COUNT and got[-1].due_s == pytest.approx((COUNT - 1) / FPS)
    data[start + 8 : start + length - 16] = b"\xa5" * (length - 24)
    film.write_bytes(data)
    with pytest.raises(ImageError, match=r"film\.mp4 cannot be read as an image or a video"):
        frames(film)


def test_a_sound_has_no_pictures(tmp_path):
    with wave.open(str(tmp_path / "song.wav"), "wb") as song:
        song.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        song.writeframes(b"\0" * 16000)
    with pytest.raises(ImageError, match="no pictures"):
        frames(tmp_path / "song.wav")


@pytest.mark.parametrize(
    ("stamps", "due"),
    [
        ([7.0, 7.5, 9.0], [0.0, 0.5, 2.0]),
        ([None, None, None], [0.0, 0.1, 0.2]),
        ([0.0, None, 3.0, 3.5], [0.0, 0.1, 0.2, 0.7]),
        ([0.0, 0.5, 95443.7, 95444.2], [0.0, 0.5, 0.6, 1.1]),  # the clock of a broadcast begins again
        ([5.0, 5.5, 0.0, 0.5], [0.0, 0.5, 0.6, 1.1]),
    ],
)
def test_frames_are_due_by_the_gaps_between_their_time_stamps(stamps, due):
    times = FrameTimes(0.1)
    assert [times.due_s(stamp) for stamp in stamps] == pytest.approx(due)


def test_a_network_stream_that_breaks_is_opened_again(monkeypatch):
    slept, opened = [], []

    def read(url, *_, **__):
        opened.append(url)
        yield from [f"image {len(opened)}"] * 2
        if len(opened) == 1:
            raise ImageError("the camera was restarted")

    monkeypatch.setattr(video, "_read_live", read)
    source = video.open_network("rtsp://camera/1", bgr=False, sleep=slept.append)
    got = [(frame.index, frame.image) for frame in islice(source.frames, 5)]
    assert got == [(0, "image 1"), (1, "image 1"), (2, "image 2"), (3, "image 2"), (4, "image 3")]
    assert len(slept) == 2 and source.paced and opened == ["rtsp://camera/1"] * 3
    opened.clear()
    opened.append("so that it only ends")
    ended = video.open_network("http://camera/film.mp4", bgr=False, sleep=slept.append)
    assert len(list(ended.frames)) == 2 and len(slept) == 2


def test_a_network_stream_that_never_gave_a_frame_fails(monkeypatch):
    def refuse(*_, **__):
        raise ImageError("no such camera")
        yield

    monkeypatch.setattr(video, "_read_live", refuse)
    with pytest.raises(ImageError, match="no such camera"):
        next(open_source("rtsp://camera/1").frames)
    monkeypatch.setattr(video, "_read_live", lambda *_, **__: iter(()))
    with pytest.raises(ImageError, match="ended before its first frame"):
        next(open_source("rtsp://camera/1").frames)


def test_a_camera_is_asked_for_its_pace(monkeypatch):
    asked = []
    monkeypatch.setattr(video, "_read_live", lambda *given, **more: asked.append((given, more)) or iter(["image"]))
    monkeypatch.setattr("sys.platform", "linux")
    assert [frame.image for frame in open_source("camera:2", 15, bgr=True).frames] == ["image"]
    assert asked == [(("/dev/video2", "camera:2", True), {"format": "v4l2", "options": {"framerate": "15"}})]
    monkeypatch.setattr("sys.platform", "plan9")
    with pytest.raises(ImageError, match="not supported on plan9"):
        open_source("camera:0")


def test_pictures_become_a_video_each_at_its_own_time(tmp_path):
    moments = [0.0, 0.04, 0.04, 0.5]
    with VideoWriter(tmp_path / "film.mp4") as film:
        for moment, width in zip(moments, (33, 33, 50, 33), strict=True):
            film.add(Image.new("RGB", (width, 21), (200, 30, 30)), moment)
    got = frames(tmp_path / "film.mp4")
    assert [frame.due_s for frame in got] == pytest.approx([0.0, 0.04, 0.041, 0.5], abs=2e-3)
    assert {frame.image.shape for frame in got} == {(20, 32, 3)} and got[0].image[10, 10].argmax() == 0
