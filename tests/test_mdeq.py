"""MDEQ: its operation counts, its solvers, and the golden cases made with the authors' implementation where they lie
beside the checkout."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.__main__ import main
from models.anytime import exits_in_turns, exits_of
from models.checkpoint import load_weights, save_directory
from models.executors.reference import ReferenceExecutor
from models.network.families import config as named
from models.network.flops import step_costs
from models.network.mdeq import Decoding, Evaluation, MdeqNet, MdeqProgress
from models.network.mdeq_configs import MdeqConfig
from models.network.mdeq_flops import Operations, operations, rows
from models.network.network import build_network
from models.network.solver import Anderson, Broyden, FixedPointSolver, PlainIteration, Solution
from models.training.comparison.variants import variants

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"
TABLE_6 = {
    "mdeq-small-cityscapes": (
        227.2,
        325.3,
        423.5,
        521.6,
        619.7,
        717.9,
        816.0,
        914.2,
        1012.3,
        1110.5,
        1208.5,
        1306.7,
        1404.8,
        1503.0,
        1601.1,
        1699.3,
        1797.4,
        1895.5,
        1993.7,
        2091.8,
        2190.0,
        2288.1,
        2386.2,
        2484.4,
        2582.5,
        2680.7,
        2778.8,
    ),
    "mdeq-xl-cityscapes": (
        1983.0,
        2861.3,
        3739.6,
        4617.9,
        5496.2,
        6374.5,
        7252.9,
        8131.2,
        9009.5,
        9887.8,
        10766.1,
        11644.4,
        12522.7,
        13401.0,
        14279.3,
        15157.6,
        16036.0,
        16914.3,
        17792.6,
        18670.9,
        19549.2,
        20427.5,
        21305.8,
        22184.2,
        23062.5,
        23940.8,
        24819.1,
    ),
}
"""GMACs after iterations 1 to 27, as the paper prints them."""
TINY = MdeqConfig(
    name="tiny-mdeq", task="segmentation", outputs=3, size=(64, 96), channels=(4, 8, 16, 32), expansion=2, groups=2
)


def network(config: MdeqConfig = TINY, seed: int = 0, *, contracts: bool = False) -> MdeqNet:
    """Random weights. `contracts`: norms of f scale down and shift up, so that solvers converge soon."""
    torch.manual_seed(seed)
    found = MdeqNet(config).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.ndim == 4 and not name.endswith("weight_g"):
                parameter.normal_(std=0.3)
        for layer in found.fullstage.modules():
            if isinstance(layer, torch.nn.GroupNorm) and contracts:
                layer.weight.fill_(0.3)
                layer.bias.fill_(6)
    return found


def final(net: MdeqNet, images: Tensor) -> list[MdeqProgress]:
    """The progress at every exit."""
    with torch.inference_mode():
        found = list(net.exits(images))
    assert all(isinstance(progress, MdeqProgress) for progress in found)
    return found  # type: ignore[return-value]


def images(count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


# --- operation counts ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mdeq-small-cityscapes", Operations(1_795_162_112, 52_688_846_848, 31_394_365_440)),
        ("mdeq-large-cityscapes", Operations(9_521_070_080, 329_305_292_800, 191_732_121_600)),
        ("mdeq-xl-cityscapes", Operations(11_395_923_968, 471_540_957_184, 231_667_138_560)),
    ],
)
def test_operations_are_those_of_the_released_models(name: str, expected: Operations) -> None:
    model = named(name)
    assert isinstance(model, MdeqConfig)
    assert operations(model, 1000, 2048) == expected  # 1000 is padded to 1024


@pytest.mark.parametrize("name", TABLE_6)
def test_table_6_counts_f_twice(name: str) -> None:
    model = named(name)
    printed = dict(rows(model, 1024, 2048, (), as_printed=True))
    honest = dict(rows(model, 1024, 2048, (), as_printed=False))
    assert len(TABLE_6[name]) == len(printed) == 27
    for iteration, gmacs in enumerate(TABLE_6[name], 1):
        assert abs(printed[iteration] - gmacs) <= 0.1
    found = operations(model, 1024, 2048)  # type: ignore[arg-type]
    once = (found.injection + found.decoding) / 1024**3
    for iteration, gmacs in honest.items():
        assert printed[iteration] - once == pytest.approx(2 * (gmacs - once))


def test_the_command_prints_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "mdeq-small-cityscapes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == 8_968_467
    assert found["exits"][9]["exit"] == 10 and abs(found["exits"][9]["gmacs"] - 570.7) < 0.1
    assert main(["flops", "mdeq-small-cityscapes", "--active", "0.5"]) == 1
    assert "has no masks" in capsys.readouterr().err


def test_the_network_computes_what_is_counted_but_for_its_cheaper_head() -> None:
    counted = {step: sum(cost.macs(1) for cost in found.values()) for step, found in step_costs(TINY, 64, 96)}
    expected = operations(TINY, 64, 96)
    evaluations = [macs for step, macs in counted.items() if isinstance(step, Evaluation)]
    assert evaluations == [expected.evaluation] * 11
    inputs, positions = 60, 16 * 24
    branchwise = inputs * (4 * positions + 8 * positions // 4 + 16 * positions // 16 + 32 * positions // 64)
    decodings = [macs for step, macs in counted.items() if isinstance(step, Decoding)]
    assert decodings == [branchwise + inputs * 3 * positions] * 4
    assert expected.decoding == inputs * inputs * positions + inputs * 3 * positions


# --- solvers ---


def solve(solver: FixedPointSolver, matrix: Tensor, offset: Tensor, evaluations: int) -> Solution:
    """Solves z = z matrix^T + offset; offset: (N, n)."""
    solution = solver.start(torch.zeros_like(offset))
    for _ in range(evaluations):
        solution = solver.advance(solution, solution.z @ matrix.T + offset)
    return solution


def contraction(size: int = 40) -> Tensor:
    """A random symmetric matrix of spectral radius 0.9."""
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return q @ torch.diag(torch.linspace(-0.9, 0.9, size, dtype=torch.float64)) @ q.T


def steps_to(solution: Solution, share: float) -> int:
    """The first iterate whose residual is below `share` of the first one's."""
    first = float(solution.residuals[0])
    return next(k for k, residual in enumerate(solution.residuals) if residual < share * first)


