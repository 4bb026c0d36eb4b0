"""A step of training by hand: the summed loss, the weights, their mean, the rate, precision, and what a run records."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.network.adpc import AdpcNet
from models.training import train as training
from models.training.recipe import Phase, Recipe
from models.training.train import Run, train, update_of

CPU = torch.device("cpu")
ONE = torch.ones(1, 1, 1, 1)


class Scale(nn.Module):
    """Stands for a network: its one weight times the input is the score of both exits, but for a factor of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(tiny.SEGMENTATION, heads="plain")
        self.weight = nn.Parameter(torch.zeros(1, 1))
        self.calls: list[bool | None] = []
        self.drawn: list[float] = []
        self.dtype: torch.dtype | None = None
        self.last = 1.0

    def forward(self, inputs: Tensor, adaptive: bool | None = None) -> tuple[Tensor, Tensor]:
        self.calls.append(adaptive)
        self.drawn.append(float(torch.rand(1)))
        scores = inputs.view(-1, 1) @ self.weight
        self.dtype = scores.dtype
        return scores, self.last * scores


class Twice:
    """Stands for a training task: the first exit's loss is its score, the second's three times that."""

    examples = 1

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.scored: list[float] = []

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        self.batches.append(step)
        return ONE, ONE

    def losses(self, found: Sequence[Tensor], _: Tensor) -> Tensor:
        return torch.stack([found[0].float().sum(), 3 * found[1].float().sum()])

    def distilled(self, found: Sequence[Tensor], taught: Tensor) -> Tensor:
        """For the first exit, ten times the product of its score and the teacher's."""
        first = 10 * (found[0] * taught).sum()
        return torch.stack([first, torch.zeros_like(first)])

    def score(self, network: AdpcNet) -> list[float]:
        self.scored.append(float(network.get_parameter("weight").detach()))
        return [50.0, 60.0]


class Unsaved(Run):
    """A run whose network cannot be saved as a model. `saved`: the steps at which `save` was called."""

    def save(self, output: Path) -> None:
        self.saved = [*getattr(self, "saved", []), self.step]


def begin(rate: float = 0.0) -> Unsaved:
    """A run with plain gradient descent, so that a step can be worked out by hand."""
    network: Any = Scale()
    mean: Any = Scale().requires_grad_(False)
    return Unsaved(network, mean, torch.optim.SGD(network.parameters(), lr=rate), torch.zeros(2))


def recipe(*phases: Phase, **more: object) -> Recipe:
    given = {"learning_rate": 1.0, "warm_up": 0.0, "ema_steps": 500} | more
    return Recipe(splits=("train",), phases=phases, **given)  # type: ignore[arg-type]


def phase(steps: int, *, masks: bool = True) -> Phase:
    return Phase(steps=steps, batch=2, crop=(32, 32), scale=(1.0, 1.0), masks=masks)


def weight(network: nn.Module) -> float:
    return float(network.get_parameter("weight").detach())


# Equation 1


def test_a_step_descends_the_sum_of_the_exits_losses() -> None:
    """Losses w and 3 w have gradients 1 and 3: at a rate of 0.1, w goes from 0 to -0.4, then to -0.8. The losses are
    those before the step."""
    run = begin(rate=0.1)
    update = update_of(run, Twice(), mixed=False, compiled=False)
    assert update(ONE, ONE, None).tolist() == [0, 0]
    assert weight(run.network) == pytest.approx(-0.4)
    found = update(ONE, ONE, None)
    assert found.tolist() == pytest.approx([-0.4, -1.2])
    assert weight(run.network) == pytest.approx(-0.8)
    assert not found.requires_grad


def test_a_share_of_what_the_mean_teaches_is_added() -> None:
    """The weight is 1 and the mean's last exit says 2: half of 10 * 1 * 2 is added to the first loss of 1, and half of
    10 * 2 to the gradient of 4, so a rate of 0.1 takes the weight to 1 - 1.4. The mean runs without masks."""
    run = begin(rate=0.1)
    with torch.no_grad():
        run.network.get_parameter("weight").fill_(1.0)
        run.mean.get_parameter("weight").fill_(1.0)
    run.mean.last = 2.0  # type: ignore[assignment]
    losses = update_of(run, Twice(), mixed=False, compiled=False, distillation=0.5)(ONE, ONE, None)
    assert losses.tolist() == [11, 3]
    assert weight(run.network) == pytest.approx(-0.4)
    assert run.mean.calls == [False]


