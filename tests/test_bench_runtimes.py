"""The CPU benchmark's way through the runtimes, with tiny networks, and but for one test in the test's own process."""

import errno
import json
import mmap
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_jobs
import numpy as np
import pytest
import tiny
import torch
from test_bench import arguments
from torch import Tensor

from models.bench import cases as cases_module
from models.bench import process, runtimes, side_by_side, workload
from models.bench.cases import BenchCase, trained_cases
from models.bench.profile import profile
from models.bench.quantised import StageInputs
from models.bench.runtimes import Runtime, TimedRun
from models.bench.side_by_side import Measurements, measure
from models.checkpoint import save_directory
from models.commands import bench
from models.data import datasets
from models.directory import fingerprint
from models.evaluation.evaluate import segmentation
from models.evaluation.ranges import RangeObserver
from models.executors.onnx import signatures
from models.executors.selection import build
from models.imaging.preprocess import prepare
from models.network.adpc_configs import AdpcConfig
from models.network.flops import gmacs, step_costs
from models.quantisation import Scales

ONE_EXIT = replace(tiny.SEGMENTATION, masking=None, heads="one")
CONFIGS = {"hrnet": ONE_EXIT, "rh": replace(tiny.SEGMENTATION, masking=None), "adpc": tiny.SEGMENTATION}


class InProcess:
    """Stands for the process of a runtime."""

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*given))
        except RuntimeError as error:
            done.set_exception(error)
        return done

    def shutdown(self) -> None:
        """There is no process to end."""


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def process_() -> Iterator[InProcess]:
        yield InProcess()

    def config(name: str) -> AdpcConfig:
        return CONFIGS[name.partition("-")[0]]

    monkeypatch.setattr(process, "process", process_)
    monkeypatch.setattr(cases_module, "config", config)