def test_broyden_needs_less_than_half_of_the_steps_of_plain_iteration() -> None:
    matrix, offset = contraction(), torch.ones(1, 40, dtype=torch.float64)
    plain = steps_to(solve(PlainIteration(), matrix, offset, 150), 1e-4)
    assert steps_to(solve(Broyden(150), matrix, offset, 150), 1e-4) < plain / 2


@pytest.mark.parametrize("solver", [Broyden(6), Broyden(27, -1.0), Anderson(6), PlainIteration()])
def test_the_answer_is_the_best_iterate_and_memory_is_bounded(solver: FixedPointSolver) -> None:
    matrix, offset = contraction(), torch.randn(2, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before: Tensor | None = None
    solution = solver.start(torch.zeros_like(offset))
    for _ in range(30):
        solution = solver.advance(solution, solution.z @ matrix.T + offset)
        residual = (solution.best @ matrix.T + offset - solution.best).norm(dim=1)
        torch.testing.assert_close(residual, torch.stack(solution.residuals).amin(0))
        torch.testing.assert_close(residual, solution.lowest)
        assert before is None or (residual <= before).all()
        before = residual
    assert len(solution.pairs) <= solver.memory


@pytest.mark.parametrize("solver", [Broyden(), Anderson(), PlainIteration()])
def test_requests_of_a_batch_do_not_mix(solver: FixedPointSolver) -> None:
    matrix = contraction()
    offset = torch.randn(2, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    offset[1] *= 1e-7  # converges at once
    both = solve(solver, matrix, offset, 12)
    assert both.ended.tolist() == [False, True]
    for index in (0, 1):
        alone = solve(solver, matrix, offset[index : index + 1], 12)
        torch.testing.assert_close(both.best[index], alone.best[0])
    assert torch.equal(both.best[1], solver.start(offset).best[1] * 0)


def test_the_first_step_has_either_sign() -> None:
    offset = torch.ones(1, 2)
    for sign in (1.0, -1.0):
        solver = Broyden(first_step=sign)
        solution = solver.advance(solver.start(torch.zeros(1, 2)), offset)
        assert torch.equal(solution.z, sign * offset)


def test_a_request_that_diverges_keeps_its_best_answer() -> None:
    solver = PlainIteration()
    solution = solver.start(torch.ones(1, 1))
    for _ in range(6):
        solution = solver.advance(solution, solution.z * 100)
    assert bool(solution.ended) and torch.equal(solution.best, torch.ones(1, 1))


# --- the network ---


def test_weights_are_normalised_and_follow_their_parameters() -> None:
    layer = network().fullstage.post_fuse_layers[0].conv
    with torch.no_grad():
        first = layer.weight
        assert layer.weight is first  # not computed again
        torch.testing.assert_close(first.flatten(1).norm(dim=1), layer.weight_g.flatten().abs())
        layer.weight_g.mul_(2)
        torch.testing.assert_close(layer.weight, 2 * first)
    assert layer.weight.requires_grad


def test_the_head_is_that_of_concatenated_branches() -> None:
    net = network()
    progress = final(net, images())[-1]
    assert progress.solution is not None
    branches = net._branches(progress.solution.best, progress.features[0])
    size = branches[0].shape[2:]
    joined = torch.cat(
        [torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=True) for x in branches], 1
    )
    first = net.last_layer[0]
    with torch.inference_mode():
        expected = torch.nn.functional.conv2d(joined, first.weight, first.bias)
        torch.testing.assert_close(first(branches), expected, rtol=1e-4, atol=1e-4)


def test_once_converged_nothing_is_computed_and_the_exit_is_final() -> None:
    model = ReferenceExecutor(network(replace(TINY, decoded=(1, 4, 20), solver="plain"), contracts=True))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    assert isinstance(model.network, MdeqNet)
    model.network.fullstage.register_forward_hook(count)
    state = model.begin(tiny.image())
    found = [(index, state.latest()) for index in exits_of(model, [state])]
    assert [index for index, _ in found] == [1, 2, 3]
    assert [exit_.index for _, exit_ in found] == [1, 2, 2], "the second exit is final and stands for the third"
    first, second = found[0][1], found[1][1]
    assert not first.final and second.final and state.next_step == len(model.steps)
    counted = operations(TINY, *state.shape)
    assert 2 <= calls < 5 and counted.evaluation * calls < second.macs < counted.evaluation * (calls + 1)


def test_an_iterate_that_is_no_better_changes_nothing() -> None:
    net = network(replace(TINY, decoded=(1, 2, 3), first_step="published"))
    progress, decodings = net.start(images()), []
    for step in net.steps:
        with torch.inference_mode():
            progress = net.advance(progress, step)  # type: ignore[assignment]
        if isinstance(step, Decoding):
            decodings.append(progress)
    for before, after in pairwise(decodings):
        assert before.solution is not None and after.solution is not None
        better = bool(after.solution.lowest < before.solution.lowest)
        assert after.changed == better
        assert (after.scores is before.scores) == (not better)
    assert not all(progress.changed for progress in decodings), "one of them is no better"


def test_requests_in_turns_get_the_bits_of_requests_alone() -> None:
    model = ReferenceExecutor(network())
    pictures = [tiny.image(seed=seed) for seed in (0, 1)]
    alone = []
    for picture in pictures:
        state = model.begin(picture)
        alone.append([state.latest().scores for _ in exits_of(model, [state])])
    states = [model.begin(picture) for picture in pictures]
    for exit_index in exits_in_turns([(model, [state]) for state in states]):
        for state, scores in zip(states, alone, strict=True):
            assert torch.equal(state.latest().scores, scores[exit_index - 1])


def test_training_goes_through_every_iterate() -> None:
    net = network(replace(TINY, solver="plain", decoded=(1, 2))).train()
    first, second = net(images(2))
    assert not torch.equal(first, second)
    second.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    iterate = net.start(images(2))
    for step in net.steps[:3]:
        iterate = net.advance(iterate, step)  # type: ignore[assignment]
    assert iterate.solution is not None
    z = [torch.zeros_like(x) for x in net._branches(iterate.solution.best, iterate.features[0])]
    once = net.fullstage(z, iterate.features[0])
    torch.testing.assert_close(torch.cat([x.flatten(1) for x in once], 1), iterate.solution.best)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoded": (2, 2)}, "decoded is"),
        ({"decoded": ()}, "decoded is"),
        ({"groups": 3}, "groups is 3"),
        ({"channels": (5, 8, 16, 32)}, "channels has 5"),
        ({"task": "pose", "size": (64, 64)}, "task is pose"),
        ({"masking": tiny.SEGMENTATION.masking}, "no masks"),
    ],
)
def test_configurations_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_the_comparison_has_a_row_of_the_same_width() -> None:
    row = next(row for row in variants(named("camvid-adpc-w18")) if row.name == "mdeq")
    assert isinstance(row.model, MdeqConfig) and row.weights == "mdeq"
    assert row.model.channels == (18, 36, 72, 144) and row.model.groups == 6 and row.model.decoded == (2, 4, 6, 8)


