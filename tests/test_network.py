"""A second family of networks runs everywhere by its registration alone: no file but this one knows it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from models.__main__ import main
from models.anytime import Step, exits_in_turns, exits_of
from models.checkpoint import load_directory, load_weights, save_directory
from models.directory import read_config
from models.executors.reference import ReferenceExecutor
from models.executors.selection import build, choose_executor
from models.imaging.geometry import Frame
from models.network.configs import GIGA, ModelConfig
from models.network.families import CONFIGS, FAMILIES, Family
from models.network.flops import costs, gmacs, parameters, step_costs
from models.network.network import Network, Progress, batched, build_network, one_of
from models.training.recipe import Phase, Recipe
from models.training.tasks import Segmentation
from models.training.train import Run, update_of
from models.validation import value
from server.catalog import read_catalog
from server.engine.messages import LoadPlan
from server.scheduling.costs import CostModel
from server.worker.loading import facts, load_models, warm_up
from server.worker.progress import LoadingProgress


@value(kw_only=True)
class IteratedConfig(ModelConfig):
    """One layer that is applied again and again; every second iterate is decoded."""

    family: ClassVar[str] = "iterated"
    head_fields: ClassVar[tuple[str, ...]] = ("task", "outputs", "width")

    width: Annotated[int, Field(ge=1)]
    decoded: Annotated[int, Field(ge=1)] = 2

    @property
    def exits(self) -> int:
        return self.decoded


@dataclass(frozen=True)
class Inject(Step):
    name: str = "inject"


@dataclass(frozen=True)
class Iterate(Step):
    index: int = 0

    @property
    def name(self) -> str:
        return f"iterate {self.index}"


@dataclass(frozen=True)
class Decode(Step):
    name: str = "decode"


@dataclass(frozen=True)
class Memory:
    """What the solver remembers: every residual, (N, iterates)."""

    residuals: Tensor
    iterates: int = 0


@dataclass(frozen=True)
class Iterated(Progress):
    memory: Memory | None = None


class IteratedNet(Network):
    config: IteratedConfig

    def __init__(self, config: IteratedConfig) -> None:
        super().__init__()
        self.config = config
        self.inject = nn.Conv2d(3, config.width, 4, 4)
        self.layer = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.decode = nn.Conv2d(config.width, config.outputs, 1)
        steps: list[Step] = [Inject()]
        for exit_index in range(1, config.decoded + 1):
            steps += [Iterate(2 * exit_index - 1), Iterate(2 * exit_index), Decode(exit=exit_index)]
        self.steps = tuple(steps)

    def advance(self, progress: Progress, step: Step, adaptive: bool | None = None) -> Progress:
        match step:
            case Inject():
                injected = self.inject(progress.features[0])
                memory = Memory(injected.new_zeros(len(injected), 0))
                return Iterated((injected, torch.zeros_like(injected)), memory=memory)
            case Iterate():
                assert isinstance(progress, Iterated) and progress.memory is not None
                injected, z = progress.features
                new = torch.tanh(self.layer(z) + injected)
                norm = (new - z).flatten(1).norm(dim=1)[:, None]
                memory = Memory(torch.cat([progress.memory.residuals, norm], 1), progress.memory.iterates + 1)
                return replace(progress, features=(injected, new), memory=memory)
        scores = self.decode(progress.features[1])
        return replace(progress, scores=scores, decided=torch.full_like(scores[:, :1], step.exit or 0).byte())

    def heads(self) -> list[nn.Module]:
        return [self.decode]

    def in_backbone(self, name: str) -> bool:
        return name.startswith(("inject.", "layer."))

    def own_name(self, released: str, tensor: Tensor) -> str | None:
        return None if released.startswith("layer_copy.") else released.replace("last.", "decode.")


CONFIG = IteratedConfig(
    name="iterated", task="segmentation", outputs=3, width=8, size=(64, 96), labels=("sky", "road", "car")
)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "iterated", Family(IteratedConfig, (CONFIG,), f"{__name__}:IteratedNet"))
    monkeypatch.setitem(CONFIGS, "iterated", CONFIG)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_network(CONFIG).eval()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_directory(tmp_path / "iterated", network())
    return tmp_path / "iterated"


def test_the_steps_of_every_family_number_its_exits() -> None:
    assert FAMILIES.keys() == {"adpc", "mdeq", "iterated"}
    for name, family in FAMILIES.items():
        for config in family.named[:4]:
            assert type(config) is family.config and config.family == name
            with torch.device("meta"):
                net = build_network(config)
            assert net.config is config and 1 <= len(net.heads()) <= config.exits
            assert [step.exit for step in net.steps if step.exit is not None] == list(range(1, config.exits + 1))


def test_a_directory_round_trip_names_the_family(directory: Path) -> None:
    assert json.loads((directory / "config.json").read_text())["family"] == "iterated"
    assert read_config(directory) == CONFIG
    loaded = load_directory(directory)
    assert isinstance(loaded, IteratedNet)
    assert all(torch.equal(tensor, network().state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_released_checkpoint_has_its_own_names(tmp_path: Path) -> None:
    weights = {f"model.{name}".replace("decode.", "last."): tensor for name, tensor in network(1).state_dict().items()}
    copies = {"model.layer_copy.weight": torch.ones(3), "loss.criterion.weight": torch.ones(3)}
    torch.save(weights | copies, tmp_path / "released.pth")
    net = network()
    load_weights(net, tmp_path / "released.pth")
    assert all(torch.equal(tensor, network(1).state_dict()[name]) for name, tensor in net.state_dict().items())
    other = IteratedNet(replace(CONFIG, outputs=5))
    head = other.decode.weight.clone()
    load_weights(other, tmp_path / "released.pth", backbone_only=True)
    assert torch.equal(other.layer.weight, net.state_dict()["layer.weight"]) and torch.equal(other.decode.weight, head)


def test_operations_are_counted_step_by_step() -> None:
    positions = 16 * 24
    inject, iterate, decode = (positions * taps for taps in (3 * 16 * 8, 8 * 9 * 8, 8 * 3))
    by_step = [sum(cost.macs(1) for cost in found.values()) for _, found in step_costs(CONFIG, 64, 96)]
    assert by_step == [inject, iterate, iterate, decode, iterate, iterate, decode]
    assert [sum(cost.macs(1) for cost in found.values()) for found in costs(CONFIG, 64, 96)] == [
        inject + 2 * iterate + decode,
        2 * iterate + decode,
    ]
    assert np.multiply(gmacs(CONFIG, 60, 90), GIGA).tolist() == [sum(by_step[:4]), sum(by_step)]
    assert parameters(CONFIG) == 3 * 16 * 8 + 8 + 8 * 9 * 8 + 8 + 8 * 3 + 3


def test_a_batch_is_joined_and_taken_apart_with_all_that_requests_remember() -> None:
    net = network()
    alone = [list(net.exits(torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(i)))) for i in (0, 1)]
    both = batched([exits[0] for exits in alone])
    assert isinstance(both, Iterated) and both.memory is not None and both.memory.iterates == 2
    assert both.memory.residuals.shape == (2, 2) and both.features[1].shape == (2, 8, 8, 16)
    second, expected = one_of(both, 1), alone[1][0]
    assert isinstance(second, Iterated) and second.memory is not None
    assert isinstance(expected, Iterated) and expected.memory is not None
    assert torch.equal(second.memory.residuals, expected.memory.residuals)
    assert second.scores is not None and expected.scores is not None and torch.equal(second.scores, expected.scores)
    assert second.scores.untyped_storage().nbytes() == expected.scores.nbytes, "it would hold the others' memory"
    with pytest.raises(ValueError, match="2 requests hold unequal values, such as 2"):
        batched([both, replace(both, memory=replace(both.memory, iterates=3))])


@torch.no_grad()
def test_the_reference_runs_it_alone_in_turns_and_in_batches() -> None:
    model = ReferenceExecutor(network())
    images = [tiny.image(seed=seed) for seed in (0, 1)]
    alone = []
    for image in images:
        state = model.begin(image)
        expected = list(network().exits(state.progress.features[0]))
        found = [state.latest() for _ in exits_of(model, [state])]
        assert [exit_.index for exit_ in found] == [1, 2]
        for exit_, progress in zip(found, expected, strict=True):
            assert progress.scores is not None
            torch.testing.assert_close(exit_.scores, progress.scores[0])
            assert (exit_.decided == exit_.index).all()
        assert [exit_.macs for exit_ in found] == np.multiply(gmacs(CONFIG, 64, 96), GIGA).tolist()
        alone.append([exit_.scores for exit_ in found])
    states = [model.begin(image) for image in images]
    for exit_index in exits_in_turns([(model, [state]) for state in states]):
        for state, scores in zip(states, alone, strict=True):
            assert torch.equal(state.latest().scores, scores[exit_index - 1])
    states = [model.begin(image) for image in images]
    for exit_index in exits_of(model, states):
        for state, scores in zip(states, alone, strict=True):
            torch.testing.assert_close(state.latest().scores, scores[exit_index - 1])


def test_auto_is_the_reference_and_others_refuse_it(directory: Path) -> None:
    assert build(network()).executor == "reference"
    assert choose_executor(directory, "cpu", "auto").executor == "auto"
    for executor in ("sparse", "onnx"):
        with pytest.raises(ValueError, match=f"the {executor} executor runs networks of family adpc, not of iterated"):
            build(network(), executor=executor)


def test_commands_know_it(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "iterated", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["exits"]) == 2
    assert main(["show", str(directory)]) == 0
    assert "exit 2: " in capsys.readouterr().out
    Image.fromarray(tiny.image(50, 70)).save(tmp_path / "in.png")
    command = ["run", str(directory), "--input", str(tmp_path / "in.png"), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert load_file(tmp_path / "out").keys() == {"logits1", "map1", "logits2", "map2"}
    capsys.readouterr()
    tiny.write_scenes(tmp_path / "data")
    assert main(["evaluate", str(directory), "--data", str(tmp_path / "data"), "--split", "val", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["exit"] for row in result["exits"]] == [1, 2] and result["executor"] == "reference"
    assert main(["export", str(directory), "--output", str(tmp_path / "graphs")]) == 1
    assert "iterated is of family iterated; only family adpc is exported" in capsys.readouterr().err


def test_it_is_trained(tmp_path: Path) -> None:
    tiny.write_scenes(tmp_path / "data")
    device = torch.device("cpu")
    recipe = Recipe(("train",), (Phase(2, 2, (32, 32), (1.0, 1.0)),), hold_out=("drive1",))
    run = Run.begin(CONFIG, recipe, device)
    before = run.network.state_dict()["layer.weight"].clone()
    task = Segmentation(CONFIG, recipe, tmp_path / "data", device)
    run.set_rate(1e-2)
    losses = update_of(run, task, mixed=False, compiled=False)(*task.batch(0), None)
    assert losses.shape == (2,) and not torch.equal(run.network.state_dict()["layer.weight"], before)
    assert len(task.score(run.network.eval())) == 2


def test_the_server_knows_and_loads_it(directory: Path) -> None:
    model = read_catalog(directory.parent).get("iterated")
    assert model.layout(60, 90, extra=False).exits == 2
    plan = LoadPlan({"iterated": str(directory)}, "cpu", "auto", 1, (), {}, 0, 0, "INFO")
    progress = LoadingProgress(lambda _: None)
    loaded = load_models(plan, progress)["iterated"]
    measured = CostModel()
    warm_up("iterated", loaded.model, measured, progress)
    told = facts("iterated", loaded, measured, progress)
    assert told.chosen.executor == "reference" and len(told.macs) == len(told.seconds) == 2
    assert loaded.model.begin(np.zeros((33, 40, 3), np.uint8)).frame == Frame(33, 40)
