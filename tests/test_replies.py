import io
import math
import zlib

import numpy as np
import pytest
from PIL import Image

from server.catalog import palette_bytes
from server.protocols import replies

PALETTE = ((128, 128, 128), (128, 64, 128))


def labels(seed: int, height: int = 33, width: int = 47) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 5, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])


def test_a_png_holds_the_labels_and_the_colours() -> None:
    values = labels(0)
    image = Image.open(io.BytesIO(replies.png(values, palette_bytes(PALETTE, 5))))
    assert image.mode == "P" and (np.asarray(image) == values).all()
    colours = np.asarray(image.convert("RGB"))
    assert tuple(colours[values == 1][0]) == PALETTE[1]


def test_a_png_without_palette_is_grey() -> None:
    values = labels(0)
    image = Image.open(io.BytesIO(replies.png(values)))
    assert image.mode == "L" and (np.asarray(image) == values).all()


def test_classes_without_a_colour_get_different_ones() -> None:
    assert palette_bytes(PALETTE, 2) == bytes(value for colour in PALETTE for value in colour)
    colours = palette_bytes((), 256)
    assert len({colours[3 * index : 3 * index + 3] for index in range(256)}) == 256
    assert colours[3:12] == bytes([128, 0, 0, 0, 128, 0, 128, 128, 0])  # PASCAL VOC's first ones


def test_deltas_give_the_raw_map_whatever_was_skipped() -> None:
    maps = [labels(seed) for seed in range(4)]
    held = np.zeros_like(maps[0])
    for before, after in ((None, 0), (0, 2), (2, 2), (2, 3)):
        data = replies.delta(maps[after], None if before is None else maps[before])
        held ^= np.frombuffer(zlib.decompress(data), np.uint8).reshape(held.shape)
        assert (held == maps[after]).all()


def test_a_delta_of_little_is_little() -> None:
    before = labels(0, 360, 480)
    after = before.copy()
    after[100:110, 200:230] += 1
    assert len(replies.delta(after, before)) < 300 < len(replies.delta(after, None))


def test_views_are_encoded_as_they_look() -> None:
    values = labels(0)[::2, ::2]
    assert zlib.decompress(replies.delta(values, None)) == values.tobytes()


@pytest.mark.parametrize("value", [0.1, 1e-7, 123.25])
def test_keypoints_read_back_as_the_same_floats(value: float) -> None:
    array = np.full((2, 3), value, np.float32)
    assert (np.array(replies.keypoints(array), np.float32) == array).all()


def test_replies_are_strict_json() -> None:
    assert replies.to_json({"a": ["ü", None, 1.5]}) == b'{"a":["\\u00fc",null,1.5]}'
    assert replies.to_json({"id": "\ud800"}) == b'{"id":"\\ud800"}'  # half a character, which a client may well send
    with pytest.raises(ValueError, match="JSON"):
        replies.to_json({"a": math.nan})
