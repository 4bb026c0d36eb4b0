"""Model directories."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from models.checkpoint import load_directory, save_directory
from models.directory import find_models, fingerprint, read_config, resolve


def test_models_are_found_by_path_and_name(tmp_path: Path) -> None:
    save_directory(tmp_path / "a", tiny.network())
    assert resolve(str(tmp_path / "a")) == tmp_path / "a"
    assert find_models(tmp_path) == {"a": tmp_path / "a"}
    with pytest.raises(ValueError, match="neither a model directory nor a shipped model"):
        resolve("nothing")
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path)
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(tmp_path / "a")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (os.mkfifo, "it is a named pipe"),
        (lambda path: path.symlink_to(path), "it cannot be opened"),
        (lambda path: path.symlink_to("nothing"), "has no config.json"),
        (Path.mkdir, "it is a folder"),
        (lambda path: path.write_text("[" * 100_000), "it is nested deeper than Python reads"),
        (lambda path: path.write_text("NaN"), "not a model configuration: nan; give an object"),
    ],
)
def test_a_model_whose_configuration_cannot_be_read_is_refused_by_name_not_passed_over(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    (tmp_path / "a").mkdir()
    make(tmp_path / "a" / "config.json")
    assert find_models(tmp_path) == {"a": tmp_path / "a"} and resolve(str(tmp_path / "a")) == tmp_path / "a"
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{tmp_path}/a.*{sentence}"):
        read_config(tmp_path / "a")


def test_weights_that_are_no_file_are_named(tmp_path: Path) -> None:
    save_directory(tmp_path, tiny.network())
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    for read in (fingerprint, load_directory):
        with pytest.raises(ValueError, match=r"model\.safetensors.*: it is a named pipe; put a regular file there"):
            read(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none; name one that holds model directories"):
        find_models(tmp_path / "none")
    assert find_models(tmp_path) == {}
