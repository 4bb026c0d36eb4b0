"""Files that are read again are whole, or as they were before."""

import os
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pytest
import tiny
import torch

from models import checkpoint
from models.checkpoint import load_directory, save_directory
from models.writing import replacing, write_bytes, write_text


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    write_text(path, "newer")
    assert path.read_text() == "newer" and list(tmp_path.iterdir()) == [path]


def test_who_reads_a_file_by_a_memory_map_keeps_it_when_it_is_written_anew(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    write_bytes(path, b"old" * 10_000)
    link.symlink_to("a")
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as before:
        write_bytes(link, b"new")
        assert before[-3:] == b"old"
    assert path.read_bytes() == b"new" and link.is_symlink()


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_file_before_it_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def half(partial: Path) -> None:
        partial.write_text("ne")
        raise error

    with pytest.raises(type(error)), replacing(path) as partial:
        half(partial)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_weights_that_cannot_be_written_leave_those_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError("no space left")

    save_directory(tmp_path / "model", tiny.network())
    monkeypatch.setattr(checkpoint, "save", full)
    for name in ("model", "new"):
        with pytest.raises(OSError, match="no space left"):
            save_directory(tmp_path / name, tiny.network(seed=1))
    assert torch.equal(load_directory(tmp_path / "model").conv1.weight, tiny.network().conv1.weight)
    assert not list((tmp_path / "new").iterdir()), "without weights it is no model directory"


def test_whoever_may_read_the_configuration_may_read_the_weights(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_directory(tmp_path, tiny.network())
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "config.json": 0o644,
        "model.safetensors": 0o644,
    }
