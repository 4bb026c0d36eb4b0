import numpy as np
import pytest

from models.imaging.geometry import Box
from server.errors import InvalidError
from server.requests.region import CONTEXT_PX, find_region


@pytest.mark.parametrize(
    ("roi", "answered", "computed"),
    [
        ((100, 80, 50, 40), (80, 120, 100, 150), (48, 150, 68, 182)),
        ((0.5, 0.5, 9, 9), (0, 10, 0, 10), (0, 42, 0, 42)),
        ((-10, -20, 30, 40), (0, 20, 0, 20), (0, 52, 0, 52)),
        ((190, 140, 500, 500), (140, 150, 190, 200), (108, 150, 158, 200)),
        ((0, 0, 200, 150), (0, 150, 0, 200), (0, 150, 0, 200)),
    ],
)
def test_a_region_and_its_rim(roi: Box, answered: tuple[int, ...], computed: tuple[int, ...]) -> None:
    assert CONTEXT_PX == 32
    found = find_region(roi, 150, 200)
    for (rows, columns), (top, bottom, left, right) in ((found.answered, answered), (found.computed, computed)):
        assert (rows.start, rows.stop, columns.start, columns.stop) == (top, bottom, left, right)
    image = np.arange(150 * 200).reshape(150, 200)
    assert image[found.computed].shape == found.size
    assert (image[found.computed][found.within] == image[found.answered]).all()


@pytest.mark.parametrize("roi", [(200, 0, 5, 5), (0, 150, 5, 5), (-9, 0, 5, 5), (0, -9.5, 5, 9)])
def test_a_region_outside_the_image_is_refused(roi: Box) -> None:
    with pytest.raises(InvalidError, match="lies outside the image, which is 200x150") as caught:
        find_region(roi, 150, 200)
    assert caught.value.code == "bad_roi"
