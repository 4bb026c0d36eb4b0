from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from models.anytime import Exit, Overridable, exits_in_turns, exits_of, run
from models.executors.reference import ReferenceExecutor
from models.executors.selection import build
from models.imaging.geometry import Frame
from models.network.adpc_configs import AdpcConfig
from models.network.configs import Masking
from models.network.flops import gmacs

BASES = [tiny.SEGMENTATION, tiny.POSE]


def exits(model: ReferenceExecutor, seeds: list[int]) -> list[list[Exit]]:
    """The exits of several images that advance as one batch."""
    states = [model.begin(tiny.image(seed=seed)) for seed in seeds]
    by_exit = [[state.latest() for state in states] for _ in exits_of(model, states)]
    return [list(found) for found in zip(*by_exit, strict=True)]


@pytest.mark.parametrize("base", BASES, ids=["segmentation", "pose"])
@pytest.mark.parametrize("masked", [True, False])
def test_steps_give_what_the_network_gives(base: AdpcConfig, masked: bool) -> None:
    network = tiny.network(base if masked else replace(base, masking=None))
    model = ReferenceExecutor(network)
    state = model.begin(tiny.image())
    with torch.no_grad():
        expected = network(state.progress.features[0])
    for found, scores in zip(exits(model, [0])[0], expected, strict=True):
        torch.testing.assert_close(found.scores, scores[0])


@pytest.mark.parametrize("base", BASES, ids=["segmentation", "pose"])
def test_a_batch_gives_what_single_requests_give(base: AdpcConfig) -> None:
    model = ReferenceExecutor(tiny.network(base))
    for batched, seed in zip(exits(model, [0, 1, 2]), range(3), strict=True):
        for one, other in zip(batched, exits(model, [seed])[0], strict=True):
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-4)
            assert one.macs == pytest.approx(other.macs, rel=0.02)  # rounding may flip single positions
            assert one.active_share == pytest.approx(other.active_share, abs=0.02)


def test_requests_interleave_without_touching_each_other() -> None:
    model = ReferenceExecutor(tiny.network())
    alone = [exit_map.array for _, exit_map in run(model, tiny.image(seed=3))]
    first, second = model.begin(tiny.image(seed=3)), model.begin(tiny.image(40, 70, seed=4))
    maps = [model.render(first).array for _ in exits_in_turns([(model, [first]), (model, [second])])]
    assert all(np.array_equal(one, other) for one, other in zip(maps, alone, strict=True))


def test_operations_are_the_papers() -> None:
    dense = ReferenceExecutor(tiny.network(replace(tiny.SEGMENTATION, masking=None)))
    for found, expected in zip(exits(dense, [0])[0], gmacs(tiny.SEGMENTATION, 64, 96), strict=True):
        assert found.macs == pytest.approx(expected * 1024**3)
    masked = exits(ReferenceExecutor(tiny.network()), [0])[0]
    assert masked[0].macs == exits(dense, [0])[0][0].macs
    assert masked[3].macs < exits(dense, [0])[0][3].macs


def test_the_active_share_leaves_the_padding_out() -> None:
    model = ReferenceExecutor(tiny.network(replace(tiny.SEGMENTATION, masking=Masking("max_probability", 1.0))))
    state = model.begin(tiny.image(33, 33))
    for _ in model.steps[:3]:
        model.advance([state])
    assert state.exit is not None
    assert state.exit.active_share == 1
    assert state.exit.mask.shape == (16, 16)


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (31, 33), (64, 96)])
def test_maps_have_the_images_size(size: tuple[int, int]) -> None:
    model = ReferenceExecutor(tiny.network())
    for _, exit_map in run(model, tiny.image(*size)):
        assert exit_map.array.shape == size


def test_wrong_batches_are_refused() -> None:
    model = ReferenceExecutor(tiny.network())
    ahead, behind = model.begin(tiny.image()), model.begin(tiny.image())
    with pytest.raises(ValueError, match="no exit is finished"):
        model.render(ahead)
    model.advance([ahead])
    with pytest.raises(ValueError, match="2 different steps"):
        model.advance([ahead, behind])
    with pytest.raises(ValueError, match="shapes"):
        model.advance([behind, model.begin(tiny.image(20, 20))])
    for _ in model.steps[1:]:
        model.advance([ahead])
    with pytest.raises(ValueError, match="finished"):
        model.advance([ahead])


@pytest.mark.parametrize("executor", ["reference", "sparse"])
def test_a_state_that_is_given_twice_is_refused_and_advances_later(executor: str) -> None:
    model = build(tiny.network(), executor=executor)
    once, other = model.begin(tiny.image()), model.begin(tiny.image())
    with pytest.raises(ValueError, match="a state is given twice in a batch of 3 states; give each state once"):
        model.advance([once, other, once])
    assert once.next_step == other.next_step == 0
    assert model.advance([once, other]) and once.next_step == 1


def test_inputs_and_states_of_others_are_refused() -> None:
    model = build(tiny.network(), executor="reference")
    with pytest.raises(ValueError, match=r"the input is \(2, 3, 32, 32\); it must be \(1, 3, H, W\)"):
        model.start(torch.zeros(2, 3, 32, 32), Frame(32, 32))
    with pytest.raises(TypeError, match="a state is SparseState, not ReferenceState"):
        model.advance([build(tiny.network(), executor="sparse").begin(tiny.image())])


@pytest.mark.parametrize("executor", ["reference", "sparse"])
def test_masks_of_a_wrong_shape_or_dtype_and_masks_of_no_exit_are_refused(executor: str) -> None:
    model = build(tiny.network(), executor=executor)
    assert isinstance(model, Overridable)
    state = model.begin(tiny.image())
    with pytest.raises(ValueError, match="no exit is finished after 0 steps"):
        model.override(state, torch.ones(16, 24).bool())
    next(exits_of(model, [state]))
    for mask in (torch.ones(16, 25).bool(), torch.ones(1, 1, 16, 24).bool(), torch.ones(16, 24)):
        with pytest.raises(ValueError, match=r"the mask is torch.* it must be bool of \(16, 24\)"):
            model.override(state, mask)
    model.override(state, torch.ones(16, 24).bool())
