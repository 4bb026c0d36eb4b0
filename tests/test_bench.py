"""The CPU benchmark: its masks, its table, and what it refuses. Its way through runtimes: test_bench_runtimes.py."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.__main__ import main
from models.anytime import largest, score_difference
from models.bench import report, street_masks, workload
from models.bench.accuracy import Accuracy
from models.bench.cases import RUNTIMES, BenchCase, cases, in_precision
from models.bench.profile import PhaseProfile, StepProfile
from models.bench.side_by_side import BenchResult
from models.commands import bench


def tiles(mask: np.ndarray, side: int) -> float:
    """The share of tiles with an active position."""
    height, width = mask.shape
    return float(mask.reshape(height // side, side, width // side, side).any((1, 3)).mean())


def test_drawn_scenes_have_camvids_statistics() -> None:
    shares = (0.807, 0.616, 0.370)
    found = [street_masks.masks(street_masks.draw(256, 512, seed), 256, 512, shares) for seed in range(2)]
    for index, (share, expected) in enumerate(zip(shares, (0.837, 0.667, 0.455), strict=True)):
        assert all(masks[index].mean() == pytest.approx(share, abs=1e-4) for masks in found)
        assert np.mean([tiles(masks[index], 8) for masks in found]) == pytest.approx(expected, abs=0.03)
    for masks in found:
        assert not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()


@pytest.mark.parametrize("share, expected", [(0, 0), (1, 1)])
def test_masks_at_the_ends(share: float, expected: float) -> None:
    assert street_masks.masks(street_masks.draw(32, 32, 0), 8, 8, [share])[0].mean() == expected


def arguments(**changes: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    bench.add_arguments(parser)
    args = parser.parse_args(["--widths", "w18", "--sizes", "32x64", "--repeats", "1", "--threads", "1"])
    for name, value in changes.items():
        setattr(args, name, value)
    return args


@pytest.mark.parametrize(
    "differences, wrong",
    [([1e-6, 1e-5], False), ([1e-6, 2e-4], True), ([float("nan"), 1e-6], True), ([1e-6, float("nan")], True)],
)
def test_scores_that_are_wrong_or_no_numbers_are_found(differences: list[float], wrong: bool) -> None:
    expected = torch.tensor([-2.0, 1.0])
    found = [score_difference(expected + 2 * off, expected) for off in differences]
    assert found == pytest.approx(differences, rel=0.2, nan_ok=True)
    case = BenchCase("sparse", "anytime", "w18", (32, 64))
    assert BenchResult(case, difference=largest(found)).wrong is wrong


def test_masks_of_label_maps(tmp_path: Path) -> None:
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / "val" / folder).mkdir(parents=True)
        Image.new(mode, (64, 32)).save(tmp_path / "val" / folder / "0001TP_1.png")
    labels = np.zeros((32, 64), np.uint8)
    labels[:, 32:] = 1
    Image.fromarray(labels).save(tmp_path / "val" / "labels" / "0001TP_1.png")
    case = BenchCase("sparse", "masked", "w18", (32, 64), (0.25,) * 3, data=str(tmp_path))
    columns = workload.masks(case)[0].numpy().all(0)
    assert columns.sum() == 4 and columns[6:10].all()


def result(runtime: str, kind: str, *repetitions: list[float], active: tuple[float, ...] = ()) -> BenchResult:
    return BenchResult(BenchCase(runtime, kind, "w18", (32, 64), active), list(repetitions))


# ruff: noqa: E501
TABLE = """\
HRNet-W18 at 32x64: milliseconds to every exit, medians
  runtime           precision   network                        exit 1        2        3        4  speed-up  difference  peak MiB
  sparse            fp32        masked 50%, 50%, 50%             10.0     15.0     20.0     25.0     1.60x     1.2e-06       100
  sparse            fp32        anytime                          10.0     20.0     30.0     40.0     1.00x
  torch             fp32        anytime                          20.0     30.0     40.0     50.0     0.80x
  torch             fp32        one exit                                                    40.0     1.00x
  openvino-default  bf16        one exit                                                    80.0     0.50x
  sparse-int8       int8        anytime                           5.0     10.0     15.0     20.0     2.00x
  speed-ups are over torch (fp32), one exit
  sparse exit 1 takes 0.50 of the fastest dense runtime's time (torch)
  sparse: the stages after exit 1 take 0.500 of their time when 50% are active
  sparse-int8 exit 1 takes 0.25 of the fastest dense runtime's time (torch)
