"""Which precision a model is computed in."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny

from models.__main__ import main
from models.anytime import AnytimeModel, Overridable
from models.checkpoint import load_directory, save_directory
from models.directory import QUALITY_FILES, fingerprint
from models.executors import registry
from models.executors.precision import choose_precision, seconds_to_last_exit
from models.executors.selection import build, build_fastest, load
from models.network.configs import Masking
from models.network.named import feature_names
from models.quality import Quality
from models.quantisation import Scales
from server.engine.messages import Chosen, LoadPlan
from server.worker.loading import load_models
from server.worker.progress import LoadingProgress

SILENT = LoadingProgress(lambda _: None)

Timer = Callable[[AnytimeModel], float]


def timer(fp32_s: float, int8_s: float) -> Timer:
    """Says that a precision takes so many seconds."""
    return lambda model: {"fp32": fp32_s, "int8": int8_s}[model.precision]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_directory(tmp_path / "tiny", tiny.network())
    return tmp_path / "tiny"


@pytest.fixture
def scales(directory: Path) -> Scales:
    found = Scales(fingerprint(directory), dict.fromkeys(feature_names(tiny.network()), 0.02))
    found.save(directory)
    return found


@pytest.fixture(autouse=True)
def fast_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference executor computes in both precisions everywhere; let `auto` weigh them."""
    monkeypatch.setitem(
        registry.EXECUTORS, registry.REFERENCE, replace(registry.EXECUTORS[registry.REFERENCE], preferred=True)
    )


def fastest(directory: Path, precision: str = "auto", timed: Timer | None = None) -> tuple[AnytimeModel, str]:
    make = partial(load_directory, directory)
    return build_fastest(make, "cpu", "reference", 1, precision, directory=directory, timer=timed)


@pytest.mark.usefixtures("scales")
def test_auto_takes_what_is_measured_to_be_faster(directory: Path) -> None:
    model, reason = fastest(directory, timed=timer(0.018, 0.009))
    assert (model.precision, reason) == ("int8", "int8 takes 9.00 ms to exit 4, fp32 18.00 ms")
    model, reason = fastest(directory, timed=timer(0.018, 0.019))
    assert (model.precision, reason) == ("fp32", "int8 takes 19.00 ms to exit 4, fp32 18.00 ms")
    assert fastest(directory, timed=timer(0.01, 0.01))[0].precision == "fp32"


@pytest.mark.usefixtures("scales")
def test_the_best_of_several_rounds_counts(directory: Path) -> None:
    """A pause in one run decides nothing."""
    fp32, int8 = (fastest(directory, precision)[0] for precision in ("fp32", "int8"))
    times: dict[str, Iterator[float]] = {"fp32": iter([0.02, 0.02, 0.02]), "int8": iter([0.5, 0.01, 0.5])}
    choice = choose_precision(fp32, int8, lambda model: next(times[model.precision]))
    assert choice.precision == "int8" and "10.00 ms" in choice.reason


@pytest.mark.usefixtures("scales")
def test_a_measurement_runs_to_the_last_exit(directory: Path) -> None:
    model = fastest(directory, "int8")[0]
    assert seconds_to_last_exit(model) > 0
    assert seconds_to_last_exit(build(tiny.network(), "cpu", "sparse")) > 0


