"""Model directories."""

from pathlib import Path

import pytest
import tiny

from models.checkpoint import save_directory
from models.directory import find_models, read_config, resolve


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


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none; name one that holds model directories"):
        find_models(tmp_path / "none")
    assert find_models(tmp_path) == {}
