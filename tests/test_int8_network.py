"""Whole networks in eight bits against the same in plain integers."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from test_sparse import CONFIGS, SIZES, check_changing_batches, executors, masks, network
from torch import Tensor

from models.anytime import score_difference
from models.executors.cpu.executor import SparseExecutor, SparseState
from models.executors.cpu.isa import Isa
from models.executors.cpu.library import library
from models.executors.cpu.lowering import LoweredStep, Lowering
from models.executors.cpu.ops import Op
from models.executors.cpu.quantise import quantise
from models.executors.cpu.structures import OpKind
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import Frame
from models.imaging.preprocess import prepare
from models.network.adpc import AdpcNet
from models.network.named import Feature, NamedNetwork, feature_names
from models.network.network import Progress
from models.network.quantised import QuantisedNetwork
from models.quantisation import Scales

FLOAT = (
    "last_layer.3",
    "stage2.0.branches.1.0.conv2",
    "stage3.0.fuse_layers.0.1.0",
    "layer1.0.conv2",
    "exit2.1",
    "transition2.2.0.0",
)


class Ranges(NamedNetwork):
    """Notes the largest value of every feature."""

    def __init__(self, net: AdpcNet) -> None:
        super().__init__(net)
        self.largest: dict[str, float] = {}

    def feature(self, name: str, values: Tensor) -> Feature:
        self.largest[name] = max(self.largest.get(name, 1e-6), float(values.max()))
        return super().feature(name, values)


@cache
@torch.inference_mode()
def scales(name: str, float_layers: tuple[str, ...] = ()) -> Scales:
    """From the largest value of each feature."""
    ranges = Ranges(network(name))
    for seed in range(3):
        progress: Progress = ranges.start(prepare(tiny.image(seed=seed), ranges.config)[0])
        for step in ranges.steps:
            progress = ranges.advance(progress, step)
    return Scales("", {feature: value / 255 for feature, value in ranges.largest.items()}, float_layers)


@cache
def pair(name: str, float_layers: tuple[str, ...] = ()) -> tuple[SparseExecutor, ReferenceExecutor]:
    found = scales(name, float_layers)
    sparse = SparseExecutor(network(name), threads=2, scales=found)
    return sparse, ReferenceExecutor(network(name), scales=found)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("float_layers", [(), FLOAT], ids=["all", "some in float"])
def test_features_have_the_names_and_types_of_the_oracle(name: str, float_layers: tuple[str, ...]) -> None:
    paths = [path for path, _ in network(name).named_modules()]
    found = scales(name, tuple(layer for layer in float_layers if layer in paths))
    oracle, lowering = QuantisedNetwork(network(name), found), Lowering(network(name))
    lowered = quantise([lowering.lower(step) for step in lowering.network.steps], found, lowering.config)
    made = {op.target.name: op.target.scale for op in ops_of(lowered)}
    del made[None]
    assert set(made) == set(feature_names(network(name)))
    assert {feature: scale for feature, scale in made.items() if scale} == pytest.approx(oracle.stored)


def ops_of(lowered: list[LoweredStep]) -> list[Op]:
    return [op for step in lowered for phase in step.phases for loop in phase for op in loop.ops]


def test_scales_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="1 features of the scales are not in"):
        SparseExecutor(network("wide"), scales=Scales("", {"conv3": 1.0}))


def test_all_convolutions_are_quantised() -> None:
    lowering = Lowering(network("wide"))
    steps = quantise([lowering.lower(step) for step in network("wide").steps], scales("wide"), lowering.config)
    ops = ops_of(steps)
    floats = [op.convolution.name for op in ops if op.kind == OpKind.CONVOLVE and op.convolution is not None]
    assert floats == []
    assert sum(op.kind == OpKind.CONVOLVE_U8 for op in ops) > 50


def compare(
    name: str, seed: int, batch: int, *, shrinking: bool, float_layers: tuple[str, ...] = ()
) -> Iterator[float]:
    sparse, reference = pair(name, float_layers)
    random = np.random.default_rng(seed)
    shape = SIZES[random.integers(len(SIZES))]
    inputs = torch.from_numpy(random.standard_normal((batch, 1, 3, *shape)).astype(np.float32))
    given = [masks(shape[0] // 4, shape[1] // 4, random, shrinking=shrinking) for _ in range(batch)]
    states = [sparse.start(x, Frame(*shape)) for x in inputs]
    expected = [reference.start(x, Frame(*shape)) for x in inputs]
    for step in sparse.steps:
        sparse.advance(states)
        reference.advance(expected)
        if step.exit is None:
            continue
        for state, oracle, own in zip(states, expected, given, strict=True):
            assert state.exit is not None and oracle.exit is not None
            difference = (state.exit.scores - oracle.exit.scores).abs() / oracle.exit.scores.abs().max()
            # Where float32 rounds the other way at a tie, a feature moves by a step.
            assert difference.max() < 0.1, (seed, step)
            yield float(difference.mean())
            assert torch.equal(state.exit.decided, oracle.exit.decided)
            assert state.exit.macs == pytest.approx(oracle.exit.macs, rel=1e-6)
            if step.exit < 4:
                sparse.override(state, own[step.exit - 1], shrinking=shrinking)
                reference.override(oracle, own[step.exit - 1])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shrinking", [True, False], ids=["shrinking", "any"])
def test_any_masks_give_what_the_oracle_gives(name: str, shrinking: bool) -> None:
    found = [x for seed in range(6) for x in compare(name, seed, batch=1 + seed % 3 // 2, shrinking=shrinking)]
    assert max(found) < 0.01 and np.median(found) < 0.001


@pytest.mark.parametrize("name", ["wide", "plain heads", "deep"])
def test_layers_that_stay_in_float(name: str) -> None:
    found = [x for seed in range(6) for x in compare(name, seed, batch=1, shrinking=seed % 2 == 0, float_layers=FLOAT)]
    assert max(found) < 0.01


def test_only_what_is_listed_stays_in_float() -> None:
    lowering = Lowering(network("wide"))
    steps = quantise([lowering.lower(step) for step in network("wide").steps], scales("wide", FLOAT), lowering.config)
    ops = ops_of(steps)
    floats = {op.convolution.name for op in ops if op.kind == OpKind.CONVOLVE and op.convolution is not None}
    assert floats == set(FLOAT)


@pytest.mark.parametrize("isa", ["portable", "neon", "neondot", "avx2", "avxvnni", "avx512"])
def test_every_instruction_set_gives_the_same(isa: str) -> None:
    """But for the last bit of float32, which may move a rounding by a step."""
    if not library().kernels_find(isa.encode()):
        pytest.skip(f"this machine has no {isa} kernels")
    for name in ("wide", "pose"):
        state, best = (
            follow(SparseExecutor(network(name), threads=1, isa=which, scales=scales(name))) for which in (isa, None)
        )
        assert state.exit is not None and best.exit is not None
        assert score_difference(state.exit.scores, best.exit.scores) < 0.05


def test_the_environment_can_hide_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = "portable" if library().kernels_find(b"portable") else "neon"
    monkeypatch.setenv("ADPC_ISA", baseline)
    assert SparseExecutor(network("wide"), scales=scales("wide")).network.isa.name == baseline
    monkeypatch.setenv("ADPC_ISA", "mmx")
    with pytest.raises(ValueError, match="ADPC_ISA is mmx, and this machine has no mmx kernels; unset it"):
        SparseExecutor(network("wide"))
    with pytest.raises(ValueError, match="this machine has no sse kernels; leave the name out"):
        Isa.find("sse")


def test_an_empty_variable_hides_no_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADPC_ISA", raising=False)
    best = Isa.find()
    monkeypatch.setenv("ADPC_ISA", "")
    assert Isa.find() == best


def follow(sparse: SparseExecutor) -> SparseState:
    state = sparse.begin(tiny.image())
    for _ in sparse.steps:
        sparse.advance([state])
    return state


def test_eight_bits_are_close_to_float() -> None:
    sparse, _ = pair("wide")
    assert sparse.precision == "int8" and executors("wide")[0].precision == "fp32"
    found, expected = follow(sparse), follow(executors("wide")[0])
    assert found.exit is not None and expected.exit is not None
    assert 0 < score_difference(found.exit.scores, expected.exit.scores) < 0.2


def test_scales_that_name_nothing_leave_the_network_in_float() -> None:
    sparse = SparseExecutor(network("wide"), threads=2, scales=Scales("", {}))
    found, expected = follow(sparse), follow(executors("wide")[0])
    assert found.exit is not None and expected.exit is not None
    assert torch.equal(found.exit.scores, expected.exit.scores)


def test_requests_interleave_and_batches_change() -> None:
    sparse, _ = pair("segmentation")
    check_changing_batches(sparse)


def test_threads_do_not_change_a_bit() -> None:
    results = [
        follow(SparseExecutor(network("wide"), threads=threads, scales=scales("wide"))).exit for threads in (1, 2, 5)
    ]
    first = results[0]
    assert first is not None
    assert all(other is not None and torch.equal(first.scores, other.scores) for other in results[1:])


def test_memory_that_was_never_written_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for filling in (0x00, 0x7E, 0xFF):

        def filled(size: int, byte: int = filling) -> np.ndarray:
            memory = np.full(size + 128, byte, np.uint8)
            begin = -memory.ctypes.data % 64
            return memory[begin : begin + size]

        monkeypatch.setattr("models.executors.cpu.memory.empty", filled)
        monkeypatch.setattr("models.executors.cpu.network.empty", filled)
        sparse = SparseExecutor(network("wide"), threads=1, scales=scales("wide"))
        state = sparse.begin(tiny.image())
        random = np.random.default_rng(1)
        given = masks(16, 24, random, shrinking=True)
        for step in sparse.steps:
            sparse.advance([state])
            if step.exit is not None and step.exit < 4:
                sparse.override(state, given[step.exit - 1], shrinking=True)
        assert state.exit is not None
        found.append(state.exit.scores)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_features_take_a_quarter_of_the_memory() -> None:
    kept = []
    for chosen in (scales("wide"), None):
        sparse = SparseExecutor(network("wide"), threads=1, scales=chosen)
        state = sparse.begin(tiny.image(256, 256))
        for _ in sparse.steps[:2]:
            sparse.advance([state])
        kept.append(sum(buffer.size for buffer in state.progress.features.arrays))
    assert kept[0] == pytest.approx(kept[1] / 4, rel=0.01)


def test_phase_times_tell_of_every_phase() -> None:
    sparse = SparseExecutor(replaced := network("wide"), threads=2, scales=scales("wide"))
    sparse.network.phase_times = {}
    follow(sparse)
    for step in replaced.steps:
        assert len(sparse.network.phase_times[step]) == len(sparse.network.describe(step))
        assert (sparse.network.phase_times[step] > 0).all()
    assert sparse.network.describe(sparse.steps[0]) == [
        "convolve_u8 3x9->64 at level 1",
        "convolve_u8 9x64->64 at level 2",
    ]
