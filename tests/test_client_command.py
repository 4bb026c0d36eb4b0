"""The command `adpc` against the real server, or against one that says what a test tells it to."""

import io
import json
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
from adpc_client.__main__ import main
from adpc_client.frames import EveryFrame
from adpc_client.load import LoadMeasurement, Outcome, PlannedRequest
from adpc_client.load.transport import LoadReply
from PIL import Image
from scripted_server import Talk, end, scripted

IMAGE = tiny.image()
LONG_MS = 20_000.0
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("photo.png")
    return "photo.png"


def answering(talk: Talk) -> None:
    talk.exit(2)
    talk.say(end(talk.id, 2))


def test_predict_command_writes_a_picture(live_url, photo, capsys):
    assert main(["predict", photo, "--url", live_url, "--deadline-ms", str(LONG_MS)]) == 0
    assert "exit 4/4 of tiny-segmentation (complete)" in capsys.readouterr().out
    with Image.open("photo-exit-4.png") as mask:
        assert mask.mode == "P" and mask.size == (90, 60)
    command = ["predict", photo, "--url", live_url, "--deadline-ms", str(LONG_MS), "--max-exit", "2", "--json"]
    assert main([*command, "--overlay", "--output", "over.png"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["exit"], figures["stop"], figures["output"]) == (2, "max_exit", "over.png")
    assert sum(figures["shares"].values()) == pytest.approx(1, abs=1e-3)
    with Image.open("over.png") as picture:
        assert picture.mode == "RGB"


def test_predict_command_draws_a_pose(live_url, photo):
    command = ["predict", photo, "--url", live_url, "--model", "tiny-pose", "--deadline-ms", str(LONG_MS)]
    assert main([*command, "--output", "pose.png"]) == 0
    with Image.open("pose.png") as picture:
        assert not np.array_equal(np.asarray(picture), IMAGE)


def test_stream_command_writes_every_exit(live_url, photo, tmp_path, capsys):
    assert main(["stream", photo, "--url", live_url, "--deadline-ms", str(LONG_MS), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["exit"] == 4 and lines[-1]["final"]
    written = sorted(f"photo-exits/{path.name}" for path in (tmp_path / "photo-exits").iterdir())
    assert written == [f"photo-exits/exit-{line['exit']}.png" for line in lines] == [line["output"] for line in lines]


def test_stream_command_follows_an_animation(live_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = [Image.fromarray(tiny.image(seed=seed)) for seed in range(3)]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:], duration=20)
    common = ["--url", live_url, "--deadline-ms", str(LONG_MS), "--max-exit", "1"]
    assert main(["stream", "film.gif", *common, "--every-frame", "--output", "all"]) == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"frame-0000{n}-exit-1.png" for n in range(3)]
    assert main(["stream", "film.gif", *common, "--output", "newest"]) == 0
    assert (tmp_path / "newest" / "frame-00002-exit-1.png").exists()  # the last frame always gets its turn
    assert main(["stream", "film.gif", *common, "--every-frame", "--count", "1", "--output", "one"]) == 0
    assert len(list((tmp_path / "one").iterdir())) == 1
    capsys.readouterr()


def test_stream_command_answers_each_image_of_a_folder(live_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        Image.fromarray(tiny.image(seed=seed)).save(folder / f"{seed}.png")
    common = ["--url", live_url, "--deadline-ms", str(LONG_MS), "--max-exit", "1"]
    assert main(["stream", "photos", *common]) == 0
    assert len(list((tmp_path / "photos-exits").iterdir())) == 5
    assert "overtaken" not in capsys.readouterr().err


def test_a_broken_file_does_not_end_the_stream_of_a_folder(live_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "f.png"):
        Image.fromarray(tiny.image()).save(folder / name)
    whole = (folder / "a.png").read_bytes()
    (folder / "b.jpg").write_bytes(b"no image")  # which the client refuses
    (folder / "c.png").write_bytes(whole[: len(whole) // 2])  # which the server calls broken
    (folder / "d.png").write_bytes(whole[:8] + b", it says")  # which the server calls no image
    (folder / "e.png").mkdir()  # which cannot be read
    common = ["--url", live_url, "--deadline-ms", str(LONG_MS), "--max-exit", "1"]
    assert main(["stream", "photos", *common]) == 1
    written = sorted(path.name for path in (tmp_path / "photos-exits").iterdir())
    assert written == ["frame-00000-exit-1.png", "frame-00005-exit-1.png"]
    shown = capsys.readouterr()
    *complaints, failed = shown.err.splitlines()
    assert [line.split("  ")[0] for line in complaints] == [f"frame {index}" for index in (1, 2, 3, 4)]
    names = [f"photos/{name}" for name in ("b.jpg", "c.png", "d.png", "e.png")]
    assert all(name in line for name, line in zip(names, complaints, strict=True))
    assert failed == "failed: " + ", ".join(names)
    assert shown.out.splitlines()[-1].endswith("2 reached exit 1; 4 got no answer, 0 were overtaken by newer ones")


def test_the_status_is_1_if_a_file_is_broken_at_any_pace(live_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "c.png"):
        Image.fromarray(tiny.image()).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no image")
    common = ["stream", "photos", "--url", live_url, "--deadline-ms", str(LONG_MS), "--max-exit", "1"]
    for pace in ([], ["--fps", "1000", "--every-frame"]):
        assert main([*common, *pace]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == "failed: photos/b.jpg"


@pytest.mark.usefixtures("photo")
def test_a_paced_source_may_be_late_but_not_broken(capsys):
    """The frames of a script: the first is late, the second broken, the third answered."""
    replies = {"late": ("no_exit", 504), "broken": ("broken_image", 400)}

    def run(*kinds, options=()):
        waiting = list(kinds)

        def script(talk: Talk) -> None:
            kind = waiting.pop(0)
            if kind not in replies:
                answering(talk)
                return
            code, status = replies[kind]
            talk.say(json.dumps({"type": "error", "id": talk.id, "code": code, "error": kind, "status": status}))

        frames = [Image.fromarray(tiny.image(seed=seed)) for seed in range(len(kinds))]
        frames[0].save("film.gif", save_all=True, append_images=frames[1:], duration=20)
        with scripted(script) as server, pytest.MonkeyPatch.context() as patch:
            patch.setattr("adpc_client.follow.NewestFrame", lambda source, clock, on_frame: EveryFrame(source, clock))
            status = main(["stream", "film.gif", "--deadline-ms", "9", "--url", server.url, *options])
        return status, "failed: frame" in capsys.readouterr().err

    assert run("late", "good") == (0, False)
    assert run("good", "broken") == (1, True)
    assert run("late", "good", options=["--every-frame"]) == (1, True)


@pytest.mark.usefixtures("photo")
def test_the_folder_of_the_answers_is_named_after_what_was_streamed():
    Path("drive.v1").mkdir()
    Path("photo.png").rename("drive.v1/1.png")
    with scripted(answering) as server:
        for source in ("drive.v1/*.png", "drive.v1", "**/1.png", "drive.v1/1.png"):
            assert main(["stream", source, "--url", server.url]) == 0
    names = {path.parent.name for path in Path().glob("*-exits/*.png")}
    assert names == {"drive.v1-exits", f"{Path.cwd().name}-exits", "1-exits"}


@pytest.mark.usefixtures("photo")
def test_a_command_that_fails_leaves_no_folder(live_url, capsys, monkeypatch):
    assert main(["stream", "camera:none", "--output", "new", "--url", live_url]) == 1
    assert main(["stream", "photo.png", "--deadline-ms", "0.01", "--output", "new/a.mp4", "--url", live_url]) == 1
    assert main(["predict", "photo.png", "--model", "none", "--output", "new/a.png", "--url", live_url]) == 1
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit):
        main(["predict", "photo.png", "--output", "new/a.png", "--url", NOBODY])
    assert "--output needs the folder ., which you may not write to; name another" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["photo.png"]


def test_a_wrong_option_ends_the_stream_of_a_folder(live_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(tiny.image()).save(folder / name)
    assert main(["stream", "photos", "--url", live_url, "--quality", "7"]) == 1
    assert capsys.readouterr().err.startswith("adpc stream: quality is 7")


def test_stream_command_plays_a_video(live_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with av.open("film.mp4", "w") as film:
        track = film.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 96, 64, "yuv420p"
        for seed in range(3):
            film.mux(track.encode(av.VideoFrame.from_ndarray(tiny.image(64, 96, seed), "rgb24")))
        film.mux(track.encode())
    common = ["--url", live_url, "--deadline-ms", str(LONG_MS), "--max-exit", "1", "--every-frame", "--json"]
    assert main(["stream", "film.mp4", *common]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["frame"], line["size"]) for line in lines] == [(index, [64, 96]) for index in range(3)]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["load", "--url", "http://192.0.2.1"], "not this machine; add --yes"),
        (["load", "--rate", "0"], "'0' must be above 0"),
        (["load", "--rate", "5", "--concurrency", "5"], "not allowed with"),
        (["load", "--fps", "5"], "--fps describes --cameras"),
        (["load", "--cancel", "2"], "between 0 and 1"),
        (["load", "--deadline-ms", "50-10"], "runs backwards"),
        (["load", "--count", "1.5"], "whole number"),
        (["predict", "a.png", "--box", "1,2,3"], "not X,Y,W,H"),
        (["predict", "photo.png", "--output", "mask.xyz"], "must end in one of .png, .gif"),
        (["predict", "photo.png", "--output", "."], "must end in one of"),
        (["predict", "photo.png", "--output", "folder.png"], "folder.png is a folder"),
        (
            ["stream", "photo.png", "--output", "photo.png/out"],
            "needs the folder photo.png/out, but photo.png is a file",
        ),
        (
            ["predict", "photo.png", "--output", "photo.png/a.png"],
            "needs the folder photo.png, but photo.png is a file",
        ),
        (["stream", "photo.png", "--output", "photo.png"], "photo.png is a file; name a folder, or a video"),
        (
            ["stream", "photo.png", "--output", "new.avi"],
            "new.avi is a file; name a folder, or a video that ends in .mp4",
        ),
        (["load", "--deadline-ms", "abc"], "'abc' is not a number; it must be above 0"),
        (["predict", "photo.png", "--deadline-ms", "nan"], "'nan' is not a number; it must be above 0"),
        (["stream", "photo.png", "--deadline-ms", "inf"], "'inf' is not finite; it must be above 0"),
        (["predict", "folder.png"], "folder.png is a folder; predict takes one image: use adpc stream folder.png"),
        (["predict", "a film.mp4"], "a film.mp4 is a video; predict takes one image: use adpc stream 'a film.mp4'"),
        (["load", "--plot", "photo.png/a.png"], "--plot needs the folder photo.png, but photo.png is a file"),
        (["load", "--save-trace", "photo.png/a"], "--save-trace needs the folder photo.png, but photo.png is a file"),
        (["load", "--plot", "folder.png"], "--plot folder.png is a folder; name a file"),
        (["load", "--save-trace", "folder.png"], "--save-trace folder.png is a folder; name a file"),
        ([], "required: COMMAND"),
    ],
)
@pytest.mark.usefixtures("photo")
def test_wrong_usage_is_status_2_and_nothing_is_asked(command, complaint, capsys, monkeypatch):
    Path("folder.png").mkdir()
    monkeypatch.setenv("ADPC_URL", NOBODY)
    with pytest.raises(SystemExit) as raised:
        main(command)
    assert raised.value.code == 2
    assert complaint in capsys.readouterr().err


def test_failures_are_status_1(live_url, photo, capsys):
    assert main(["predict", "nowhere.png", "--url", live_url]) == 1
    assert main(["predict", photo, "--url", live_url, "--model", "none"]) == 1
    assert main(["stream", photo, "--url", live_url, "--deadline-ms", "0.01"]) == 1
    assert main(["predict", photo, "--url", "nonsense"]) == 1
    assert main(["predict", photo, "--url", "http://server:port"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5 and all(line.startswith("adpc ") for line in errors)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["predict", "none.png"], "there is no file none.png; give the path of an image, or - for standard input"),
        (
            ["stream", "0"],
            "there is no file 0; give an image, a video, a folder, a glob such as 'drive/*.jpg', camera:0",
        ),
        (["load", "--image", "none.png"], "there is no file none.png; check its name"),
        (["load", "--image", "folder.png"], "folder.png is a folder; check its name"),
        (["predict", "empty.png"], "empty.png (0 bytes) cannot be read as an image, because the file is empty"),
        (["stream", "empty.png"], "empty.png cannot be read as an image or a video, because it is empty"),
        (["load", "--plot", "load.png"], "a plot needs matplotlib"),
        (["load", "--image", "cut.jpg"], "cut.jpg: the bytes (7 bytes) cannot be read as an image; send JPEG, PNG"),
        (["stream", "photo.png", "--fps", "5"], "photo.png is one image, which has no pace; leave fps out"),
    ],
)
@pytest.mark.usefixtures("photo")
def test_a_file_that_cannot_be_read_is_named_with_a_remedy(command, complaint, capsys, monkeypatch):
    """Nothing is asked before: nobody would answer."""
    Path("folder.png").mkdir()
    Path("empty.png").touch()
    Path("cut.jpg").write_bytes(b"\xff\xd8\xff\xe0cut")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*command, "--url", NOBODY]) == 1
    assert capsys.readouterr().err.startswith(f"adpc {command[0]}: {complaint}")


