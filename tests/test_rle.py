import numpy as np
import pytest

from server.protocols.rle import class_runs, compress_runs


def decoded(counts: str, height: int, width: int) -> np.ndarray:
    """What `pycocotools.mask.decode` makes of it, in plain Python."""
    lengths: list[int] = []
    characters = iter(counts.encode("ascii"))
    for first in characters:
        number, shift, character = 0, 0, first - 48
        while True:
            number |= (character & 31) << shift
            shift += 5
            if not character & 32:
                break
            character = next(characters) - 48
        if character & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T == 1


@pytest.mark.parametrize(("height", "width", "scale"), [(1, 1, 1), (7, 1, 1), (1, 9, 3), (33, 47, 1), (6, 9, 40)])
def test_every_class_is_found_again(height: int, width: int, scale: int) -> None:
    coarse = np.random.default_rng(0).integers(0, 4, (height, width), dtype=np.uint8)
    labels = np.kron(coarse, np.ones((scale, scale), np.uint8))
    found = dict(class_runs(labels))
    assert list(found) == np.unique(labels).tolist()
    for number, counts in found.items():
        assert (decoded(counts, *labels.shape) == (labels == number)).all()


def test_the_characters_are_those_of_pycocotools() -> None:
    labels = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    assert dict(class_runs(labels)) == {0: "0140", 1: "21100", 2: "11101"}


@pytest.mark.parametrize(
    ("lengths", "text"),
    [([0], "0"), ([15, 16, 17], "?`0a0"), ([0, 1000, 5, 3, 70000], "0Xo05kPO[[T2"), ([1 << 31], "PPPPPP2")],
)
def test_long_and_falling_lengths(lengths: list[int], text: str) -> None:
    assert compress_runs(np.array(lengths)) == text
