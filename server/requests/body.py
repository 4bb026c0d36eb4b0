"""The body of a request: its bytes, which come in pieces, and what is refused of it.

A large body is never copied by the event loop at once, which would hold up everybody else for some milliseconds.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Collection

from server.errors import InvalidError, TooLargeError

LARGE_BYTES = 2**20
"""Pieces of this size together are joined by a thread. `bytes.join` lets other threads run from this size on."""


async def limited(
    pieces: AsyncIterable[bytes], announced_bytes: int | None, limit_bytes: int
) -> AsyncGenerator[bytes, None]:
    """The pieces of a body. Raises TooLargeError as soon as it has, or announces, more than `limit_bytes`."""
    if announced_bytes is not None and announced_bytes > limit_bytes:
        raise _too_large(announced_bytes, limit_bytes)
    size_bytes = 0
    async for piece in pieces:
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise _too_large(size_bytes, limit_bytes)
        yield piece


async def join(pieces: Collection[bytes]) -> bytes:
    """The bytes of all pieces, one after the other."""
    if sum(map(len, pieces)) < LARGE_BYTES:
        return b"".join(pieces)
    return await asyncio.to_thread(b"".join, pieces)


def check_body(body: bytes | memoryview, limit_bytes: int) -> None:
    """Raises InvalidError if the body is empty, and TooLargeError if it is above the limit."""
    if not body:
        raise InvalidError("the body is empty; send the bytes of a JPEG, PNG, WebP or BMP image", "empty_body")
    if len(body) > limit_bytes:
        raise _too_large(len(body), limit_bytes)


def _too_large(size_bytes: int, limit_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the body has {size_bytes:,} bytes or more; the limit is {limit_bytes:,} (--max-body-bytes): send fewer",
        "body_too_large",
    )
