import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from models.anytime import exits_of
from models.checkpoint import save_directory
from models.commands import export
from models.executors import onnx as exporter
from models.executors.onnx import TOLERANCE, OnnxExecutor, difference, graphs
from models.executors.reference import ReferenceExecutor
from models.executors.selection import build
from models.imaging.geometry import Frame
from models.network.adpc_configs import AdpcConfig
from models.network.configs import Masking

ONE_EXIT = replace(tiny.SEGMENTATION, masking=None, heads="one")
CONFIGS = [
    tiny.SEGMENTATION,
    replace(tiny.SEGMENTATION, masking=None, heads="plain"),
    ONE_EXIT,
    tiny.POSE,
    replace(tiny.POSE, masking=None, heads="plain"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.task} {c.heads} {'masked' if c.masking else 'dense'}")
def test_graphs_give_what_the_network_gives(config: AdpcConfig) -> None:
    network = tiny.network(config)
    assert difference(network, graphs(network)) < 1e-5


def test_a_graph_that_gives_no_numbers_is_no_match() -> None:
    broken = tiny.network(ONE_EXIT)
    with torch.no_grad():
        broken.conv1.weight[0, 0, 0, 0] = torch.nan
    assert not difference(broken, graphs(broken)) <= TOLERANCE


def test_the_executor_follows_its_own_masks() -> None:
    network = tiny.network(replace(tiny.SEGMENTATION, masking=Masking("top_k", 0.4)))
    model, reference = OnnxExecutor(network, threads=1), ReferenceExecutor(network)
    assert [step.exit for step in model.steps] == [1, 2, 3, 4]
    states = [model.begin(tiny.image(seed=seed)) for seed in range(2)]
    expected = reference.begin(tiny.image(seed=1))
    for exit_index, same in zip(exits_of(model, states), exits_of(reference, [expected]), strict=True):
        found, right = states[1].latest(), expected.latest()
        assert found.index == right.index == exit_index == same
        assert (found.scores - right.scores).abs().max() < 1e-4 * right.scores.abs().max()
        assert torch.equal(found.decided, right.decided)
        assert found.macs == right.macs


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_directory(tmp_path / "model", tiny.network())
    args = argparse.Namespace(model=str(tmp_path / "model"), format="onnx", output=tmp_path / "graphs")
    assert export.main(args) == 0
    assert sorted(path.name for path in args.output.iterdir()) == [f"exit{index}.onnx" for index in (1, 2, 3, 4)]
    assert "branch0, branch1, positions, previous -> scores" in capsys.readouterr().out


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="onnxruntime-gpu"):
        OnnxExecutor(tiny.network(ONE_EXIT), device="cuda")
    with pytest.raises(ValueError, match="pip install"):
        exporter._need("a_runtime_that_nobody_wrote")


def test_an_input_without_pixels_is_refused() -> None:
    model = build(tiny.network(ONE_EXIT), executor="onnx")
    assert model.executor == "onnx"
    with pytest.raises(ValueError, match="the input is 0x0; both must be multiples of 32, at least 32"):
        model.start(torch.zeros(1, 3, 0, 0), Frame(0, 0))
