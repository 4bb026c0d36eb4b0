import pytest
import torch

from models.network.confidence import Masks, confidence, make_mask
from models.network.configs import Masking

SCORES = torch.randn(2, 5, 12, 16, generator=torch.Generator().manual_seed(0)) * 3


def test_confidence_is_the_largest_probability() -> None:
    torch.testing.assert_close(confidence(SCORES, "segmentation"), SCORES.softmax(1).amax(1, keepdim=True))
    assert torch.equal(confidence(SCORES, "pose"), SCORES.amax(1, keepdim=True))


def test_max_probability_is_inactive_above_the_threshold() -> None:
    mask = make_mask(SCORES, Masking("max_probability", 0.8), 1)
    assert torch.equal(mask, SCORES.softmax(1).amax(1, keepdim=True) <= 0.8)
    assert 0 < mask.float().mean() < 1


def test_a_pose_is_inactive_below_the_threshold() -> None:
    mask = make_mask(SCORES, Masking("max_score", 2.0), 1)
    assert torch.equal(mask, SCORES.amax(1, keepdim=True) >= 2.0)


def test_entropy_makes_certain_positions_inactive() -> None:
    probability = SCORES.softmax(1)
    entropy = -(probability * probability.log()).sum(1, keepdim=True)
    assert torch.equal(make_mask(SCORES, Masking("entropy", 0.5), 1), entropy >= 0.5)


def test_margin_makes_positions_inactive_where_one_class_leads() -> None:
    ordered = SCORES.softmax(1).sort(1, descending=True).values
    mask = make_mask(SCORES, Masking("margin", 0.5), 1)
    assert torch.equal(mask, ordered[:, :1] - ordered[:, 1:2] <= 0.5)
    assert 0 < mask.float().mean() < 1


@pytest.mark.parametrize(
    "masking",
    [
        Masking("max_probability", 0.5),
        Masking("max_score", 0.0),
        Masking("margin", 0.0),
        Masking("entropy", float(torch.tensor(2.0).log())),
    ],
)
def test_a_position_at_the_threshold_stays_active(masking: Masking) -> None:
    undecided = torch.zeros(1, 2, 1, 1)  # two classes, each of probability 1/2
    assert make_mask(undecided, masking, 1).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_top_k_makes_the_most_confident_share_of_each_image_inactive(share: float) -> None:
    mask = make_mask(SCORES, Masking("top_k", share), 1)
    assert torch.equal((~mask).sum((1, 2, 3)), torch.full((2,), round(share * 12 * 16)))
    sure = confidence(SCORES, "segmentation")
    if 0 < share < 1:
        for image in range(2):
            assert sure[image][~mask[image]].min() >= sure[image][mask[image]].max()


def test_random_masks_depend_on_exit_and_size_alone() -> None:
    masking = Masking("random", 0.4)
    first = make_mask(SCORES, masking, 1)
    assert torch.equal(first, make_mask(-SCORES, masking, 1))
    assert not torch.equal(first, make_mask(SCORES, masking, 2))
    assert abs(first.float().mean() - 0.6) < 0.1


def test_masks_take_the_nearest_position_at_coarser_sizes() -> None:
    finest = torch.rand(1, 1, 8, 12, generator=torch.Generator().manual_seed(1)) > 0.5
    mask = Masks(finest).at(torch.empty(1, 7, 4, 6))
    assert torch.equal(mask, finest[:, :, ::2, ::2].float())
