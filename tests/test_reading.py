"""Files of which nothing is known but their path."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from models import reading
from models.reading import MAX_DEPTH, check_readable, read_json

CANNOT = {
    "a named pipe": (os.mkfifo, "it is a named pipe; put a regular file there"),
    "a folder": (Path.mkdir, "it is a folder; put"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is a device; put"),
    "a loop": (lambda path: path.symlink_to(path), r"it cannot be opened \(.*symbolic links\)"),
    "not UTF-8": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "byte 7 is 0xff, which is no UTF-8"),
    "not JSON": (lambda path: path.write_text("{"), "line 1"),
    "deep lists": (lambda path: path.write_text("[" * 100_000), f"deeper than Python reads; the limit is {MAX_DEPTH}"),
    "deep objects": (lambda path: path.write_text('{"a":' * 65 + "1" + "}" * 65), f"over {MAX_DEPTH} levels deep"),
    "a long number": (lambda path: path.write_text("1" * 5000), "4300 digits"),
}


@pytest.mark.parametrize(("make", "sentence"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_read_is_said_in_a_sentence(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=sentence):
        read_json(tmp_path / "x")


def test_a_socket_and_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(ValueError, match="it is a socket"):
        listener.bind("s")
        check_readable(Path("s"))
    with pytest.raises(FileNotFoundError, match="there is no file nothing"):
        check_readable(Path("nothing"))


def test_a_file_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x").touch()
    monkeypatch.setattr(Path, "open", refuse)  # who runs the tests may be allowed everything
    with pytest.raises(ValueError, match=r"it cannot be opened \(Permission denied\); put a file there that this user"):
        read_json(tmp_path / "x")


def test_documents_have_a_largest_size_and_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("[" * MAX_DEPTH + "1, {}, {}" + "]" * MAX_DEPTH)
    assert json.dumps(read_json(path)).count("[") == MAX_DEPTH
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", path.stat().st_size)
    assert read_json(path)
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"it has over 136 bytes, the limit for a document; give a smaller one"):
        read_json(path)
