"""Writing files that are read again: a file appears when it is complete, and until then the one before it stays.

Needs no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, at which the block writes a file. After the block, that file takes the place of `path`; if
    the block fails, it is removed."""
    partial = path.with_name(f"{path.name}.part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file; see `replacing`. A link stays, and its target is replaced; a device or a pipe is written into.

    A program that still reads the file before by a memory map, as safetensors do, goes on with that one.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with replacing(path.resolve()) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a document; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text)