def test_a_file_that_may_not_be_read_is_named(monkeypatch, capsys):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied", "photo.png")

    monkeypatch.setattr("adpc_client.commands.encode_image", forbidden)
    assert main(["predict", "photo.png", "--url", NOBODY]) == 1
    assert "photo.png cannot be opened: Permission denied; give the path of an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["--help"], ["predict", "stream", "models", "load"]),
        (["help"], ["predict", "stream", "models", "load"]),
        (["help", "stream"], ["--every-frame", "camera:0", "an animation or a video file", "missing folders are made"]),
        (["help", "predict"], ["its folder is made if it is missing"]),
        (["--version"], ["adpc 0.1.0"]),
    ],
)
def test_help_and_version(command, shown, capsys):
    with pytest.raises(SystemExit) as ended:
        main(command)
    out = " ".join(capsys.readouterr().out.split())
    assert not ended.value.code and all(word in out for word in shown)


def test_the_models_of_the_server(live_url, capsys):
    assert main(["models", "--url", live_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny-pose  pose, 16 joints" and len(lines) == 10 and lines[1].split()[:2] == ["exit", "1"]
    assert "GMACs" in lines[1] and (lines[1].endswith(" ms to compute") or lines[1].endswith("not measured yet"))
    assert main(["models", "--url", live_url, "--json"]) == 0
    pose, segmentation = json.loads(capsys.readouterr().out)
    assert segmentation["labels"] == list(tiny.SEGMENTATION.labels)
    assert [cost["exit"] for cost in pose["exits"]] == [1, 2, 3, 4]


def test_a_missing_folder_is_made_and_the_ending_says_the_format(live_url, photo):
    command = ["predict", photo, "--url", live_url, "--deadline-ms", str(LONG_MS), "--max-exit", "1", "--output"]
    assert main([*command, "new/folder/mask.jpg"]) == 0
    with Image.open("new/folder/mask.jpg") as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (90, 60))


@pytest.mark.usefixtures("photo")
def test_a_pipe_and_standard_input_can_be_streamed(monkeypatch, capsys):
    data = Path("photo.png").read_bytes()
    readable, writable = os.pipe()
    os.write(writable, data)
    os.close(writable)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    with scripted(answering) as server:
        assert main(["stream", f"/dev/fd/{readable}", "--output", "one", "--url", server.url]) == 0
        assert main(["stream", "-", "--overlay", "--url", server.url]) == 0
    os.close(readable)
    assert [str(path) for path in sorted(Path().glob("*/*.png"))] == ["image-exits/exit-2.png", "one/exit-2.png"]
    assert "frames in" not in capsys.readouterr().out  # one image needs no totals


@pytest.mark.usefixtures("photo")
def test_frames_become_a_video_of_the_last_exits_and_totals_end_the_command(capsys):
    frames = [Image.fromarray(tiny.image(seed=seed)) for seed in range(3)]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:], duration=40)
    with scripted(answering) as server:
        command = ["stream", "film.gif", "--every-frame", "--output", "out/film.mp4", "--url", server.url]
        assert main(command) == 0
        totals = capsys.readouterr().out.splitlines()[-1]
        assert main([*command, "--json"]) == 0
    assert totals.startswith("3 frames in ")
    assert totals.endswith(" s: 3 reached exit 2; 0 got no answer, 0 were overtaken by newer ones")
    shown = capsys.readouterr()
    assert [json.loads(line)["output"] for line in shown.out.splitlines()] == ["out/film.mp4"] * 3
    assert shown.err.startswith("3 frames in ")
    with av.open("out/film.mp4") as film:
        assert [frame.time for frame in film.decode(video=0)] == pytest.approx([0, 0.04, 0.08], abs=2e-3)


