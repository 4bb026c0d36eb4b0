"""Losses and class weights, against figures worked out by hand."""

import pytest
import torch

from models.training import losses

VOID = 255


def test_class_weights_follow_the_formula_of_enet() -> None:
    """Shares 0.8 and 0.2: 1 / ln(1.9) = 1.557987 and 1 / ln(1.3) = 3.811494, divided by their mean 2.008689."""
    labels = torch.tensor([0] * 8 + [1] * 2 + [VOID] * 5)
    torch.testing.assert_close(
        losses.class_weights(labels, 2, VOID, softness=1.1), torch.tensor([0.775624, 1.897503]), atol=1e-5, rtol=0
    )


def test_a_class_that_is_never_labelled_weighs_most() -> None:
    """1 / ln(1.1 + 0) = 10.492059, divided by the same mean."""
    labels = torch.tensor([0] * 8 + [1] * 2)
    found = losses.class_weights(labels, 3, VOID, softness=1.1)
    assert found.tolist() == pytest.approx([0.775624, 1.897503, 5.223338], abs=1e-5)


def test_class_weights_count_every_label_map() -> None:
    """130 maps of one pixel: 64 of class 0, 66 of class 1; shares 0.492308 and 0.507692, softness 1.05."""
    labels = torch.tensor([0] * 64 + [1] * 66, dtype=torch.uint8).view(130, 1, 1)
    found = losses.class_weights(labels, 2, VOID, softness=1.05)
    assert found.tolist() == pytest.approx([1.011501, 0.988848], abs=1e-5)


def test_cross_entropy_is_weighted_and_leaves_out_void() -> None:
    """Probabilities 1/4 and 3/4; one pixel of class 0 (weight 3), two of class 1 (weight 1), one void:
    (3 ln 4 + 2 ln 4/3) / (3 + 1 + 1) = 0.946849. Equal logits give ln 2, whatever the weights."""
    labels = torch.tensor([[[0, 1], [1, VOID]]])
    sure = torch.tensor([0.0, 1.098612]).view(1, 2, 1, 1)
    found = losses.segmentation([sure, torch.zeros(1, 2, 1, 1)], labels, torch.tensor([3.0, 1.0]), VOID)
    assert found.tolist() == pytest.approx([0.946849, 0.693147], abs=1e-5)


def test_logits_are_upsampled_bilinearly_to_the_labels() -> None:
    """The second class's lead over the first is 0 and 4 at two positions, so 0, 1, 3, 4 at four pixels. All are of the
    second: the mean of ln(1 + exp(-lead)) is (0.693147 + 0.313262 + 0.048587 + 0.018150) / 4."""
    logits = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    found = losses.segmentation([logits], torch.ones(1, 1, 4, dtype=torch.int64), torch.ones(2), VOID)
    assert found.tolist() == pytest.approx([0.268287], abs=1e-5)


def test_a_target_is_a_gaussian_of_height_1_around_the_joint() -> None:
    """At x = 42, y = 20 of the input: 10.5 and 5 in positions of 4 pixels. Standard deviation 2 positions."""
    (target,) = losses.heatmaps(torch.tensor([[[42.0, 20.0, 1.0]]]), (12, 20), stride=4, sigma=2.0)[0]
    assert target.shape == (12, 20)
    assert target[5, 10] == target[5, 11] == target.max()
    assert target[5, 10].item() == pytest.approx(0.969233, abs=1e-6)  # exp(-0.5^2 / 8)
    assert target[7, 10].item() == pytest.approx(0.587870, abs=1e-6)  # exp(-(0.5^2 + 2^2) / 8)
    assert target[5, 16].item() == pytest.approx(0.022794, abs=1e-6)  # exp(-5.5^2 / 8), within 3 deviations
    assert target[5, 17] == target[11, 11] == 0  # 6.5 and 6.02 positions away
    assert losses.heatmaps(torch.tensor([[[40.0, 20.0, 1.0]]]), (12, 20), stride=4, sigma=2.0).max() == 1


def test_the_error_of_heatmaps_by_hand() -> None:
    """Three positions; the joint is at the first, so the target is 1, exp(-1/2), exp(-2) there with deviation 1.

    Found 0, 0, -1: (1 + 0.367879 + 1.288986) / 3. Found twice the target: the sum of the target's squares, 1.386195,
    over 3. The losses are in the order of the exits.
    """
    joints = torch.tensor([[[0.0, 0.0, 1.0]]])
    target = losses.heatmaps(joints, (1, 3), 4, 1.0)
    below = torch.tensor([0.0, 0.0, -1.0]).view(1, 1, 1, 3)
    found = losses.pose([below, 2 * target, target], joints, 4, 1.0)
    assert found.tolist() == pytest.approx([0.885622, 0.462065, 0.0], abs=1e-5)


def test_joints_without_a_label_do_not_count_and_share_the_mean() -> None:
    """As above, beside a second joint without a label and any heatmap: half the mean."""
    joints = torch.tensor([[[0.0, 0.0, 1.0], [8.0, 0.0, 0.0]]])
    found = torch.tensor([[[[0.0, 0.0, -1.0]], [[7.0, -7.0, 7.0]]]])
    assert losses.pose([found], joints, 4, 1.0).tolist() == pytest.approx([0.885622 / 2], abs=1e-5)


def test_background_below_0_is_no_error_and_above_0_is_one() -> None:
    """The joint is far outside: the target is 0 at both positions. Found -3 and 1: (0 + 1) / 2."""
    joints = torch.tensor([[[400.0, 0.0, 1.0]]])
    found = torch.tensor([-3.0, 1.0]).view(1, 1, 1, 2)
    assert losses.pose([found], joints, 4, 1.0).tolist() == [0.5]


def test_every_exit_but_the_last_learns_from_the_last_one_s_probabilities() -> None:
    """The teacher's probabilities are 1/4 and 3/4. An exit with 1/2 and 1/2 has the cross-entropy ln 2; one with the
    teacher's has the entropy (ln 4) / 4 + 3 (ln 4/3) / 4 = 0.562335. The last exit has no such loss."""
    taught = torch.tensor([0.0, 1.098612]).view(1, 2, 1, 1)
    scores = [torch.zeros(1, 2, 1, 1), taught.clone(), torch.zeros(1, 2, 1, 1)]
    assert losses.distilled_segmentation(scores, taught).tolist() == pytest.approx([0.693147, 0.562335, 0], abs=1e-6)


def test_every_exit_but_the_last_learns_from_the_last_one_s_heatmaps() -> None:
    """The teacher's values are 0.5, 0 and -1, which counts as 0. An exit with 0.25, 1, -3: (0.0625 + 1 + 0) / 3."""
    taught = torch.tensor([0.5, 0.0, -1.0]).view(1, 1, 1, 3)
    found = torch.tensor([0.25, 1.0, -3.0]).view(1, 1, 1, 3)
    assert losses.distilled_pose([found, found], taught).tolist() == pytest.approx([1.0625 / 3, 0])
