"""Loading and warming up, with the fake model and with tiny real ones."""

import errno
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from fake_model import FakeModel

from models.anytime import exits_of
from models.checkpoint import save_directory
from models.directory import fingerprint
from models.executors.reference import ReferenceExecutor
from models.executors.selection import build
from models.gains import Gains, NextGain, Term
from models.network.flops import gmacs
from models.quality import Quality
from server.catalog import input_shape
from server.engine.messages import Broken, Event, Loading, LoadPlan, Unloadable
from server.scheduling.costs import CostModel, StageCost
from server.worker.batches import RUN_S
from server.worker.loading import (
    STAGE_LEAST_S,
    WARM_UP_RUNS,
    WARM_UP_SHARES,
    Loaded,
    facts,
    failure,
    load_gains,
    load_models,
    load_quality,
    warm_up,
)
from server.worker.progress import LoadingProgress

SILENT = LoadingProgress(lambda _: None)


def test_warming_up_learns_what_exits_cost() -> None:
    model = FakeModel()
    model.released.release(1000)
    costs = CostModel()
    warm_up("fake", model, costs, SILENT)  # type: ignore[arg-type]
    told = facts("fake", Loaded(model), costs, SILENT)  # type: ignore[arg-type]
    assert len(told.seconds) == len(told.macs) == 4 and not told.calibrated
    assert list(told.seconds) == sorted(told.seconds)
    assert told.macs == pytest.approx([2**30 * value for value in gmacs(tiny.SEGMENTATION, *tiny.SEGMENTATION.size)])


def test_warming_up_is_under_masks_such_as_pictures_leave() -> None:
    """Warming up uses given masks, and not those that the network makes of noise."""
    model = ReferenceExecutor(tiny.network())
    given: list[float] = []
    model.override = lambda state, positions, shrinking: given.append(  # type: ignore[method-assign]
        float(positions.float().mean()) if shrinking else -1.0
    )
    warm_up("tiny", model, CostModel(), SILENT)
    assert given == pytest.approx(WARM_UP_SHARES * WARM_UP_RUNS, abs=0.01)


def test_every_stage_of_warming_up_is_told_with_the_time_that_the_next_may_take() -> None:
    model, told = FakeModel(), list[Event]()
    model.released.release(1000)
    warm_up("fake", model, CostModel(), LoadingProgress(told.append))  # type: ignore[arg-type]
    assert all(isinstance(part, Loading) for part in told)
    assert told[1 + 4 * WARM_UP_RUNS] == Loading("timing fake alone", RUN_S)
    assert told[0] == Loading("warming up fake", RUN_S)
    assert told[4] == Loading("warming up fake, after exit 4 of run 1", RUN_S)
    assert told[5] == Loading("warming up fake, after exit 1 of run 2", STAGE_LEAST_S)


@pytest.mark.parametrize(
    ("error", "served", "told"),
    [
        (ValueError("m/config.json: no"), False, Unloadable("m/config.json: no")),
        (FileNotFoundError("there is no file m"), True, Unloadable("there is no file m")),
        (
            RuntimeError("not enough memory\nand more"),
            False,
            Unloadable(
                "RuntimeError while warming up m: not enough memory; mend the model, or take it out of the folder of "
                "models"
            ),
        ),
        (
            RecursionError(),
            False,
            Unloadable(
                "RecursionError while warming up m: no reason was given; mend the model, "
                "or take it out of the folder of models"
            ),
        ),
        (RuntimeError("not enough memory"), True, None),
        (OSError(errno.EMFILE, "Too many open files"), True, None),
        (OSError(errno.EMFILE, "Too many open files"), False, Unloadable("[Errno 24] Too many open files")),
        (
            torch.AcceleratorError("CUDA error: misaligned address\nand more"),
            False,
            Broken("CUDA error: misaligned address"),
        ),
    ],
)
def test_whatever_fails_while_loading_becomes_a_sentence(error: Exception, served: bool, told: object) -> None:
    """A model that has been served before is tried again."""
    assert failure(error, "warming up m", served=served) == told


