"""Decoding: which files become which pixels, and what is said of the others. tests/attack holds what is slow."""

import io
import struct
import zlib

import live
import numpy as np
import pytest
import tiny
from PIL import Image, PngImagePlugin

from models.imaging.geometry import MAX_SIDE
from server.decoding.decode import decode
from server.decoding.header import MUCH, read_header, work_px
from server.decoding.structure import pixels_only
from server.errors import InvalidError, NotAnImageError, TooLargeError

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


JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("RGB", {}),
    "all colours": ("RGB", {"subsampling": "4:4:4"}),
    "fewer colours": ("RGB", {"subsampling": "4:2:0"}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "grey": ("L", {}),
}


@pytest.mark.parametrize("name", JPEGS)
def test_an_upright_jpeg_has_the_pixels_that_pillow_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, options = JPEGS[name]
    file = encoded(Image.fromarray(tiny.image()).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(file)) as image:
        expected = np.asarray(image.convert("RGB"))
    monkeypatch.delattr("server.decoding.decode.upright_rgb")  # Pillow's way, which takes longer
    assert (decode(file, MANY) == expected).all()


def test_pillow_decides_about_a_jpeg_with_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jpeg()
    padded = whole[:-2] + bytes(40) + whole[-2:]  # bytes that belong to no pixel
    with Image.open(io.BytesIO(whole)) as image:
        pixels = np.asarray(image)
    monkeypatch.setattr("server.decoding.decode.upright_rgb", lambda _: 255 - pixels)
    assert (decode(padded, MANY) == 255 - pixels).all() and (decode(whole, MANY) == pixels).all()
    monkeypatch.undo()
    with pytest.raises(InvalidError, match="broken or cut off: image file is truncated"):
        decode(whole[: len(whole) // 2], MANY)


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_pixels_are_put_where_they_are_wanted(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    file, memory = encoded(Image.fromarray(tiny.image()), kind, exif=exif), np.zeros(MANY // 10**4, np.uint8)
    found = decode(file, MANY, memory)
    assert np.shares_memory(found, memory) and found.shape == ((60, 90, 3) if turn == 1 else (90, 60, 3))
    assert (found == decode(file, MANY)).all() and (memory[: found.size].reshape(found.shape) == found).all()


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


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg(**options: object) -> bytes:
    return encoded(Image.fromarray(tiny.image()), "JPEG", **options)


def png(**options: object) -> bytes:
    return encoded(Image.fromarray(tiny.image()), **options)


def behind_start(whole: bytes, added: bytes) -> bytes:
    return whole[:2] + added + whole[2:]


def behind_header(whole: bytes, added: bytes) -> bytes:
    return whole[:33] + added + whole[33:]


def text(*, packed: bool) -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    found.add_text("workflow", " " * 1_500_000, zip=packed)
    return found


RIFF = b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\x0f\0\0\x0f\0\0"
LEGITIMATE = {
    "a clip behind a JPEG": lambda: jpeg() + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 200,
    "a JPEG behind a JPEG": lambda: jpeg() + jpeg(),
    "the mark of a scan inside of a segment": lambda: behind_start(jpeg(), segment(0xEF, b"\xff\xda" * 200)),
    "a preview inside of a segment": lambda: behind_start(jpeg(), segment(0xE1, b"Exif\0\0" + jpeg()[:5000])),
    "a profile in many segments": lambda: behind_start(jpeg(), segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000)) * 200),
    "comments": lambda: behind_start(jpeg(), segment(0xFE, b"hello") * 1000),
    "fill bytes": lambda: behind_start(jpeg(), b"\xff" * 4096),
    "scans": lambda: jpeg(progressive=True),
    "restarts": lambda: jpeg(restart_marker_blocks=1),
    "a second image, of Ultra HDR": lambda: behind_start(jpeg(), segment(0xE2, b"MPF\0II*\0" + bytes(80))) + jpeg(),
    "a text that unpacks to more than 1 MiB": lambda: png(pnginfo=text(packed=True)),
    "a text of more than 1 MiB": lambda: png(pnginfo=text(packed=False)),
    "a profile that unpacks to more than 1 MiB": lambda: png(icc_profile=bytes(1_200_000)),
    "private chunks": lambda: behind_header(png(), chunk(b"prVt", bytes(100)) * 1000),
    "data behind a PNG": lambda: png() + bytes(1000),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_what_programs_add_to_images_does_not_change_the_pixels(name: str) -> None:
    plain = png() if b"PNG" in LEGITIMATE[name]()[:8] else jpeg(progressive="scans" in name)
    assert (decode(LEGITIMATE[name](), MANY) == decode(plain, MANY)).all()


def repeated_scan(times: int) -> bytes:
    whole = jpeg(progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + times * scan + whole[-2:]


CRAFTED = {
    "segments": (lambda: behind_start(jpeg(), segment(0xE9) * 40_000), "over 32,768 segments"),
    "starts": (lambda: behind_start(jpeg(), b"\xff\xd8" * 40_000), "over 32,768 segments"),
    "segments between scans": (lambda: jpeg()[:-2] + segment(0xFE) * 40_000 + b"\xff\xd9", "over 32,768 segments"),
    "scans": (lambda: repeated_scan(1000), r"in 1,0\d\d scans, .*; the limit is 64: save it anew"),
    "nothing but fill bytes": (lambda: b"\xff\xd8" + b"\xff" * 100_000, "it has no pixels; send the whole file"),
    "chunks": (lambda: behind_header(png(), chunk(b"prVt") * 40_000), "over 32,768 chunks"),
    "chunks of a WebP": (lambda: RIFF + b"JUNK\0\0\0\0" * 40_000, "over 32,768 chunks"),
    "chunks of odd sizes in a WebP": (lambda: RIFF + b"JUNK\1\0\0\0ab" * 40_000, "over 32,768 chunks"),
    "run lengths": (lambda: runs(b"\1\7" * 2**21), "4,195,382 bytes of run lengths; the limit is 4,194,304"),
}


CRAFTED |= {
    "tables": (lambda: behind_start(jpeg(), segment(0xDB, bytes(65) * 1000) * 5), "325,627 bytes of tables, Exif and"),
    "pieces of Exif": (
        lambda: behind_start(jpeg(), segment(0xE1, b"Exif\0\0" + bytes(50_000)) * 6),
        "300,.* of tables",
    ),
    "two headers": (lambda: png()[:33] + png()[8:], "IHDR is not its first chunk alone; save it anew"),
    "a chunk before the header": (lambda: png()[:8] + chunk(b"tEXt", bytes(13)) + png()[8:], "IHDR is not its first"),
}


def runs(data: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + head + bytes(range(256)) * 4 + data


@pytest.mark.parametrize("name", CRAFTED)
def test_files_of_more_parts_than_any_encoder_writes_are_refused(name: str) -> None:
    make, sentence = CRAFTED[name]
    with pytest.raises(InvalidError, match=sentence):
        decode(make(), MANY)


def test_a_decoder_gets_only_what_decides_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = jpeg(exif=exif, comment="hello", icc_profile=bytes(1000))
    assert len(pixels_only(whole)) < len(whole) - 1000
    assert (decode(whole, MANY) == decode(jpeg(exif=exif), MANY)).all()
    assert len(pixels_only(png(icc_profile=bytes(10**6)))) <= len(png())
    xmp = '<x:xmpmeta xmlns:tiff="t"><r tiff:Orientation="6"/></x:xmpmeta>'
    turned = PngImagePlugin.PngInfo()
    turned.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    assert (decode(png(pnginfo=turned), MANY) == np.rot90(tiny.image(), -1)).all()


@pytest.mark.parametrize(("at", "turned"), [(8, True), (2**16 + 8, False)])
def test_the_first_64_kib_of_exif_are_read(at: int, turned: bool) -> None:
    """More of it would be read again for each of its entries."""
    entry = struct.pack("<HHHII", 1, 0x0112, 3, 1, 6) + bytes(4)
    exif = b"II*\0" + struct.pack("<I", at) + bytes(at - 8) + entry + bytes(2**16)
    found = decode(behind_header(png(), chunk(b"eXIf", exif)), MANY)
    assert (found == (np.rot90(tiny.image(), -1) if turned else tiny.image())).all()
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + exif.hex().encode())
    found = decode(behind_header(png(), chunk(b"zTXt", text)), MANY)
    assert (found == (np.rot90(tiny.image(), -1) if turned else tiny.image())).all()


def test_sizes_are_refused_as_declared() -> None:
    """A WebP takes memory for all of it when it is opened."""
    body = RIFF[:24] + (16_382).to_bytes(3, "little") * 2 + b"VP8 \x0a\0\0\0" + bytes(10)
    with pytest.raises(TooLargeError, match="16383x16383"):
        decode(body, 16 * 2**20)
    long = png()[:16] + struct.pack(">II", MAX_SIDE + 1, 1) + png()[24:]
    with pytest.raises(TooLargeError, match=f"the image is {MAX_SIDE + 1}x1; the limit is {MAX_SIDE:,} pixels a side"):
        decode(long, MANY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("lossless", [False, True])
def test_headers(kind: str, *, lossless: bool) -> None:
    options = {"lossless": lossless} if kind == "WEBP" else {}
    whole = encoded(Image.fromarray(tiny.image()), kind, **options)
    found = read_header(whole)
    assert found is not None and (found.width, found.height) == (90, 60)
    assert found.work_px in (5400, 10800)
    for size_bytes in range(40):
        read_header(whole[:size_bytes])
    old = b"BM" + bytes(12) + struct.pack("<IHH", 12, 90, 60)
    assert read_header(old) == found or kind != "BMP"


def test_what_looks_dear_is_much_work() -> None:
    assert work_px(b"hello") == work_px(jpeg() + bytes(2**22)) == MUCH
    assert work_px(behind_start(jpeg(), segment(0xE9) * 1000)) == MUCH
    assert work_px(jpeg()) == 5400 < work_px(jpeg(progressive=True)) < work_px(repeated_scan(60)) < MUCH
    whole, small = jpeg(), segment(0xC0, struct.pack(">BHHBBBB", 8, 8, 8, 1, 1, 17, 0)) + segment(0xDA, b"\1\1\0\0\0\0")
    for hides in (b"\xff\x01", b"\xff\xd0", b"\xff\xff", b"\xff\x02"):  # a decoder passes over two bytes, not six
        assert work_px(behind_start(whole, hides + b"\0\6" + segment(0xFE, small))) == MUCH
    assert work_px(png()[:8] + chunk(b"tEXt", struct.pack(">II", 1, 1) + bytes(5)) + png()[8:]) == MUCH
    assert work_px(behind_start(whole, segment(0xDA, b"\1\1\0\0\0\0"))) == MUCH
    scan = whole.index(b"\xff\xda")
    single = whole[:scan] + segment(0xDA, b"\1\1\0\0\x3f\0") * 8 + whole[scan:]
    assert work_px(single) == 9 * 5400 // 4  # a baseline JPEG whose scans hold one colour each may have many
    assert work_px(whole + b"\xff\xda" * 100) == 5400
    assert work_px(runs(b"")) == 16 * len(runs(b""))
    bitmap = bytearray(runs(b""))
    bitmap[18:26] = struct.pack("<ii", 500, 500)
    assert work_px(bytes(bitmap)) == 16 * 500 * 500
