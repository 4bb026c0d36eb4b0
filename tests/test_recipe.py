"""The learning rate and the phases of a recipe, against figures worked out by hand."""

import pytest

from models.training.recipe import Phase, Recipe


def recipe(warm_up: float) -> Recipe:
    phases = (Phase(50, 4, (32, 32), (1.0, 1.0)), Phase(150, 2, (32, 32), (1.0, 1.0)))
    return Recipe(splits=("train",), phases=phases, learning_rate=0.008, warm_up=warm_up)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0004),  # 1/20 of the way up, and all of the cosine
        (9, 0.003980047),  # half of the way up; (1 + cos(9 pi / 200)) / 2 = 0.995012
        (19, 0.007823172),  # all of the way up; (1 + cos(19 pi / 200)) / 2 = 0.977890
        (50, 0.006828427),  # (1 + cos(pi / 4)) / 2 = 0.853553
        (100, 0.004),
        (150, 0.001171573),
        (200, 0.0),
    ],
)
def test_the_rate_rises_linearly_and_falls_along_a_cosine(step: int, rate: float) -> None:
    """200 steps, 20 of them warm-up, up to 0.008."""
    assert recipe(warm_up=0.1).learning_rate_at(step) == pytest.approx(rate, abs=1e-8)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert recipe(warm_up=0.0).learning_rate_at(0) == 0.008


def test_phases_and_the_images_before_them() -> None:
    found = recipe(warm_up=0.0)
    assert found.steps == 200
    assert [found.phase_at(step).batch for step in (0, 49, 50, 199)] == [4, 4, 2, 2]
    assert [found.images_before(step) for step in (0, 1, 50, 51, 200)] == [0, 4, 200, 202, 500]