@pytest.mark.parametrize("masking, promised", [(Masking("max_probability", 0.6), True), (Masking("top_k", 0.4), False)])
def test_masks_promise_what_those_of_requests_do(
    masking: Masking, promised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the promise the sparse executor interpolates every inactive position."""
    model = build(tiny.network(replace(tiny.SEGMENTATION, masking=masking)), "cpu", "sparse")
    assert isinstance(model, Overridable)
    told: list[bool] = []
    monkeypatch.setattr(model, "override", lambda state, mask, *, shrinking=False: told.append(shrinking))
    assert seconds_to_last_exit(model) > 0
    assert told == [promised] * 3


def test_a_model_without_scales_runs_in_fp32(directory: Path) -> None:
    model, reason = fastest(directory, timed=timer(1, 0))
    assert (model.precision, reason) == ("fp32", "")
    with pytest.raises(ValueError, match=r"precision int8 needs the scales .* models quantise, or use precision auto"):
        fastest(directory, "int8")


def test_scales_of_other_weights_are_not_used(
    directory: Path, scales: Scales, caplog: pytest.LogCaptureFixture
) -> None:
    replace(scales, fingerprint="other").save(directory)
    assert fastest(directory, timed=timer(1, 0))[0].precision == "fp32"
    assert "tiny is computed in fp32" in caplog.text and "was made for weights" in caplog.text
    with pytest.raises(ValueError, match="was made for weights"):
        fastest(directory, "int8")


@pytest.mark.usefixtures("scales")
def test_a_precision_that_is_asked_for_is_not_measured(directory: Path) -> None:
    def refuse(_: AnytimeModel) -> float:
        raise AssertionError

    for precision in ("fp32", "int8"):
        model, reason = fastest(directory, precision, refuse)
        assert (model.precision, reason) == (precision, "")
    assert load(directory, "cpu", "reference", 1, "int8").precision == "int8"


def test_an_executor_without_int8_says_so(directory: Path, scales: Scales) -> None:
    make = partial(tiny.network, replace(tiny.SEGMENTATION, masking=None, heads="one"))  # is exported soonest
    model, reason = build_fastest(make, "cpu", "onnx", 1, directory=directory, timer=timer(1, 0))
    assert (model.precision, reason) == ("fp32", "the onnx executor does not save time in int8")
    with pytest.raises(ValueError, match="the onnx executor does not compute in int8; use precision auto or executor"):
        build(make(), "cpu", "onnx", 1, scales)


def plan(directory: Path, chosen: dict[str, Chosen], precision: str = "auto") -> LoadPlan:
    return LoadPlan({"tiny": str(directory)}, "cpu", "reference", 1, (), chosen, 0, 0, "INFO", precision=precision)


@pytest.mark.usefixtures("scales")
def test_the_server_chooses_and_says_why(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    loaded = load_models(plan(directory, {}), SILENT, timer(0.018, 0.009))["tiny"]
    assert loaded.model.precision == "int8" and loaded.precision_reason.startswith("int8 takes 9.00 ms")
    assert "tiny runs on reference in int8: int8 takes 9.00 ms to exit 4, fp32 18.00 ms" in caplog.text
    assert load_models(plan(directory, {}, "fp32"), SILENT)["tiny"].model.precision == "fp32"


@pytest.mark.usefixtures("scales")
def test_the_next_worker_keeps_the_precision(directory: Path) -> None:
    chosen = {"tiny": Chosen("reference", "right", "int8", "faster")}
    loaded = load_models(plan(directory, chosen), SILENT, timer(0, 1))["tiny"]
    assert (loaded.model.precision, loaded.reason, loaded.precision_reason) == ("int8", "right", "faster")


@pytest.mark.usefixtures("scales")
def test_a_calibration_serves_its_own_precision(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    Quality(((0.1, 0.2),), 30, "val", fingerprint(directory)).save(directory)
    assert load_models(plan(directory, {}, "fp32"), SILENT)["tiny"].quality is not None
    assert load_models(plan(directory, {}, "int8"), SILENT)["tiny"].quality is None
    Quality(((0.1, 0.3),), 30, "val", fingerprint(directory), "int8").save(directory)
    quality = load_models(plan(directory, {}, "int8"), SILENT)["tiny"].quality
    assert quality is not None and quality.threshold(0.1) == 0.3
    (directory / QUALITY_FILES["int8"]).write_bytes((directory / QUALITY_FILES["fp32"]).read_bytes())
    assert load_models(plan(directory, {}, "int8"), SILENT)["tiny"].quality is None
    assert "was made for fp32, but its name says int8" in caplog.text


@pytest.mark.usefixtures("scales")
def test_commands_take_a_precision(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_scenes(tmp_path / "camvid")
    image = next((tmp_path / "camvid" / "val" / "images").iterdir())
    outputs = tmp_path / "outputs.safetensors"
    how = ["--device", "cpu", "--executor", "reference", "--precision", "int8"]
    assert main(["run", str(directory), "--input", str(image), "--output", str(outputs), *how]) == 0
    command = ["evaluate", str(directory), "--data", str(tmp_path / "camvid"), "--split", "val", "--json", *how]
    assert main(command) == 0
    assert '"precision": "int8"' in capsys.readouterr().out
