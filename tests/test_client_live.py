"""The Python client and its command against the real server."""

import asyncio
import json
from pathlib import Path

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


def test_only_the_classes_and_the_region_that_are_asked_for(client, live_url, photo, capsys):
    whole = client.predict(IMAGE, deadline_ms=LONG_MS).mask
    number = int(whole[20:40, 10:50].max())
    roi, classes = (10, 20, 40, 20), [tiny.SEGMENTATION.labels[number]]
    part = client.predict(IMAGE, deadline_ms=LONG_MS, classes=classes, roi=roi, meta="left").mask
    assert set(np.unique(part)) <= {number, 255} and (part[:20] == 255).all() and (part[:, 50:] == 255).all()
    with client.stream(IMAGE, deadline_ms=LONG_MS, classes=[number], roi=roi, meta="left") as stream:
        *_, last = stream
    assert np.array_equal(last.mask, part) and last.meta == "left"
    with pytest.raises(NoExitError) as raised:
        client.predict(IMAGE, deadline_ms=1000, captured_at=1e9)
    assert raised.value.code == "stale"
    command = ["predict", photo, "--url", live_url, "--deadline-ms", str(LONG_MS), "--json", "--output", "part.png"]
    assert main([*command, "--classes", classes[0], "--roi", "10,20,40,20"]) == 0
    assert set(json.loads(capsys.readouterr().out)["shares"]) <= set(classes)
    with Image.open("part.png") as picture:
        assert np.array_equal(np.asarray(picture), part)


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
    [((90, 0, 5, 5), "outside of the 90x60 image"), ((0, 0, 0.5, 9), "at least 1")],
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
