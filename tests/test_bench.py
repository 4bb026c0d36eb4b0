"""The CPU benchmark: its masks, its way through the runtimes, what it writes, and what it refuses."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.__main__ import main
from models.anytime import largest, score_difference
from models.bench import report, runtimes
from models.bench.side_by_side import BenchResult
from models.commands import bench
from models.data import scenes


def tiles(mask: np.ndarray, side: int) -> float:
    """The share of tiles with an active position."""
    height, width = mask.shape
    return float(mask.reshape(height // side, side, width // side, side).any((1, 3)).mean())


def test_drawn_scenes_have_camvids_statistics() -> None:
    shares = (0.807, 0.616, 0.370)
    found = [scenes.masks(scenes.draw(256, 512, seed), 256, 512, shares) for seed in range(4)]
    for index, (share, expected) in enumerate(zip(shares, (0.837, 0.667, 0.455), strict=True)):
        assert all(masks[index].mean() == pytest.approx(share, abs=1e-4) for masks in found)
        assert np.mean([tiles(masks[index], 8) for masks in found]) == pytest.approx(expected, abs=0.03)
    for masks in found:
        assert not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()


@pytest.mark.parametrize("share, expected", [(0, 0), (1, 1)])
def test_masks_at_the_ends(share: float, expected: float) -> None:
    assert scenes.masks(scenes.draw(32, 32, 0), 8, 8, [share])[0].mean() == expected


def arguments(**changes: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(["--widths", "w18", "--sizes", "32x64", "--repeats", "1", "--threads", "1"])
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def test_everything_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(runtimes=["sparse", "sparse-int8", "torch", "onnxruntime"], sweep=(0.5,), output=tmp_path)
    assert bench.main(args) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    kinds = [(row["task"]["runtime"], row["task"]["kind"], len(row["seconds"])) for row in rows]
    assert kinds == [
        ("sparse", "masked", 4), ("sparse", "masked", 4), ("sparse", "anytime", 4), ("sparse", "one exit", 1),
        ("sparse-int8", "masked", 4), ("sparse-int8", "masked", 4), ("sparse-int8", "anytime", 4),
        ("sparse-int8", "one exit", 1),
        ("torch", "anytime", 4), ("torch", "one exit", 1),
        ("onnxruntime", "anytime", 4), ("onnxruntime", "one exit", 1),
    ]  # fmt: skip
    precisions = {"sparse-int8": "int8"}
    assert all(row["precision"] == precisions.get(row["task"]["runtime"], "fp32") for row in rows)
    assert all((row["difference"] < 1e-4) == (row["precision"] == "fp32") for row in rows)
    assert all(row["difference"] < 0.5 for row in rows)
    assert all(
        list(row) == ["task", "passes", "difference", "peak_bytes", "precision", "seconds", "gmacs"] for row in rows
    )
    assert (tmp_path / "bench.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "HRNet-W18 at 32x64" in printed and "seed: 0" in printed and "fastest dense runtime" in printed


@pytest.mark.parametrize("module, why", [
    ("raise ModuleNotFoundError('no openvino')", "no openvino"),
    ("import os; os._exit(3)", "terminated abruptly"),
])  # fmt: skip
def test_a_runtime_that_is_missing_or_dies_is_left_out(
    module: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "openvino.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    assert bench.main(arguments(runtimes=["sparse", "openvino"], no_check=True, json=True)) == 0
    captured = capsys.readouterr()
    assert "left out: openvino" in captured.err and why in captured.err
    assert {row["task"]["runtime"] for row in json.loads(captured.out)["rows"]} == {"sparse"}
    with pytest.raises(ValueError, match="choose others with --runtimes"):
        bench.main(arguments(runtimes=["openvino"]))


@pytest.mark.parametrize(
    "differences, wrong",
    [([1e-6, 1e-5], False), ([1e-6, 2e-4], True), ([float("nan"), 1e-6], True), ([1e-6, float("nan")], True)],
)
def test_scores_that_are_wrong_or_no_numbers_are_found(differences: list[float], wrong: bool) -> None:
    expected = torch.tensor([-2.0, 1.0])
    found = [score_difference(expected + 2 * off, expected) for off in differences]
    assert found == pytest.approx(differences, rel=0.2, nan_ok=True)
    case = runtimes.BenchCase("sparse", "anytime", "w18", (32, 64))
    assert BenchResult(case, difference=largest(found)).wrong is wrong


def test_masks_of_label_maps(tmp_path: Path) -> None:
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / "val" / folder).mkdir(parents=True)
        Image.new(mode, (64, 32)).save(tmp_path / "val" / folder / "0001TP_1.png")
    labels = np.zeros((32, 64), np.uint8)
    labels[:, 32:] = 1
    Image.fromarray(labels).save(tmp_path / "val" / "labels" / "0001TP_1.png")
    case = runtimes.BenchCase("sparse", "masked", "w18", (32, 64), (0.25,) * 3, data=str(tmp_path))
    columns = runtimes.masks(case)[0].numpy().all(0)
    assert columns.sum() == 4 and columns[6:10].all()


def result(runtime: str, kind: str, *repetitions: list[float], active: tuple[float, ...] = ()) -> BenchResult:
    return BenchResult(runtimes.BenchCase(runtime, kind, "w18", (32, 64), active), list(repetitions))


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
    ],
)
def test_wrong_usage_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
