"""The Python client and its command against the real server."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
from adpc_client import AsyncClient, BadInputError, Client, NoExitError, NotFoundError, UnsupportedImageError
from adpc_client.__main__ import main
from PIL import Image

IMAGE = tiny.image()
LONG_MS = 20_000.0


@pytest.fixture(scope="module")
def client(live_url):
    with Client(live_url) as client:
        yield client


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("photo.png")
    return "photo.png"


def test_predict_and_stream_agree_in_every_encoding(client):
    answer = client.predict(IMAGE, deadline_ms=LONG_MS, extra="unsure")
    assert (answer.exit, answer.stop, answer.task, answer.model) == (4, "complete", "segmentation", "tiny-segmentation")
    assert answer.mask.shape == IMAGE.shape[:2] == answer.extra.shape
    assert answer.classes == tiny.SEGMENTATION.labels and len(answer.timing.compute_ms) == 4
    maps = {}
    for encoding in ("raw", "png", "delta"):
        with client.stream(IMAGE, deadline_ms=LONG_MS, extra="unsure", encoding=encoding) as stream:
            exits = list(stream)
        assert sorted([*(got.exit for got in exits), *stream.end.skipped]) == [1, 2, 3, 4]
        assert np.array_equal(exits[-1].mask, answer.mask) and np.array_equal(exits[-1].extra, answer.extra)
        assert exits[0].classes == answer.classes and np.array_equal(exits[0].palette, answer.palette)
        for got in exits:
            mask, extra = maps.setdefault(got.exit, (got.mask, got.extra))
            assert np.array_equal(got.mask, mask) and np.array_equal(got.extra, extra)
    assert len(maps) >= 2 and not np.array_equal(maps[min(maps)][0], answer.mask)


def test_pose(client):
    answer = client.predict(IMAGE, model="tiny-pose", deadline_ms=LONG_MS, box=(10, 5, 60, 50))
    exits = list(client.stream(IMAGE, model="tiny-pose", deadline_ms=LONG_MS, box=(10, 5, 60, 50)))
    assert answer.keypoints.shape == (16, 3) and np.array_equal(exits[-1].keypoints, answer.keypoints)
    assert answer.labels.skeleton == tiny.POSE.skeleton == exits[0].labels.skeleton


def test_a_box_chooses_the_person_wherever_it_stands(client, live_url, tmp_path, monkeypatch, capsys):
    """The same person at two places of a photo: the same pose, moved; from both clients and the command."""
    photo = tiny.image(300, 400, seed=1)
    photo[0:60, 0:60] = photo[200:260, 310:370] = tiny.image(60, 60, seed=2)
    corner = client.predict(photo, model="tiny-pose", deadline_ms=LONG_MS, box=(6, 6, 48, 48)).keypoints
    far_box = (316.0, 206.0, 48.0, 48.0)
    far = client.predict(photo, model="tiny-pose", deadline_ms=LONG_MS, box=far_box).keypoints
    assert np.allclose(far, corner + np.array([310, 200, 0]), atol=1e-3)
    assert not np.allclose(far, client.predict(photo, model="tiny-pose", deadline_ms=LONG_MS).keypoints, atol=5)

    async def both():
        async with AsyncClient(live_url) as other:
            answer = await other.predict(photo, model="tiny-pose", deadline_ms=LONG_MS, box=far_box)
            exits = [found async for found in other.stream(photo, model="tiny-pose", deadline_ms=LONG_MS, box=far_box)]
        return answer.keypoints, exits[-1].keypoints

    assert all(np.array_equal(found, far) for found in asyncio.run(both()))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("photo.png")
    command = ["predict", "photo.png", "--url", live_url, "--model", "tiny-pose", "--deadline-ms", str(LONG_MS)]
    assert main([*command, "--box", "316,206,48,48", "--json"]) == 0
    assert np.allclose(json.loads(capsys.readouterr().out)["keypoints"], far)


@pytest.mark.parametrize(
    ("box", "complaint"),
    [((90, 0, 5, 5), "outside of the 90x60 image"), ((0, 0, 0.5, 9), "at least 1"), ((0, 0, np.nan, 9), "finite")],
)
def test_a_box_without_a_person_is_a_bad_input(client, box, complaint):
    with pytest.raises(BadInputError, match=complaint) as raised:
        client.predict(IMAGE, model="tiny-pose", deadline_ms=LONG_MS, box=box)
    assert raised.value.status == 400
    with pytest.raises(BadInputError, match=complaint):
        list(client.stream(IMAGE, model="tiny-pose", deadline_ms=LONG_MS, box=box))
    with pytest.raises(BadInputError, match="does segmentation"):
        client.predict(IMAGE, model="tiny-segmentation", deadline_ms=LONG_MS, box=(0, 0, 9, 9))


def test_a_stream_that_is_left_or_cancelled_ends_early(client):
    with client.stream(IMAGE, deadline_ms=LONG_MS) as left:
        next(left)
    with client.stream(IMAGE, deadline_ms=LONG_MS) as hurried:
        hurried.set_deadline(0.001)
    with client.stream(IMAGE, deadline_ms=LONG_MS) as cancelled:
        cancelled.cancel()
        list(cancelled)
    assert left.end.stop in ("cancelled", "complete")  # the tiny network may have been faster
    assert cancelled.end.stop in ("cancelled", "complete")
    assert list(client.stream(IMAGE, deadline_ms=LONG_MS))[-1].final  # and the connection is none the worse for it


def test_errors_of_the_real_server(client):
    with pytest.raises(NotFoundError, match="tiny-pose, tiny-segmentation") as raised:
        client.predict(IMAGE, model="none")
    assert raised.value.code == "unknown_model"
    with pytest.raises(BadInputError, match="deadline_ms is -1"):
        client.predict(IMAGE, deadline_ms=-1)
    with pytest.raises(NoExitError):
        client.predict(IMAGE, deadline_ms=0.01)
    with pytest.raises(NoExitError):
        list(client.stream(IMAGE, deadline_ms=0.01))
    with pytest.raises((UnsupportedImageError, BadInputError)):
        client.predict(b"\x89PNG\r\n\x1a\n, it says")
    with pytest.raises(NotFoundError):
        client.cancel("nobody")


def test_models(client):
    assert [model.name for model in client.models()] == ["tiny-pose", "tiny-segmentation"]
    model = client.model("tiny-segmentation")
    assert model.labels.names == tiny.SEGMENTATION.labels
    assert [cost.exit for cost in model.exits] == [1, 2, 3, 4] and model.exits[0].gmacs > 0


def test_async_many_at_once(live_url):
    async def ask():
        async with AsyncClient(live_url) as client:
            answers = await asyncio.gather(*(client.predict(IMAGE, deadline_ms=LONG_MS) for _ in range(8)))
            async with client.stream(IMAGE, deadline_ms=LONG_MS) as stream:
                exits = [got async for got in stream]
            return answers, exits

    answers, exits = asyncio.run(ask())
    assert all(np.array_equal(answer.mask, exits[-1].mask) for answer in answers)


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
    assert main(["stream", "photos", *common]) == 0
    written = sorted(path.name for path in (tmp_path / "photos-exits").iterdir())
    assert written == ["frame-00000-exit-1.png", "frame-00005-exit-1.png"]
    complaints = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in complaints] == [f"frame {index}" for index in (1, 2, 3, 4)]


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


@pytest.mark.parametrize("protocol", ["http", "stream"])
def test_load_command_measures_the_real_server(live_url, tmp_path, capsys, protocol):
    trace = str(tmp_path / "sent.jsonl")
    command = ["load", "--url", live_url, "--protocol", protocol, "--json", "--deadline-ms", "2000-4000"]
    mixes = [
        "--size",
        "90x60,60x40",
        "--model",
        "tiny-segmentation,tiny-pose",
        "--clients",
        "2",
        "--utility",
        "1,2,3,4",
    ]
    give_ups = ["--cancel", "0.15", "--hang-up", "0.15"]
    assert main([*command, *mixes, *give_ups, "--count", "12", "--rate", "200", "--save-trace", trace]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["requests"] == 12 == sum(report["exits"].values()) == sum(report["stops"].values())
    assert report["faults"] == 0 and report["utility"]["returned"] > 1 and set(report["clients"]) == {"0", "1"}
    sent = [json.loads(line) for line in Path(trace).read_text().splitlines()]
    assert len(sent) == 12 and {(line["width"], line["height"]) for line in sent} == {(90, 60), (60, 40)}
    assert main([*command, "--trace", trace, "--speed", "10"]) == 0
    replayed = json.loads(capsys.readouterr().out)
    clients = {name: client["requests"] for name, client in report["clients"].items()}
    assert {name: client["requests"] for name, client in replayed["clients"].items()} == clients


def test_load_command_shows_a_table(live_url, capsys):
    cameras = ["--cameras", "2", "--fps", "40", "--count", "8", "--protocol", "stream"]
    command = ["load", "--url", live_url, "--deadline-ms", str(LONG_MS), "--size", "60x40"]
    assert main([*command, *cameras]) == 0
    assert "8 requests in" in (shown := capsys.readouterr().out) and "Jain's index" in shown
    assert main([*command, "--count", "4", "--concurrency", "2", "--option", "max_exit=1"]) == 0
    assert "4 requests in" in (shown := capsys.readouterr().out) and "4 max_exit" in shown
    assert main([*command, "--count", "2", "--option", "max_exit=9"]) == 1
    assert "max_exit is 9" in capsys.readouterr().out


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
        ([], "required: command"),
    ],
)
def test_wrong_usage_is_status_2(command, complaint, capsys):
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
    assert main(["predict", photo, "--url", live_url, "--deadline-ms", "inf"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 6 and all(line.startswith("adpc ") for line in errors)


def test_help_of_the_command():
    command = [sys.executable, "-m", "adpc_client", "--help"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent / "clients", capture_output=True, text=True, check=True
    )
    assert "predict" in done.stdout and "stream" in done.stdout and "load" in done.stdout