@pytest.mark.usefixtures("photo")
def test_totals_come_after_ctrl_c_too(capsys):
    Path("photos").mkdir()
    Path("photo.png").rename("photos/1.png")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with scripted(answering) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("adpc_client.stream_command.save_picture", interrupted)
        assert main(["stream", "photos", "--url", server.url]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("0 frames in ") and shown.err == "adpc stream: interrupted\n"


@pytest.mark.usefixtures("photo")
def test_an_output_that_nobody_reads_to_its_end_is_no_error(monkeypatch, capsys):
    """As in `adpc stream photo.png | head -1`, when `head` has gone."""
    readable, writable = os.pipe()
    os.close(readable)
    with scripted(answering) as server, os.fdopen(writable, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(["stream", "photo.png", "--url", server.url]) == 1
    assert not capsys.readouterr().err


def test_the_version_is_told_without_an_installed_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    for found, said in ((lambda name: "1.2", "adpc 1.2\n"), (missing, "adpc, run from a checkout\n")):
        monkeypatch.setattr("adpc_client.__main__.version", found)
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == said


def test_the_url_of_a_load_test_is_checked_before_its_host(capsys):
    assert main(["load", "--url", "localhost:8000"]) == 1
    assert "the server's URL is 'localhost:8000'; it must look like http://host:port" in capsys.readouterr().err


def test_a_utility_that_lacks_an_exit_ends_a_load_test_before_it_begins(live_url, monkeypatch, capsys):
    monkeypatch.setattr("adpc_client.load.command.measure", lambda *_, **__: pytest.fail("it measures"))
    with pytest.raises(SystemExit) as raised:
        main(["load", "--count", "1", "--utility", "0.5,0.6", "--url", live_url])
    assert raised.value.code == 2
    assert "--utility has 2 values, and there are 4 exits; give a value for each exit" in capsys.readouterr().err


@pytest.mark.usefixtures("photo")
def test_a_load_test_shows_its_report_even_if_a_file_cannot_be_written(monkeypatch, capsys):
    """The disk is full."""

    async def measured(*_):
        return LoadMeasurement([Outcome(PlannedRequest(0.0), LoadReply(0.1, "overloaded", status=503))], 1.0, 0.1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adpc_client.load.command._measure", measured)
    monkeypatch.setattr("adpc_client.load.command.write_trace", full)
    assert main(["load", "--count", "1", "--save-trace", "t.jsonl", "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["requests"] == 1 and "No space left" in shown.err


@pytest.mark.usefixtures("photo")
def test_a_file_that_may_not_be_replaced_is_refused_before_anything_is_asked(monkeypatch, capsys):
    """A file that may be replaced needs no folder that may be written to, such as /dev/null."""
    Path("t.jsonl").touch()
    monkeypatch.setattr(os, "access", lambda path, _: str(path) != "t.jsonl")
    with pytest.raises(SystemExit):
        main(["load", "--save-trace", "t.jsonl", "--url", NOBODY])
    assert "--save-trace t.jsonl is a file that you may not write to; name another" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, _: str(path) == "t.jsonl")
    assert main(["load", "--save-trace", "t.jsonl", "--url", NOBODY]) == 1
    with pytest.raises(SystemExit):
        main(["predict", "photo.png", "--url", NOBODY])
    assert "--output needs the folder ., which you may not write to" in capsys.readouterr().err