def test_mixed_steps_multiply_in_bfloat16_and_others_in_float32() -> None:
    for mixed, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        run = begin()
        losses = update_of(run, Twice(), mixed=mixed, compiled=False)(ONE, ONE, None)
        assert run.network.dtype == dtype  # type: ignore[comparison-overlap]
        assert losses.dtype == run.network.get_parameter("weight").dtype == torch.float32


@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_multiplies_in_bfloat16_where_it_has_instructions_for_it(
    supported: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    for asked, dtype in ((None, torch.bfloat16 if supported else torch.float32), (not supported, None)):
        run = begin()
        train(run, Twice(), recipe(phase(1)), tmp_path, mixed=asked)
        expected = dtype or (torch.float32 if supported else torch.bfloat16)
        assert run.network.dtype == expected  # type: ignore[comparison-overlap]


# The loop


def test_three_steps_and_the_mean_of_the_weights_by_hand(tmp_path: Path) -> None:
    """The rate falls along a cosine: 1, 0.75, 0.25. The gradient is 4, so the weight goes to -4, -7, -8.

    Early on, the mean moves by 1 / (1 + step / 10) towards it, the step counted from 1:
    -4 / 1.1 = -3.636364; then by 1 / 1.2 to -6.439394; then by 1 / 1.3 to -7.639860.
    """
    run = begin()
    train(run, Twice(), recipe(phase(3)), tmp_path)
    assert weight(run.network) == pytest.approx(-8)
    assert weight(run.mean) == pytest.approx(-7.639860, abs=1e-5)
    assert run.step == 3


@pytest.mark.parametrize(("ema_steps", "mean"), [(1, -8.0), (2, -6.25)])
def test_the_mean_is_over_no_more_than_its_steps(ema_steps: int, mean: float, tmp_path: Path) -> None:
    """The weight goes from 0 to -4, -7, -8 at steps 21 to 23, where 1 + step / 10 is above either. Over 1 step the mean
    is the weight; over 2 it moves half of the way: -2, -4.5, -6.25."""
    run, rates = begin(), iter((1.0, 0.75, 0.25))
    run.set_rate = lambda _: Run.set_rate(run, next(rates))  # type: ignore[method-assign]
    run.step = 20
    train(run, Twice(), recipe(phase(23), ema_steps=ema_steps), tmp_path)
    assert weight(run.network) == pytest.approx(-8)
    assert weight(run.mean) == pytest.approx(mean)


def test_statistics_of_normalisation_are_averaged_and_counters_are_not() -> None:
    run = Run.begin(tiny.SEGMENTATION, recipe(phase(1)), CPU)
    run.network.get_buffer("bn1.running_mean").fill_(8.0)
    run.network.get_buffer("bn1.num_batches_tracked").fill_(9)
    run.follow(0.25)
    assert run.mean.get_buffer("bn1.running_mean").eq(2.0).all()
    assert run.mean.get_buffer("bn1.num_batches_tracked") == 0


def test_every_step_takes_its_own_batch_and_masks_as_its_phase_has_them(tmp_path: Path) -> None:
    run, task = begin(), Twice()
    train(run, task, recipe(phase(2, masks=False), phase(2)), tmp_path)
    assert task.batches == [0, 1, 2, 3]
    assert run.network.calls == [False, False, None, None]


def test_what_a_network_draws_depends_on_the_seed_and_the_step(tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        run = begin()
        train(run, Twice(), recipe(phase(4), seed=seed), tmp_path, steps=2)
        torch.rand(5)
        train(run, Twice(), recipe(phase(4), seed=seed), tmp_path)
        drawn.append(run.network.drawn)
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 8  # type: ignore[misc]


def test_the_mean_network_is_scored_and_losses_are_averaged_between_scores(tmp_path: Path) -> None:
    """The weight stays at 2, so the losses are 2 and 6. Its mean moves from 0 by 1 / 1.1, 1 / 1.2, .. of the way."""
    run, task = begin(), Twice()
    with torch.no_grad():
        run.network.get_parameter("weight").fill_(2.0)
    run.set_rate = lambda _: None  # type: ignore[method-assign]
    train(run, task, recipe(phase(5)), tmp_path, score_every=2)
    assert [(row["step"], row["losses"], row["scores"]) for row in run.history] == [
        (step, [2.0, 6.0], [50.0, 60.0]) for step in (2, 4, 5)
    ]
    assert task.scored == pytest.approx([1.969697, 1.998002, 1.999334], abs=1e-6)
    assert run.losses.tolist() == [0, 0] and run.since == 5


def test_a_run_without_scores_is_not_scored(tmp_path: Path) -> None:
    task = Twice()
    train(begin(), task, recipe(phase(2)), tmp_path, score_every=math.inf)
    assert task.scored == []


def test_a_run_stops_after_its_steps_and_goes_on(tmp_path: Path) -> None:
    run, task = begin(), Twice()
    for steps, reached in ((2, 2), (1, 3), (9, 5)):
        train(run, task, recipe(phase(5)), tmp_path, steps=steps)
        assert run.step == reached
    assert task.batches == [0, 1, 2, 3, 4]


def test_a_long_run_saves_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves 10 s at every look: a step takes two looks, so that every second one is 30 s after a save."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    run = begin()
    train(run, Twice(), recipe(phase(8)), tmp_path)
    assert len(run.saved) > 3 and run.saved[-1] == 8 and run.saved == sorted(run.saved)
    assert set(run.saved) < set(range(1, 9))


# What a run begins with


def test_only_matrices_and_kernels_decay() -> None:
    run = Run.begin(tiny.SEGMENTATION, recipe(phase(1), weight_decay=0.07), CPU)
    decayed, others = run.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.07, 0.0)
    names = {id(parameter): name for name, parameter in run.network.named_parameters()}
    kernels = {names[id(parameter)] for parameter in decayed["params"]}
    rest = {names[id(parameter)] for parameter in others["params"]}
    assert kernels | rest == set(names.values()) and not kernels & rest
    assert {"conv1.weight", "stage2.0.branches.0.0.conv1.weight"} <= kernels
    assert {"bn1.weight", "bn1.bias", "last_layer.0.Lambda"} <= rest
    assert not any(name.endswith(("bias", "Lambda")) for name in kernels)


def test_the_rate_reaches_every_group_of_parameters() -> None:
    run = Run.begin(tiny.SEGMENTATION, recipe(phase(1)), CPU)
    run.set_rate(0.125)
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.125, 0.125]


