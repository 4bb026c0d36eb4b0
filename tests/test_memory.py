import os
from collections.abc import Iterator

import numpy as np
import pytest

from server.engine.shared_memory import Arena, attach


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