# --- commands ---


def test_run_names_scores_by_iteration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_directory(tmp_path / "m", network())
    torch.save({}, tmp_path / "w.pth")
    tensor = tmp_path / "in.safetensors"
    save_file({"input": images()}, tensor)
    command = ["run", str(tmp_path / "m"), "--input", str(tensor), "--output", str(tmp_path / "o")]
    assert main([*command, "--iterates", "3,1"]) == 0
    found = load_file(tmp_path / "o")
    assert found.keys() == {"logits1", "logits3", "residuals"} and found["residuals"].shape == (4,)
    assert main([*command, "--iterates", "3", "--first-step", "published"]) == 0
    other = load_file(tmp_path / "o")
    assert other["residuals"][0] == found["residuals"][0] and other["residuals"][1] != found["residuals"][1]
    with pytest.raises(SystemExit):
        main([*command, "--iterates", "0"])
    assert "are not iterations" in capsys.readouterr().err
    adpc = ["run", "ee-w18-cityscapes", "--weights", str(tmp_path / "w.pth"), "--input", "x", "--output", "y"]
    assert main([*adpc, "--iterates", "1"]) == 1
    assert "is no MDEQ" in capsys.readouterr().err


def golden_state(scale: dict[str, float]) -> dict[str, Tensor]:
    """Every tensor of a released checkpoint, the copies of f and the class weights too."""
    sys.path.insert(0, str(GOLDEN))
    try:
        from mdeq_weights import mdeq_tensor_for  # type: ignore[import-not-found]  # noqa: PLC0415
    finally:
        sys.path.remove(str(GOLDEN))
    state = {}
    for line in (GOLDEN / "mdeq_small.keys.txt").read_text().splitlines():
        name, _, shape = line.removesuffix(" dropped").partition(" ")
        state[name] = torch.from_numpy(mdeq_tensor_for(name, json.loads(shape), scale))
    kept = {
        f"model.{name.removeprefix('model.')}": t
        for name, t in load_file(GOLDEN / "mdeq_small.state.safetensors").items()
    }
    return state | kept


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden cases are not part of the repository")
def test_the_golden_case(tmp_path: Path) -> None:
    about = json.loads((GOLDEN / "mdeq_small.json").read_text())
    torch.save(golden_state(about["scale"]), tmp_path / "w.pkl")
    io = GOLDEN / "mdeq_small.io.safetensors"
    expected = load_file(io)
    command = ["run", "mdeq-small-cityscapes", "--weights", str(tmp_path / "w.pkl"), "--input", str(io)]
    command += ["--output", str(tmp_path / "o"), "--iterates", ",".join(map(str, about["logits_iterations"]))]
    for options, case in ((["--first-step", "published"], about["other"]["first_step_minus_g0"]), ([], about)):
        assert main([*command, *options]) == 0
        found = load_file(tmp_path / "o")
        torch.testing.assert_close(found["residuals"], torch.tensor(case["residuals"]), rtol=1e-4, atol=0)
    for iteration in about["logits_iterations"]:
        wanted = expected[f"logits{iteration}"]
        assert (found[f"logits{iteration}"] - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden cases are not part of the repository")
def test_the_golden_case_that_converges(tmp_path: Path) -> None:
    about = json.loads((GOLDEN / "mdeq_small.json").read_text())["other"]["converges"]
    torch.save(golden_state(about["scale"]), tmp_path / "w.pth")
    net = build_network(replace(named("mdeq-small-cityscapes"), decoded=(27,)))  # type: ignore[call-arg]
    left_out = load_weights(net, tmp_path / "w.pth")
    keys = (GOLDEN / "mdeq_small.keys.txt").read_text().splitlines()
    assert set(left_out) == {line.split(" ")[0] for line in keys if line.endswith(" dropped")}
    assert isinstance(net, MdeqNet)
    inputs = load_file(GOLDEN / "mdeq_small.io.safetensors")
    (progress,) = final(net.eval(), inputs["input"])
    residuals = net.details(progress)["residuals"]
    assert len(residuals) - 1 == about["steps"]
    torch.testing.assert_close(residuals, torch.tensor(about["residuals"]), rtol=1e-3, atol=0)
