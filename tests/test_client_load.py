"""What a load test sends: arrivals, mixes, traces, images and the plan that arguments ask for."""

import io
import random
from itertools import islice, takewhile

import numpy as np
import pytest
from adpc_client.images import content_type
from adpc_client.load import (
    BurstArrivals,
    ConstantArrivals,
    GammaArrivals,
    Mix,
    PlannedRequest,
    PoissonArrivals,
    RequestMix,
    camera_frames,
    draw_requests,
    read_trace,
    write_trace,
)
from adpc_client.load.payloads import Payloads, street
from PIL import Image

DRAWS = 4000


def gaps(process, seed=1):
    moments = list(islice(process.moments(random.Random(seed)), DRAWS))
    assert moments == list(islice(process.moments(random.Random(seed)), DRAWS))
    return np.diff([0.0, *moments])


def requests(arrivals, seed=0, **mix):
    return list(draw_requests(arrivals, RequestMix(**mix), seed))


@pytest.mark.parametrize(
    ("process", "variation"),
    [
        (PoissonArrivals(50), 1.0),
        (GammaArrivals(50, 1.0), 1.0),
        (GammaArrivals(50, 0.25), 0.25),
        (GammaArrivals(50, 3.0), 3.0),
        (BurstArrivals(50, factor=1, share=0.3, burst_s=0.5), 1.0),
    ],
)
def test_gaps_have_their_mean_and_variation_and_are_independent(process, variation):
    drawn = gaps(process)
    # Three standard errors of the mean, and two of the deviation where its tail is heaviest.
    assert np.mean(drawn) == pytest.approx(1 / 50, rel=3 * variation / DRAWS**0.5)
    assert np.std(drawn) / np.mean(drawn) == pytest.approx(variation, rel=0.12)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 3 / DRAWS**0.5
    assert drawn.min() >= 0


def test_constant_arrivals_are_a_metronome():
    assert list(islice(ConstantArrivals(4).moments(random.Random(0)), 4)) == [0, 0.25, 0.5, 0.75]


def test_bursts_keep_the_rate_and_have_their_factor_and_share():
    process = BurstArrivals(40, factor=10, share=0.2, burst_s=0.5)
    length_s = 2000
    moments = takewhile(lambda at_s: at_s < length_s, process.moments(random.Random(2)))
    counts = np.bincount(np.fromiter(moments, float).astype(int), minlength=length_s)
    assert counts.mean() == pytest.approx(40, rel=0.1)
    # Of a two-state process with rates a and b, windows of T >> burst have an index of dispersion of
    # 1 + 2 (a - b)^2 p (1 - p) tau / mean, tau being the time in which the state is forgotten.
    calm = 40 / (0.8 + 0.2 * 10)
    tau_s = 1 / (1 / 0.5 + 1 / 2.0)
    dispersion = 1 + 2 * (10 * calm - calm) ** 2 * 0.2 * 0.8 * tau_s / 40
    windows = counts.reshape(-1, 20).sum(1)
    assert windows.var() / windows.mean() == pytest.approx(dispersion, rel=0.35)
    drawn = gaps(process)
    assert np.corrcoef(drawn[1:], drawn[:-1])[0, 1] > 0.1  # a short gap foretells a short one
    starts = [takewhile(lambda at_s: at_s < 0.1, process.moments(random.Random(seed))) for seed in range(300)]
    assert sum(len(list(start)) for start in starts) == pytest.approx(300 * 0.1 * 40, rel=0.25)  # also at the start


def test_cameras_are_out_of_step_and_keep_their_pace():
    frames = list(islice(camera_frames(5, 10, random.Random(0)), 500))
    assert frames == sorted(frames)
    starts = []
    for camera in map(str, range(5)):
        own = [at_s for at_s, name in frames if name == camera]
        assert np.allclose(np.diff(own), 0.1) and len(own) == 100
        starts.append(own[0])
    assert len(set(starts)) == 5 and max(starts) < 0.1


def test_requests_are_drawn_as_mixed_and_the_same_again():
    draws = 1500
    arrivals = [{"at_s": index / 10} for index in range(draws)]
    mix = {
        "deadlines_ms": Mix(((50, 150), (500, 500)), (3, 1)),
        "sizes": Mix(((480, 360), None), (1, 1)),
        "models": Mix(("a", "b"), (9, 1)),
        "priorities": Mix.of(0, 2),
        "clients": Mix(("0", "1"), (10, 1)),
        "cancel_share": 0.2,
        "hang_up_share": 0.1,
    }
    drawn = requests(arrivals, **mix)
    assert drawn == requests(arrivals, **mix) != requests(arrivals, seed=1, **mix)
    near = {"abs": 3 * (0.25 / draws) ** 0.5}  # three standard errors of a share

    def share(fits):
        return sum(map(fits, drawn)) / draws

    assert share(lambda each: 50 <= each.deadline_ms <= 150) == pytest.approx(0.75, **near)
    assert share(lambda each: each.deadline_ms == 500) == pytest.approx(0.25, **near)
    assert share(lambda each: (each.width, each.height) == (480, 360)) == pytest.approx(0.5, **near)
    assert share(lambda each: each.model == "b") == pytest.approx(0.1, **near)
    assert share(lambda each: each.priority == 2) == pytest.approx(0.5, **near)
    assert share(lambda each: each.client == "1") == pytest.approx(1 / 11, **near)
    assert share(lambda each: each.give_up_s is not None and not each.hang_up) == pytest.approx(0.2, **near)
    assert share(lambda each: each.hang_up) == pytest.approx(0.1, **near)
    assert all(each.give_up_s is not None for each in drawn if each.hang_up)
    assert all(each.give_up_s * 1000 <= each.deadline_ms for each in drawn if each.give_up_s is not None)