def test_squared_gradients_are_soon_forgotten() -> None:
    run = Run.begin(tiny.SEGMENTATION, recipe(phase(1)), CPU)
    assert all(group["betas"] == (0.9, 0.99) for group in run.optimizer.param_groups)


def test_pose_begins_with_empty_heatmaps_and_segmentation_does_not() -> None:
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pose, segmentation = (Run.begin(config, recipe(phase(1)), CPU) for config in (tiny.POSE, tiny.SEGMENTATION))
    assert all(scores.abs().max() < 0.1 for scores in pose.network(inputs, adaptive=False))
    assert all(scores.abs().max() > 0.1 for scores in segmentation.network(inputs, adaptive=False))


def test_a_run_trains_the_network_and_leaves_its_mean_as_it_was_made() -> None:
    run = Run.begin(tiny.SEGMENTATION, recipe(phase(1)), CPU)
    ours, theirs = run.network.state_dict(), run.mean.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(parameter.requires_grad for parameter in run.mean.parameters())
    assert not run.mean.training
    assert all(parameter.requires_grad for parameter in run.network.parameters())


# What is saved


def test_the_model_that_is_written_is_the_mean_in_half_precision(tmp_path: Path) -> None:
    run = Run.begin(tiny.SEGMENTATION, recipe(phase(1)), CPU)
    with torch.no_grad():
        run.mean.get_parameter("conv1.weight").fill_(0.1)
    run.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["conv1.weight"].dtype == torch.float16
    assert stored["conv1.weight"].float().unique().tolist() == pytest.approx([0.1], abs=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["name"] == "tiny-segmentation"
    assert not list(tmp_path.glob("*.part"))


def test_a_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    def changed(run: Run) -> Run:
        run.step, run.since, run.history = 7, 5, [{"step": 5, "losses": [1.0], "scores": [2.0]}]
        run.losses.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        run.mean.get_parameter("conv1.weight").fill_(0.5)
        inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        sum(scores.sum() for scores in run.network.train()(inputs)).backward()  # type: ignore[union-attr]
        run.optimizer.step()
        return run

    make: Callable[[], Run] = lambda: Run.begin(tiny.SEGMENTATION, recipe(phase(9)), CPU)  # noqa: E731
    saved = changed(make())
    saved.save(tmp_path)
    found = make()
    found.load(tmp_path)
    assert (found.step, found.since, found.history) == (saved.step, saved.since, saved.history)
    assert found.losses.tolist() == [1, 2, 3, 4]
    for name in ("network", "mean"):
        ours, theirs = getattr(found, name).state_dict(), getattr(saved, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    moments = [run.optimizer.state_dict()["state"] for run in (found, saved)]
    assert moments[0].keys() == moments[1].keys() and len(moments[0]) > 100
    assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[0])