@pytest.mark.usefixtures("_in_process")
def test_everything_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(
        runtimes=["sparse", "sparse-int8", "torch", "onnxruntime"], sweep=(0.5,), output=tmp_path, sizes=[(20, 64)],
    )  # fmt: skip
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
        list(row) == [
            "task", "passes", "difference", "peak_bytes", "precision", "seconds", "gmacs", "miou", "profile",
        ]
        for row in rows
    )  # fmt: skip
    assert (tmp_path / "bench.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "HRNet-W18 at 20x64" in printed and "seed: 0" in printed and "fastest dense runtime" in printed


@pytest.mark.usefixtures("_in_process")
def test_a_runtime_that_is_missing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(runtimes, "graphs", lambda net: [b""] * net.config.exits)
    assert bench.main(arguments(runtimes=["torch", "openvino"], no_check=True, json=True)) == 0
    captured = capsys.readouterr()
    assert "left out: openvino (import of openvino halted" in captured.err
    assert {row["task"]["runtime"] for row in json.loads(captured.out)["rows"]} == {"torch"}
    with pytest.raises(ValueError, match="choose others with --runtimes"):
        bench.main(arguments(runtimes=["openvino"]))


class OwnError(Exception):
    """As those of ONNX Runtime, which derive from nothing more."""


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize("error", [OwnError("no memory\nat node 3"), OwnError()])
@pytest.mark.parametrize("where", ["start", "run"])
def test_a_runtime_that_fails_by_an_error_of_its_own_is_left_out(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def run(inputs: Tensor) -> TimedRun:
        nonlocal calls
        calls += 1
        if where == "start" or calls > 1:
            raise error
        return TimedRun([0.1], [torch.zeros(1)])

    ready = process.start
    monkeypatch.setattr(
        process,
        "start",
        lambda case, folder: Runtime(run, lambda: "fp32") if case.kind == "one exit" else ready(case, folder),
    )
    cases = [BenchCase("torch", kind, "w18", (32, 64)) for kind in ("anytime", "one exit")]
    assert [result.case.kind for result in measure(cases, Measurements(1, check=False))] == ["anytime"]
    assert f"left out: torch ({'no memory' if str(error) else 'OwnError'})\n" in capsys.readouterr().err


@pytest.mark.usefixtures("_in_process")
def test_what_was_measured_is_kept_if_the_next_comparison_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_(cases: list[BenchCase], wanted: Measurements) -> list[side_by_side.BenchResult]:
        if cases[0].size == (64, 64):
            raise ValueError("none of the runtimes could be measured")
        return measure(cases, wanted)

    monkeypatch.setattr(bench, "measure", measure_)
    with pytest.raises(ValueError, match="none of the runtimes"):
        bench.main(arguments(runtimes=["torch"], no_check=True, output=tmp_path / "out", sizes=[(32, 64), (64, 64)]))
    rows = json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]
    assert [row["task"]["size"] for row in rows] == [[32, 64]] * 2


def test_a_runtime_whose_process_dies_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "load", bench_jobs.die)
    with pytest.raises(ValueError, match="none of the runtimes could be measured"):
        measure([BenchCase("torch", "one exit", "w18", (32, 64))], Measurements(1))
    assert "left out: torch (A process in the process pool was terminated abruptly" in capsys.readouterr().err


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with a data set, and a model with scales."""
    tiny.write_scenes(tmp_path / "data")
    network = tiny.network()
    save_directory(tmp_path / "model", network)
    observer = RangeObserver(network)
    observer.observe_inputs([prepare(tiny.image(48, 64), network.config)[0]])
    Scales(fingerprint(tmp_path / "model"), observer.scales(), ("last_layer.3", "exit1.1")).save(tmp_path / "model")
    return tmp_path


@pytest.mark.usefixtures("_in_process")
def test_a_trained_model_is_scored_in_every_runtime(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(
        runtimes=["sparse", "sparse-int8", "torch"], model=str(trained / "model"), data=str(trained / "data"), images=3,
        widths=None, sizes=None, profile=True, json=True, repeats=2,
    )  # fmt: skip
    assert bench.main(args) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    found = {(row["task"]["runtime"], row["task"]["kind"]): row for row in rows}
    assert list(found) == [
        (runtime, kind) for runtime in args.runtimes for kind in ("masked", "anytime", "one exit")[runtime == "torch" :]
    ]
    # Its own masks decide the scores and the multiply-adds of the first three images, as `evaluate` counts them.
    wanted = segmentation(build(tiny.network(), "cpu", "sparse", 1), datasets.scenes(trained / "data", "val")[:3])
    masked = found["sparse", "masked"]
    assert masked["miou"] == [row["miou"] for row in wanted["exits"]]
    assert masked["gmacs"] == pytest.approx([row["gmacs"] for row in wanted["exits"]], abs=1e-4)
    dense = found["torch", "anytime"]
    assert masked["miou"] != dense["miou"] == found["sparse", "anytime"]["miou"]
    assert found["torch", "one exit"]["miou"] == dense["miou"][3:] == found["sparse", "one exit"]["miou"]
    assert dense["gmacs"] == gmacs(CONFIGS["rh"], 48, 64)
    assert found["sparse-int8", "masked"]["miou"] != masked["miou"]
    profiled = {key for key, row in found.items() if row["profile"]}
    assert profiled == {(runtime, kind) for runtime in ("sparse", "sparse-int8") for kind in ("masked", "anytime")}


def test_more_images_than_there_are_are_refused_before_anything_is_prepared(trained: Path) -> None:
    args = arguments(model=str(trained / "model"), data=str(trained / "data"), images=6, widths=None, sizes=None)
    with pytest.raises(ValueError, match=r"--images is 6; val of .* has 5: give at most as many"):
        bench.main(args)


def test_each_repetition_takes_the_next_image(trained: Path) -> None:
    case = BenchCase(
        "sparse", "masked", "w4", (48, 64), data=str(trained / "data"), model=str(trained / "model"), images=3
    )
    first, second, *_, fourth = (workload.inputs(case, number) for number in range(4))
    assert first.equal(fourth) and not first.equal(second)
    with pytest.raises(ValueError, match=r"48x64, the first image 64x64; bench needs images of one size"):
        workload.inputs(replace(case, size=(64, 64)))
    with pytest.raises(ValueError, match=r"val of .* has 5 images; give at most --images 5"):
        workload.inputs(replace(case, images=6))


def test_models_that_cannot_be_compared_are_named(tmp_path: Path, trained: Path) -> None:
    save_directory(tmp_path / "pose", tiny.network(tiny.POSE))
    with pytest.raises(ValueError, match="tiny-pose is a pose model of family adpc; bench scores segmentation"):
        list(trained_cases(tmp_path / "pose", (48, 64), ["torch"], data="", images=1))
    (trained / "model" / "int8.json").unlink()
    case = BenchCase("sparse-int8", "masked", "w4", (48, 64), model=str(trained / "model"))
    with pytest.raises(ValueError, match="has no scales; make them with python -m models quantise"):
        workload.scales(case, tiny.network())


@pytest.mark.usefixtures("_in_process")
def test_the_phases_of_a_profile_add_up() -> None:
    """Every multiply-add at an active position is in one phase, and the longest phase comes first. A head has fewer
    than the network: its sources are enlarged after the convolution and not before."""
    case, model = BenchCase("sparse", "masked", "w18", (32, 64)), build(tiny.network(), "cpu", "sparse", 1)
    for share in (1.0, 0.0):
        found = profile(replace(case, active=(share,) * 3), model, repeats=2)
        past_exit_1 = False
        for step, (own, costs) in zip(found, step_costs(tiny.SEGMENTATION, 32, 64), strict=True):
            assert step.step == own.name
            assert step.ms == pytest.approx(sum(phase.ms for phase in step.phases))
            assert [phase.ms for phase in step.phases] == sorted((phase.ms for phase in step.phases), reverse=True)
            counted = sum(phase.gmacs_per_s * phase.ms for phase in step.phases) * 1e6
            wanted = sum(cost.dense for cost in costs.values()) * (share if past_exit_1 else 1)
            if own.exit is None:
                assert counted == pytest.approx(wanted)
            else:
                assert min(wanted, 1) <= counted <= wanted + 1
                past_exit_1 = True


def test_the_peak_is_that_of_the_second_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first one takes for good is its own, and what it gave back is not."""
    sizes = iter([2**28, 2**26])
    resident = []

    def run(_: Tensor) -> TimedRun:
        status = Path("/proc/self/status").read_text().splitlines()
        resident.append(1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1]))
        with mmap.mmap(-1, next(sizes)) as pages:  # the allocator would reuse memory that is free, and still resident
            np.frombuffer(pages, np.uint8)[:] = 1
        return TimedRun()

    monkeypatch.setattr(process, "start", lambda *_: Runtime(run, lambda: "fp32"))
    found = process.peak(BenchCase("torch", "one exit", "w18", (32, 64)), tmp_path)
    assert found is not None and resident[1] + 2**25 < found < resident[1] + 2**27


