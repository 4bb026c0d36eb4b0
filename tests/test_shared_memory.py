import os
from collections.abc import Iterator

import numpy as np
import pytest

from server.engine.shared_memory import Arena, Layout, attach


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(4096)
    yield arena
    arena.close()


def test_blocks_never_overlap_and_all_comes_back(arena: Arena) -> None:
    rng = np.random.default_rng(0)
    taken: dict[int, int] = {}
    for _ in range(500):
        if taken and rng.random() < 0.5:
            offset = int(rng.choice(list(taken)))
            arena.give(offset, taken.pop(offset))
        else:
            size = int(rng.integers(1, 600))
            offset = arena.take(size)
            if offset is not None:
                assert all(offset + size <= other or other + length <= offset for other, length in taken.items())
                assert offset + size <= 4096
                taken[offset] = size
        assert arena.taken_bytes == sum(taken.values())
    for offset, size in taken.items():
        arena.give(offset, size)
    assert arena.take(4096) == 0


def test_a_full_arena_says_so(arena: Arena) -> None:
    assert arena.take(4000) == 0
    assert arena.take(97) is None
    assert arena.take(96) == 4000


def test_the_lowest_gap_is_used_again(arena: Arena) -> None:
    first, _ = arena.take(100), arena.take(100)
    assert first is not None
    arena.give(first, 100)
    assert arena.take(60) == first


def test_another_mapping_sees_the_same_bytes(arena: Arena) -> None:
    other = attach(os.dup(arena.fd), 4096)
    arena.view[7] = 42
    assert other[7] == 42
    other[8] = 43
    assert arena.view[8] == 43


@pytest.mark.parametrize(
    "layout", [Layout(7, 5, 4), Layout(7, 5, 4, extra=True), Layout(7, 5, 4, joints=16, extra=True)]
)
def test_every_array_has_a_place_of_its_own(layout: Layout) -> None:
    block = memoryview(bytearray(layout.total_bytes))
    arrays: list[np.ndarray] = [layout.image(block)]
    for exit_index in range(1, 5):
        arrays.append(layout.keypoints(block, exit_index) if layout.joints else layout.labels(block, exit_index))
        if layout.extra:
            arrays.append(layout.extra_map(block, exit_index))
    for value, array in enumerate(arrays):
        array[:] = value
    for value, array in enumerate(arrays):
        assert (array == value).all()
    assert arrays[0].shape == (7, 5, 3)
    assert arrays[1].shape == ((16, 3) if layout.joints else (7, 5))
