import asyncio
import io
import struct
from collections.abc import AsyncIterator

import live
import numpy as np
import pytest
import tiny
from PIL import Image

from server.errors import InvalidError, NotAnImageError, TooLargeError, TooManyRequestsError
from server.requests.admission import ClientLimit, decode, read_body

MANY = 10**9


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
def test_the_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(encoded(Image.fromarray(tiny.image()), kind, **options), MANY)
    assert found.shape == (60, 90, 3) and found.dtype == np.uint8
    assert kind == "JPEG" or (found == tiny.image()).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(tiny.image()).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    found = decode(encoded(image, kind), MANY)
    assert found.shape == (60, 90, 3)
    if mode in ("L", "P", "1"):
        assert (found == np.asarray(image.convert("RGB"))).all()


def test_sixteen_bits_are_scaled() -> None:
    grey = np.linspace(0, 65535, 90, dtype=np.uint16)[None].repeat(60, 0)
    found = decode(encoded(Image.fromarray(grey)), MANY)
    assert np.abs(found[0, :, 0] - grey[0] / 257).max() <= 0.5


def test_photos_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees
    found = decode(encoded(Image.fromarray(tiny.image()), exif=exif), MANY)
    assert (found == np.rot90(tiny.image(), -1)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", [0x011A, 0x0213, 0x0112])
def test_text_in_a_tag_for_numbers_does_not_spoil_the_pixels(kind: str, tag: int) -> None:
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    exif = head + struct.pack("<HHII", 0x0112, 3, 1, 3) + struct.pack("<HHI4s", tag, 2, 4, b"up!\0") + bytes(4)
    found = decode(encoded(Image.new("RGB", (8, 6), (250, 0, 0)), kind, exif=exif), MANY)
    assert found.shape == (6, 8, 3) and found[..., 0].min() > 200


def test_what_is_no_image_and_what_is_broken() -> None:
    with pytest.raises(NotAnImageError, match="12 bytes"):
        decode(b"hello, world", MANY)
    with pytest.raises(NotAnImageError):
        decode(encoded(Image.fromarray(tiny.image()), "GIF"), MANY)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = encoded(Image.fromarray(tiny.image()), kind)
        with pytest.raises((InvalidError, NotAnImageError)):
            decode(whole[: len(whole) // 2], MANY)


def test_a_jpeg_of_many_scans_is_not_decoded() -> None:
    whole = encoded(Image.fromarray(tiny.image()), "JPEG", progressive=True)
    assert decode(whole, MANY).shape == tiny.image().shape
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidError, match=r"in 1,0.. scans, .*; the limit is 64: save it anew"):
        decode(whole[:-2] + 1000 * scan + whole[-2:], MANY)


def test_bytes_that_were_damaged_never_get_through_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = encoded(Image.fromarray(tiny.image()), kind)
        for _ in range(50):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 5):
                damaged[position] = rng.integers(256)
            try:
                decode(bytes(damaged), 10**6)
            except (InvalidError, NotAnImageError, TooLargeError):
                continue


def test_pixels_are_counted_after_padding() -> None:
    assert decode(live.photo(33, 33), 64 * 64).shape == (33, 33, 3)
    with pytest.raises(TooLargeError, match=r"33x33, which is 4,096 pixels .* limit is 4,095"):
        decode(live.photo(33, 33), 64 * 64 - 1)
    with pytest.raises(TooLargeError):
        decode(live.photo(1, 300), 1 * 300)


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    assert asyncio.run(read_body(chunks(3, 4), None, 7)) == b"x" * 7
    with pytest.raises(TooLargeError, match="8 bytes"):
        asyncio.run(read_body(chunks(3, 5, 1000), None, 7))
    with pytest.raises(TooLargeError, match="1,000 bytes"):
        asyncio.run(read_body(chunks(), 1000, 7))


def test_a_client_has_a_burst_and_a_rate() -> None:
    limit = ClientLimit(rate=2.0, burst=3)
    for _ in range(3):
        limit.check("a", 10.0)
    with pytest.raises(TooManyRequestsError, match="a may send 2 requests a second and 3 at once"):
        limit.check_token("a", 10.0)
    with pytest.raises(TooManyRequestsError) as caught:
        limit.check("a", 10.25)
    assert caught.value.retry_after_s == pytest.approx(0.25)
    limit.check("b", 10.25)
    limit.check("a", 10.5)
    limit.check_token("a", 100.0)


def test_clients_are_forgotten_and_no_rate_is_no_limit() -> None:
    limit = ClientLimit(rate=1.0, burst=1)
    limit.CLIENTS = 2  # type: ignore[misc]
    for client in ("a", "b", "c"):
        limit.check(client, 0.0)
    limit.check("a", 0.0)
    for _ in range(100):
        ClientLimit(0, 1).check("a", 0.0)