"""


def test_the_table_by_hand() -> None:
    """Medians of three repetitions. The fastest dense one-exit network takes 40 ms, and 40 / 25 = 1.6; the stages after
    exit 1 take 15 of 30 ms at half of the positions; exit 1 takes 10 of 20 ms."""
    half = result("sparse", "masked", *([0.01, 0.015, 0.02, last] for last in (0.03, 0.025, 0.001)), active=(0.5,) * 3)
    half.difference, half.peak_bytes = 1.23e-6, 100 * 2**20
    full = result("sparse", "anytime", [0.01, 0.02, 0.03, 0.04])
    others = [result("torch", "anytime", [0.02, 0.03, 0.04, 0.05]), result("torch", "one exit", [0.04])]
    chosen, int8 = (
        result("openvino-default", "one exit", [0.08]),
        result("sparse-int8", "anytime", [0.005, 0.01, 0.015, 0.02]),
    )
    chosen.precision, int8.precision = "bf16", "int8"
    lines = report.table([half, full, *others, chosen, int8])
    assert [line.rstrip() for line in lines] == TABLE.splitlines()


SCORED = """\
tiny, HRNet-W18 at 32x64: milliseconds to every exit, medians; mIoU in percent over 3 validation images
  runtime           precision   network                        exit 1        2        3        4  speed-up mIoU 1      2      3      4  peak MiB
  sparse            fp32        masked                           10.0     20.0     30.0     40.0     2.00x  61.50      -  70.12  71.00
  openvino-int8     int8, bf16  one exit                                                    80.0     1.00x                       70.90
  speed-ups are over openvino-int8 (int8, bf16), one exit
  sparse, masked: where the time goes, medians
          ms  of step  GMAC/s  of peak  phase
        4.00                            stem
        3.00      75%      90      80%    convolve 9x64->64 at level 2
        0.95      24%                     resample 64 at level 2
        0.05       1%                     all shorter phases
"""


def test_the_table_of_a_trained_model_by_hand() -> None:
    case = BenchCase("sparse", "masked", "w18", (32, 64), model="models/tiny", images=3)
    phases = (
        PhaseProfile("convolve 9x64->64 at level 2", 3.0, 90.0, 0.8),
        PhaseProfile("resample 64 at level 2", 0.95, 0.0, 0.0),
        PhaseProfile("copy 64 at level 2", 0.05, 0.0, 0.0),
    )
    ours = BenchResult(case, [[0.01, 0.02, 0.03, 0.04]], accuracy=Accuracy(3, [61.5, None, 70.12, 71.0], [1.0] * 4))
    ours.profile = [StepProfile("stem", 4.0, phases)]
    other = BenchResult(
        replace(case, runtime="openvino-int8", kind="one exit"), [[0.08]], accuracy=Accuracy(3, [70.9], [1.0])
    )
    other.precision = "int8, bf16"
    assert [line.rstrip() for line in report.table([ours, other])] == SCORED.splitlines()


def test_rows_can_be_chosen_by_their_precision() -> None:
    assert in_precision(RUNTIMES, "int8") == ["sparse-int8", "onnxruntime-int8", "openvino-int8"]
    assert in_precision(RUNTIMES, "fp32") == ["sparse", "torch", "compile", "onnxruntime", "openvino"]


def test_what_is_compared() -> None:
    found = list(cases("w18", (32, 64), ["sparse", "torch"], active=(0.8, 0.6, 0.4), sweep=(0.5,)))
    assert [(case.runtime, case.kind, case.active) for case in found] == [
        ("sparse", "masked", (0.8, 0.6, 0.4)), ("sparse", "masked", (0.5, 0.5, 0.5)), ("sparse", "anytime", ()),
        ("sparse", "one exit", ()), ("torch", "anytime", ()), ("torch", "one exit", ()),
    ]  # fmt: skip


def test_without_a_dense_runtime_nothing_is_compared_with_one() -> None:
    lines = list(report.table([result("sparse", "anytime", [0.01, 0.02, 0.03, 0.04])]))
    assert lines[2].split() == ["sparse", "fp32", "anytime", "10.0", "20.0", "30.0", "40.0", "-"]
    assert len(lines) == 3


def test_json_says_null_where_a_score_is_not_a_number() -> None:
    found = result("sparse", "anytime", [0.01, 0.02, 0.03, 0.04])
    found.difference = float("nan")
    assert found.wrong
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["difference"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "argument --repeats: 0 is below 1"),
        (["--repeats", "few"], "argument --repeats: 'few' is no whole number; give 1 or more"),
        (
            ["--active", "0.5,0.4"],
            "--active has 2 of 3 shares; give one after each exit but the last, as in 0.8,0.6,0.4",
        ),
        (["--device", "cuda", "--active", "0.5"], "--active has 1 of 3 shares"),
        (["--limit", "3"], "--limit means nothing with --device cpu; leave it out"),
        (["--device", "cuda", "--memory"], "--memory means nothing with --device cuda; leave it out"),
        (["--device", "cuda", "--model", "m"], "--model means nothing with --device cuda; leave it out"),
        (["--images", "3"], "--images means nothing with random weights; leave it out"),
        (["--model", "m", "--sizes", "32x64"], "--sizes means nothing with --model; leave it out"),
        (["--model", "m"], "--model is scored on a data set; name its folder with --data"),
    ],
)
def test_wrong_usage_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
