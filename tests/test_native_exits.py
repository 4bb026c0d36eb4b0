"""Label maps and masks of the native code against those of torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.executors.cpu import exits
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging import postprocess
from models.imaging.geometry import Frame
from models.network import confidence
from models.network.configs import Masking

POOL = ThreadPool(3)


def native_labels(scores: Tensor, frame: Frame) -> NDArray[np.uint8]:
    out = np.full((frame.height, frame.width), 255, np.uint8)
    for _ in exits.labels(POOL, in_rows(scores), frame, out):
        pass
    return out


def torch_labels(scores: Tensor, frame: Frame) -> NDArray[np.uint8]:
    out = np.empty((frame.height, frame.width), np.uint8)
    for _ in postprocess.labels(scores, frame, out):
        pass
    return out


def next_mask(
    scores: Tensor,
    masking: Masking,
    active: NDArray[np.bool_] | None = None,
    before: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    pieces = exits.next_mask(POOL, in_rows(scores), masking, 1, active=active, before=before)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return np.asarray(end.value)


def in_rows(scores: Tensor) -> Tensor:
    """The same (C, h, w), the classes of a position side by side and the rows padded with what must not be read."""
    classes, height, width = scores.shape
    rows = torch.full((height * width, -(-classes // 8) * 8), 1e30)
    rows[:, :classes] = scores.permute(1, 2, 0).reshape(-1, classes)
    return rows[:, :classes].view(height, width, classes).permute(2, 0, 1)


@pytest.mark.parametrize("classes, size, image", [
    (11, (24, 32), (96, 128)),
    (19, (8, 16), (29, 61)),  # cut inside a cell
    (3, (16, 8), (61, 30)),
    (7, (6, 13), (24, 52)),  # no multiple of four positions
    (2, (8, 8), (1, 1)),
    (1, (8, 8), (32, 32)),
    (200, (8, 8), (32, 32)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["noise", "regions"])
def test_labels_are_torchs(
    classes: int, size: tuple[int, int], image: tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(classes)
    scores = torch.randn(classes, *size, generator=random)
    if kind == "regions":  # most positions agree with their neighbours
        coarse = torch.randn(1, classes, size[0] // 4, size[1] // 4, generator=random)
        scores = F.interpolate(coarse, size, mode="nearest")[0] * 5 + scores * 0.1
    frame = Frame(*image)
    expected = torch_labels(scores, frame)
    assert np.array_equal(native_labels(scores, frame), expected)
    monkeypatch.setattr("models.imaging.geometry.BAND_PX", 1)  # every line is a band
    assert np.array_equal(native_labels(scores, frame), expected)


def test_the_first_of_equal_classes_is_taken() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0]).view(3, 1, 1).expand(3, 8, 8)
    assert (native_labels(scores, Frame(32, 32)) == 1).all()


MAX_PROBABILITIES = [Masking("max_probability", threshold) for threshold in (0.4, 0.9, 0.998)]


@pytest.mark.parametrize(
    "masking",
    [*MAX_PROBABILITIES, Masking("max_score", 4.0), Masking("entropy", 0.5), Masking("top_k", 0.3)],
    ids=lambda found: f"{found.criterion} {found.threshold}",
)
@pytest.mark.parametrize("classes", [3, 5, 8, 19])
def test_the_positions_that_stay_active_are_torchs(
    masking: Masking, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(classes, 24, 41, generator=torch.Generator().manual_seed(0)) * 3
    scores[-1, :4] += 100  # far beyond what exp can tell apart
    scores[:, 4] = scores[:, 4].sort(0).values  # the largest come last
    scores[0, 5] = scores[-1, 5] = 9  # equal ones
    expected = confidence.make_mask(scores[None], masking, 1)[0, 0].numpy()
    assert 0 < expected.mean() < 1
    assert np.array_equal(next_mask(scores, masking), expected)
    monkeypatch.setattr("models.imaging.geometry.BAND_PX", 1)  # every line is a band
    assert np.array_equal(next_mask(scores, masking), expected)


def test_inactive_positions_keep_their_mask() -> None:
    scores = torch.zeros(2, 8, 8)  # no class is likelier than another
    active, before = np.zeros((2, 8, 8), bool)
    active[3, 4] = before[0, 0] = True
    found = next_mask(scores, Masking("max_probability", 0.9), active, before)
    assert [tuple(at) for at in np.argwhere(found)] == [(0, 0), (3, 4)]
    assert before.sum() == 1
