"""Reading small documents and large files at paths that may hold anything.

A path may lead to a named pipe that never ends, a device, a folder, a loop of links, or a document that is endless or
nested without end. The errors are FileNotFoundError, and ValueError with a sentence that the caller begins with the
path. Needs no torch.
"""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MAX_DOCUMENT_BYTES = 16 * 2**20
"""The largest document that is read whole; the shipped ones have up to 100 KB."""
MAX_DEPTH = 64
"""How deep objects and lists of a document may lie in each other; those of model directories lie 6 deep."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_readable(path: Path) -> None:
    """Raises FileNotFoundError if nothing is at `path`, and ValueError if it is no regular file that can be opened."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:  # opening a named pipe would wait until somebody writes to it
            path.open("rb").close()
            return
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"it cannot be opened ({error.strerror}); put a file there that this user may read") from error
    raise ValueError(f"it is {_KINDS.get(kind, 'no file')}; put a regular file there")


def read_text(path: Path) -> str:
    """The text of a document. Raises as `check_readable` does, and ValueError if it is too large or no UTF-8."""
    check_readable(path)
    with path.open("rb") as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it has over {MAX_DOCUMENT_BYTES:,} bytes, the limit for a document; give a smaller one")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is 0x{data[error.start]:02x}, which is no UTF-8; save it as UTF-8"
        ) from error


def read_json(path: Path) -> Any:
    """The values of a JSON document. Raises as `read_text` does, and ValueError if it is no JSON or nested too deep."""
    return shallow(lambda: json.loads(read_text(path)))


def shallow(parse: Callable[[], Any]) -> Any:
    """What `parse` makes of a document. Raises ValueError if it is nested deeper than `MAX_DEPTH`."""
    try:
        found = parse()
    except RecursionError:
        raise ValueError(f"it is nested deeper than Python reads; the limit is {MAX_DEPTH} levels") from None
    level, depth = [found], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested over {MAX_DEPTH} levels deep, which is the limit; flatten it")
    return found


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