def test_where_the_peak_cannot_be_reset_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(process, "start", lambda *_: Runtime(lambda _: TimedRun(), lambda: "fp32"))
    monkeypatch.setattr(Path, "write_text", refuse)
    assert process.peak(BenchCase("torch", "one exit", "w18", (32, 64)), tmp_path) is None


@pytest.mark.usefixtures("_in_process")
def test_onnx_runtime_says_that_it_computes_in_eight_bits(tmp_path: Path) -> None:
    scores, precision = process.load(BenchCase("onnxruntime-int8", "one exit", "w18", (32, 64)), tmp_path)
    assert precision == "int8"
    assert len(scores) == 1 and scores[0].shape == (1, 3, 8, 16)


def test_a_stage_is_calibrated_on_what_the_stages_before_it_give() -> None:
    net = tiny.network(CONFIGS["rh"])
    images = [prepare(tiny.image(32, 64, seed), net.config)[0] for seed in range(2)]
    signature = signatures(net)[2]
    found = StageInputs(runtimes.eager(net)[:3], signature.inputs, lambda: images)
    for arrays, image in zip(found, images, strict=True):
        progress = net.start(image)
        for step in net.steps:
            with torch.inference_mode():
                progress = net.advance(progress, step)
            if step.exit == 2:
                break
        assert list(arrays) == ["branch0", "branch1"]
        for array, branch in zip(arrays.values(), progress.features, strict=True):
            np.testing.assert_allclose(array, branch.numpy(), rtol=1e-4, atol=1e-4)
    assert len(list(found)) == 2  # it can be read again


