"""Sizes and places in images."""

import pytest

from models.imaging.geometry import Box, padded_px, padded_size, person_square


@pytest.mark.parametrize(("size", "padded"), [((32, 64), (32, 64)), ((1, 33), (32, 64)), ((96, 95), (96, 96))])
def test_sides_are_padded_to_multiples_of_32(size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert padded_size(*size) == padded
    assert padded_px(*size) == padded[0] * padded[1]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 0, 10), "box is 0,0,0,10; width and height must be at least 1"),
        ((0, 0, float("nan"), 5), "box is 0,0,nan,5; width and height must be at least 1"),
        ((300, 0, 10, 10), "box is 300,0,10,10, outside of the 200x100 image"),
        ((-20, 0, 10, 10), "outside of the 200x100 image"),
        ((-10, 0, 10, 10), "outside of the 200x100 image"),  # it only touches the edge
        ((200, 0, 10, 10), "outside of the 200x100 image"),
        ((0, float("nan"), 10, 10), "outside of the 200x100 image"),
    ],
)
def test_boxes_without_pixels_are_refused(box: Box, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        person_square(100, 200, box)


def test_a_box_much_larger_than_the_image_is_refused() -> None:
    assert person_square(100, 200, (-50, 0, 600, 10)) == (-125, -370, 750)
    for side in (601, 1e9, float("inf")):
        with pytest.raises(ValueError, match=r"wide and 10 high, the image 200x100; the limit is 600"):
            person_square(100, 200, (0, 0, side, 10))