@pytest.mark.parametrize("executor", ["reference", "sparse", "onnx"])
def test_every_executor_warms_up(executor: str) -> None:
    model, costs = build(tiny.network(), "cpu", executor), CostModel()
    warm_up("tiny", model, costs, SILENT)
    seconds = facts("tiny", Loaded(model), costs, SILENT).seconds
    assert len(seconds) == 4 and list(seconds) == sorted(seconds) and seconds[0] > 0


def test_a_worker_that_follows_another_takes_over_what_is_known() -> None:
    model = FakeModel()
    model.released.release(8)  # steps for one image, so that warming up cannot measure
    costs = CostModel()
    costs.restore(StageCost("fake", index, tiny.SEGMENTATION.size, 0.1 * index, 0.0, 1.0) for index in range(1, 5))
    warm_up("fake", model, costs, SILENT)  # type: ignore[arg-type]
    found = facts("fake", Loaded(model), costs, SILENT)  # type: ignore[arg-type]
    assert found.seconds == pytest.approx((0.1, 0.3, 0.6, 1.0)) and len(found.costs) == 4


@pytest.mark.parametrize(
    ("asked", "sharing", "expected"), [(0, 1, 8), (0, 3, 2), (0, 16, 1), (6, 1, 6), (6, 2, 3), (1, 2, 1)]
)
def test_workers_on_one_device_share_its_threads(
    monkeypatch: pytest.MonkeyPatch, asked: int, sharing: int, expected: int
) -> None:
    given: list[int] = []

    def build(
        make: object, device: str, executor: str, threads: int, *_: object, **__: object
    ) -> tuple[FakeModel, str]:
        given.append(threads)
        return FakeModel(), ""

    monkeypatch.setattr("server.worker.loading.build_fastest", build)
    monkeypatch.setattr("server.worker.loading.usable", lambda: 8)
    load_models(LoadPlan({"a": "a", "b": "b"}, "cpu", "auto", asked, (), {}, 0, 0, "INFO", sharing=sharing), SILENT)
    assert given == [expected, expected]


def test_the_cost_of_an_image_goes_by_its_padded_size_or_the_crop() -> None:
    assert input_shape(tiny.SEGMENTATION, 33, 64) == (64, 64)
    assert input_shape(tiny.POSE, 1000, 2000) == (64, 64)


def test_a_calibration_that_does_not_fit_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_directory(tmp_path, tiny.network())
    assert load_quality(tmp_path) is None and not caplog.records
    quality = Quality(((0.1, 0.2),), 30, "val", fingerprint(tmp_path))
    quality.save(tmp_path)
    assert load_quality(tmp_path) == quality
    save_directory(tmp_path, tiny.network(seed=1))
    assert load_quality(tmp_path) is None
    assert "without quality stop" in caplog.text and "python -m models calibrate" in caplog.text


def test_gains_that_do_not_fit_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_directory(tmp_path, tiny.network())
    assert load_gains(tmp_path) is None and not caplog.records
    gains = Gains((NextGain(0.5, 0.1, 0.1),), (), 30, "val", "", fingerprint(tmp_path))
    gains.save(tmp_path)
    assert load_gains(tmp_path) == gains
    save_directory(tmp_path, tiny.network(seed=1))
    assert load_gains(tmp_path) is None
    assert "without measured gains" in caplog.text and "python -m models calibrate" in caplog.text


def test_what_is_measured_of_an_exit_is_what_the_next_gain_needs() -> None:
    model = FakeModel()
    model.released.release(8)
    terms = (Term("active_share", 0.5, 1.0), Term("confidence", 0.5, 1.0), Term("change", 0.5, 1.0))
    gains = Gains(tuple(NextGain(0.1, 0.1, 0.1, terms[:number]) for number in range(4)), (), 1, "val", "", "")
    state = model.begin(np.zeros((3, 4, 3), np.uint8))
    loaded = Loaded(model, gains=gains)  # type: ignore[arg-type]
    shown = [loaded.shown(state) for _ in exits_of(model, [state])]  # type: ignore[arg-type, list-item]
    assert shown[0] == {"active_share": 1.0}
    assert shown[1] == {"active_share": 0.5, "confidence": pytest.approx(0.6)}
    assert shown[2].keys() == {"active_share", "confidence"} and shown[3] == {}
    assert Loaded(model).shown(state) == {}  # type: ignore[arg-type]