class ScriptedOpenVino:
    """Plays `openvino`, which is no part of the tests' packages: its networks give zeros, by operators of given
    precisions."""

    def __init__(self, *convolutions: str) -> None:
        self.options: list[dict[str, object]] = []
        self._operators = [("Convolution", name) for name in convolutions] + [("Reorder", "f32")] * 9

    def Core(self) -> "ScriptedOpenVino":  # noqa: N802 - OpenVINO's
        return self

    def read_model(self, path: Path) -> SimpleNamespace:
        assert path.suffix in (".onnx", ".xml") and path.is_file()
        return SimpleNamespace(reshape=lambda shapes: None)

    def compile_model(self, model: object, device: str, options: dict[str, object]) -> Any:
        self.options.append(options)

        def run(values: list[object]) -> SimpleNamespace:
            return SimpleNamespace(to_tuple=lambda: (np.zeros((1, 3, 8, 16), np.float32),))

        def about(kind: str, precision: str) -> SimpleNamespace:
            told = {"layerType": SimpleNamespace(value=kind), "runtimePrecision": SimpleNamespace(value=precision)}
            return SimpleNamespace(get_rt_info=lambda: told)

        operators = [about(*each) for each in self._operators]
        run.get_runtime_model = lambda: SimpleNamespace(get_ordered_ops=lambda: operators)  # type: ignore[attr-defined]
        return run


@pytest.mark.parametrize(
    "runtime, convolutions, told",
    [
        ("openvino", ["f32"], ("fp32", "f32")),
        ("openvino-default", ["bf16", "bf16"], ("bf16", None)),
        ("openvino-int8", ["bf16", "u8", "i8"], ("int8, bf16", None)),
    ],
)
@pytest.mark.usefixtures("_in_process")
def test_openvino_says_what_it_chose(
    runtime: str, convolutions: list[str], told: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision, hint = told
    scripted = ScriptedOpenVino(*convolutions)
    monkeypatch.setitem(sys.modules, "openvino", scripted)
    for suffix in (".onnx", ".xml"):
        (tmp_path / f"exit1{suffix}").write_text("")
    case = BenchCase(runtime, "one exit", "w18", (32, 64), threads=3)
    started = runtimes.start(case, tmp_path)
    assert started.precision() == precision
    assert started.run(workload.inputs(case)).scores[0].shape == (1, 3, 8, 16)
    assert [options.get("INFERENCE_PRECISION_HINT") for options in scripted.options] == [hint]
    assert scripted.options[0]["INFERENCE_NUM_THREADS"] == 3


def test_results_know_their_fastest_rival() -> None:
    cases = [BenchCase(runtime, "one exit", "w18", (32, 64)) for runtime in ("sparse-int8", "torch", "openvino-int8")]
    results = [side_by_side.BenchResult(case, [[s]]) for case, s in zip(cases, (0.01, 0.03, 0.02), strict=True)]
    assert side_by_side.fastest(results, "one exit", -1) is results[2]
    assert side_by_side.fastest(results, "anytime", 0) is None
