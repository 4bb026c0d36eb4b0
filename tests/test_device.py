"""A device, as the front end sees it."""

from dataclasses import replace
from pathlib import Path

import live
import pytest
import tiny

from models.executors.registry import PREPARED_SIZES
from server.catalog import read_catalog
from server.engine.device import BUSY_HALF_LIFE_S, PREPARE_S, Device, labelled
from server.engine.device_metrics import DeviceMetrics
from server.engine.messages import Chosen, ModelFacts, Ready
from server.engine.usage import Usage
from server.metrics import Metrics
from server.scheduling.costs import CostModel
from server.scheduling.expected import Expected

NAME = tiny.SEGMENTATION.name
EXPECTED = Expected(NAME, tiny.SEGMENTATION.size, 1, 10.0)


def facts(executor: str) -> dict[str, ModelFacts]:
    return {NAME: ModelFacts(live.MACS, (0.1, 0.2, 0.3, 0.4), False, Chosen(executor))}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    catalog = read_catalog(live.write_configs(tmp_path, (tiny.SEGMENTATION,)))
    return Device("auto", "auto", CostModel(), catalog, Metrics({NAME: 4}))


@pytest.mark.parametrize(
    ("executor", "new_s", "seen_s"),
    [("sparse", 0.0, 0.0), ("reference", 0.2, 0.2), ("triton", PREPARE_S, 0.2), ("onnx", PREPARE_S, 0.2)],
)
def test_how_long_a_worker_may_compute_without_a_look_at_its_mailbox(
    device: Device, executor: str, new_s: float, seen_s: float
) -> None:
    device.now_ready(Ready("cuda:0", executor, facts(executor)))
    device.costs.observe(NAME, EXPECTED.shape, 2, 0.2)
    assert device.step_s(EXPECTED, 2) == pytest.approx(new_s)
    device.reached(EXPECTED, 1, 0.1, 1.0, 0.0)
    assert device.step_s(EXPECTED, 2) == pytest.approx(seen_s)
    assert device.step_s(replace(EXPECTED, shape=(32, 32)), 2) == pytest.approx(
        new_s / (1 if new_s == PREPARE_S else 6)
    )
    device.now_ready(Ready("cuda:0", executor, {NAME: replace(facts(executor)[NAME], max_batch=4)}))
    assert device.step_s(EXPECTED, 2) == pytest.approx(4 * seen_s)
    device.now_ready(Ready("cuda:0", executor, facts(executor)))
    device.lost()
    assert device.step_s(EXPECTED, 2) == pytest.approx(new_s)  # the next worker has not seen it


def test_an_executor_prepares_again_for_a_size_that_others_have_displaced(device: Device) -> None:
    """The GPU's executor keeps the graphs of its latest sizes only."""
    device.now_ready(Ready("cuda:0", "triton", facts("triton")))
    device.costs.observe(NAME, EXPECTED.shape, 2, 0.2)
    others = [replace(EXPECTED, shape=(32, 32 * width)) for width in range(1, PREPARED_SIZES + 1)]
    for expected in (EXPECTED, *others[:-1], others[0]):
        device.reached(expected, 1, 0.1, 1.0, 0.0)
    assert device.step_s(EXPECTED, 2) == pytest.approx(0.2)
    device.reached(others[-1], 1, 0.1, 1.0, 0.0)
    assert device.step_s(EXPECTED, 2) == PREPARE_S
    assert device.step_s(others[0], 2) < PREPARE_S


def test_the_share_of_time_in_which_a_device_computes(device: Device) -> None:
    assert device.busy(0.0) == 0
    for tenth in range(1, 301):  # 40 ms in every 100 ms
        device.reached(EXPECTED, 1, 0.04, 1.0, tenth / 10)
    assert device.busy(30.0) == pytest.approx(0.4, rel=0.05)
    assert device.busy(30.0 + BUSY_HALF_LIFE_S) == pytest.approx(0.2, rel=0.05)
    for _ in range(100):
        device.reached(EXPECTED, 1, 1.0, 1.0, 30.0)
    assert device.busy(30.0) == 1


def test_a_device_that_is_named_once_gets_the_label_of_what_it_is(device: Device) -> None:
    assert device.to_json(answers=False) == {"device": "auto", "ready": False, "executor": None, "open": 0}
    device.now_ready(Ready("cuda:0", "triton", facts("triton")))
    assert device.to_json(answers=True) == {"device": "cuda:0", "ready": True, "executor": "triton", "open": 0}
    sample = device._metrics.registry.get_sample_value
    assert [sample("anytime_worker_up", {"device": label}) for label in ("auto", "cuda:0")] == [None, 1]


def test_the_safe_seconds_that_metrics_show_are_those_of_admission(device: Device, tmp_path: Path) -> None:
    shown = DeviceMetrics(read_catalog(tmp_path), [device], lambda _: Usage())
    assert {seconds for _, seconds in (*shown.safe_s(), *shown.typical_s())} == {0.0}
    device.reached(EXPECTED, 1, 0.1, 1.0, 0.0)
    assert dict(shown.typical_s())[NAME, "auto", "1"] == pytest.approx(0.1)
    assert dict(shown.safe_s())[NAME, "auto", "1"] == device.costs.safe_s(NAME, EXPECTED.shape, 1)


def test_twins_have_numbers() -> None:
    assert labelled(("cpu",)) == [("cpu", "cpu")]
    assert labelled(("cpu", "cuda:1", "cpu")) == [("cpu", "cpu:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu:1")]


def test_what_metrics_show_of_a_device(device: Device) -> None:
    metrics, read = Metrics({}), Usage(cpu_s=7.5, memory_bytes=2**20)
    DeviceMetrics(device._catalog, [device], lambda _: read).show(metrics)
    exits = [{"model": NAME, "device": "auto", "exit": str(index)} for index in range(1, 5)]

    def shown(name: str) -> list[float | None]:
        return [metrics.registry.get_sample_value(f"anytime_{name}", labels) for labels in exits]

    assert shown("typical_exit_seconds") == shown("safe_exit_seconds") == [0] * 4
    for _ in range(20):
        for exit_index in range(1, 5):
            device.costs.observe(NAME, EXPECTED.shape, exit_index, 0.1)
    for exit_index in (1, 2, 3, 4) * 3:
        device.costs.observe(NAME, EXPECTED.shape, exit_index, 0.2)
    (cost,) = device.learnt(NAME)
    assert shown("typical_exit_seconds") == pytest.approx(cost.typical_s)
    assert shown("safe_exit_seconds") == pytest.approx(cost.safe_s)
    at = {"device": "auto"}
    values = [
        metrics.registry.get_sample_value(f"anytime_{name}", at)
        for name in ("slow_down_ratio", "worker_cpu_seconds_total", "worker_memory_bytes")
    ]
    assert values == [device.costs.slow_down, 7.5, 2**20] and device.costs.slow_down > 1.5
