"""The body of a request: how it is limited and joined, and how the file of a form is found in it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator

import pytest
from starlette.datastructures import Headers

from server.errors import InvalidError, TooLargeError
from server.protocols.form import PIECE_BYTES, read_form
from server.requests.body import LARGE_BYTES, join, limited

HEAD = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\n\r\n'
TEXT = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--b--\r\n'
END = b"\r\n--b--\r\n"
FILE = bytes(range(256)) * (3 * PIECE_BYTES // 512) + b"\r\n-" * 1000


class Pieces(list[bytes]):
    """Pieces that remember which thread has joined them."""

    joined_by: str

    def __iter__(self) -> Iterator[bytes]:
        self.joined_by = threading.current_thread().name
        return super().__iter__()


async def cut(body: bytes, size_bytes: int) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), size_bytes):
        yield body[start : start + size_bytes]


@pytest.mark.parametrize(
    ("body", "announced", "refused"),
    [(b"x" * 7, None, None), (b"x" * 8, None, "8 bytes"), (b"x", 8, "8 bytes"), (b"x" * 99, 7, "9 bytes")],
)
def test_a_body_is_refused_as_soon_as_it_is_too_large(body: bytes, announced: int | None, refused: str | None) -> None:
    async def read() -> bytes:
        return await join([piece async for piece in limited(cut(body, 3), announced, 7)])

    if refused is None:
        assert asyncio.run(read()) == body
        return
    with pytest.raises(TooLargeError, match=f" {refused} or more; the limit is 7"):
        asyncio.run(read())


@pytest.mark.parametrize("more", [-1, 0])
def test_a_large_body_is_joined_by_a_thread(more: int) -> None:
    pieces = Pieces([b"a" * (LARGE_BYTES + more - 1), b"b"])
    assert asyncio.run(join(pieces)) == b"a" * (LARGE_BYTES + more - 1) + b"b"
    assert (pieces.joined_by == threading.current_thread().name) is (more < 0)


@pytest.mark.parametrize("size_bytes", [1000, PIECE_BYTES, 10 * len(FILE)])
def test_the_file_of_a_form(size_bytes: int) -> None:
    headers = Headers({"content-type": "multipart/form-data; boundary=b"})
    field = b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\ntext\r\n'
    form = field + HEAD % b"image" + FILE + END
    assert asyncio.run(read_form(headers, cut(form, size_bytes))) == FILE


BAD: dict[str, tuple[bytes, str]] = {
    "other field": (HEAD % b"other" + b"x" + END, "no file in field `image`"),
    "text": (TEXT, "no file in field `image`"),
    "two files": (HEAD % b"image" + b"x\r\n" + HEAD % b"image" + b"y" + END, "cannot be read: Too many files"),
    "no form": (b"x" * 100, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_form_without_the_file_is_refused(name: str) -> None:
    form, sentence = BAD[name]
    headers = Headers({"content-type": "multipart/form-data; boundary=b"})
    with pytest.raises(InvalidError, match=sentence):
        asyncio.run(read_form(headers, cut(form, 7)))