def test_what_is_given_is_not_drawn():
    given = {"at_s": 1.0, "deadline_ms": 10.0, "client": "camera", "priority": 2}
    (drawn,) = requests([given], cancel_share=1.0)
    assert (drawn.deadline_ms, drawn.client, drawn.priority) == (10.0, "camera", 2)
    assert drawn.give_up_s <= 0.01  # of the deadline that is given


def test_a_trace_comes_back_as_it_was_written(tmp_path):
    written = [
        PlannedRequest(0.5, 80.5, 640, 480, "m", "7", 0.02, True, 2),
        PlannedRequest(0.25, client="a"),
        PlannedRequest(0.75, give_up_s=0.1),
    ]
    write_trace(tmp_path / "t.jsonl", written)
    assert requests(read_trace(tmp_path / "t.jsonl")) == [written[1], written[0], written[2]]


def test_a_trace_needs_no_more_than_moments(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"at_s": 2}\n\n{"at_s": 1, "client": 3, "width": null}\n{"at_s": 3, "give_up_s": 0}\n')
    drawn = requests(read_trace(path), deadlines_ms=Mix.of((7, 7)), hang_up_share=1.0)
    assert [(each.at_s, each.client, each.deadline_ms) for each in drawn] == [(1, "3", 7), (2, "0", 7), (3, "0", 7)]
    assert [each.hang_up for each in drawn] == [True, True, False]  # a line that gives up says how, too


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ('{"at_s": 1}\n{"at_s": "1"}', "line 2 has at_s '1'; it must be seconds from the start"),
        ("at_s", "line 1 is not JSON"),
        ("[1]", "must be a JSON object with at_s"),
        ('{"at_s": NaN}', "has at_s nan"),
        (f'{{"at_s": 1{"0" * 400}}}', "has at_s 1000"),
        ("\udcff\udcd8", "line 1 is not JSON"),  # a photo
        ('{"at_s": 1, "deadline_ms": 0}', "has deadline_ms 0; it must be milliseconds above 0"),
        ('{"at_s": 1, "width": 1.5, "height": 2}', "has width 1.5; it must be whole pixels"),
        ('{"at_s": 1, "width": 2}', "only one of width and height"),
        ('{"at_s": 1, "hang_up": 1}', "has hang_up 1; it must be true or false"),
        ('{"at_s": 1, "priority": 3}', "has priority 3; it must be 0, 1 or 2"),
        ('{"at_s": 1, "model": 3}', "has model 3"),
        ('{"at_s": 1, "client": []}', r"has client \[\]"),
        ('{"at_s": 1, "deadline": 3}', "has a field 'deadline'; there are at_s, deadline_ms"),
        ("\n", "holds no request"),
    ],
)
def test_a_wrong_trace_is_refused_by_its_line(tmp_path, lines, complaint):
    (tmp_path / "t.jsonl").write_text(lines, errors="surrogateescape")
    with pytest.raises(ValueError, match=complaint):
        read_trace(tmp_path / "t.jsonl")


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_images_are_scaled_once_and_sent_in_turn():
    first, second = png(20, 10), png(8, 8)
    payloads = Payloads([first, second])
    planned = [
        PlannedRequest(0),
        PlannedRequest(0),
        PlannedRequest(0, width=12, height=6),
        PlannedRequest(0, width=8, height=8),
        PlannedRequest(0, width=12, height=6),
    ]
    sized = payloads.prepare(planned)
    assert [(each.width, each.height) for each in sized] == [(20, 10), (8, 8), (12, 6), (8, 8), (12, 6)]
    assert sized[1] == PlannedRequest(0, width=8, height=8)
    picked = [payloads.pick(number, request) for number, request in enumerate(sized)]
    assert [each.data for each in picked[:2]] == [first, second]
    assert picked[3].data == second  # it has that size already
    assert picked[2] is picked[4] and picked[2].content_type == "image/jpeg" == content_type(picked[2].data)
    with Image.open(io.BytesIO(picked[2].data)) as image:
        assert image.size == (12, 6)
    with pytest.raises(ValueError, match="needs an image"):
        Payloads([])


def test_the_drawn_street_is_a_photo_of_480x360():
    assert content_type(street(0)) == "image/jpeg" and street(0) == street(0) != street(1)
    assert Payloads([street(0)]).prepare([PlannedRequest(0)]) == [PlannedRequest(0, width=480, height=360)]


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536), (20_000, 20_000)])
def test_an_image_is_not_scaled_beyond_what_can_be_sent(size):
    width, height = size
    with pytest.raises(
        ValueError, match=rf"an image of {width}x{height} pixels is too large; .* at most 65,535 pixels"
    ):
        Payloads([png(8, 8)]).prepare([PlannedRequest(0, width=width, height=height)])


def test_any_seed_draws_a_street():
    assert content_type(street(-1)) == "image/jpeg"
