import io
import zlib

import numpy as np
import pytest
from PIL import Image

from server.catalog import palette_bytes
from server.protocols import encoder

PALETTE = ((128, 128, 128), (128, 64, 128))


def labels(seed: int, height: int = 33, width: int = 47) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 5, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])


def test_a_png_holds_the_labels_and_the_colours() -> None:
    values = labels(0)
    image = Image.open(io.BytesIO(encoder.png(values, palette_bytes(PALETTE, 5))))
    assert image.mode == "P" and (np.asarray(image) == values).all()
    colours = np.asarray(image.convert("RGB"))
    assert tuple(colours[values == 1][0]) == PALETTE[1]


def test_a_png_without_palette_is_grey() -> None:
    values = labels(0)
    image = Image.open(io.BytesIO(encoder.png(values)))
    assert image.mode == "L" and (np.asarray(image) == values).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 7)])
@pytest.mark.parametrize("palette", [None, bytes(range(255))])
def test_a_png_of_any_size_holds_all_values(size: tuple[int, int], palette: bytes | None) -> None:
    values = np.random.default_rng(0).integers(0, 85, size, dtype=np.uint8)
    with Image.open(io.BytesIO(encoder.png(values, palette))) as image:
        image.verify()  # checksums
    assert (np.asarray(Image.open(io.BytesIO(encoder.png(values, palette)))) == values).all()


def test_deltas_give_the_raw_map_whatever_was_skipped() -> None:
    maps = [labels(seed) for seed in range(4)]
    held = np.zeros_like(maps[0])
    for before, after in ((None, 0), (0, 2), (2, 2), (2, 3)):
        data = encoder.delta(maps[after], None if before is None else maps[before])
        held ^= np.frombuffer(zlib.decompress(data), np.uint8).reshape(held.shape)
        assert (held == maps[after]).all()


def test_a_delta_of_little_is_little() -> None:
    before = labels(0, 360, 480)
    after = before.copy()
    after[100:110, 200:230] += 1
    assert len(encoder.delta(after, before)) < 300 < len(encoder.delta(after, None))


def test_views_are_encoded_as_they_look() -> None:
    values = labels(0)[::2, ::2]
    assert zlib.decompress(encoder.delta(values, None)) == values.tobytes()


@pytest.mark.parametrize("value", [0.1, 1e-7, 123.25])
def test_keypoints_read_back_as_the_same_floats(value: float) -> None:
    array = np.full((2, 3), value, np.float32)
    assert (np.array(encoder.keypoints(array), np.float32) == array).all()
