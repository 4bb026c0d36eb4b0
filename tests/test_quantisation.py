"""The file of a model's scales."""

import json
from pathlib import Path

import pytest
import tiny

from models.checkpoint import save_directory
from models.directory import SCALES_FILE, fingerprint
from models.quantisation import Scales


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_directory(tmp_path, tiny.network())
    return tmp_path


def test_scales_are_kept_in_the_directory(directory: Path) -> None:
    assert Scales.load(directory) is None
    scales = Scales(fingerprint(directory), {"conv1": 0.01, "conv2": 2}, ("exit1.1",), "train", {"images": 3})
    scales.save(directory)
    assert Scales.load(directory) == scales


def test_scales_of_other_weights_are_refused(directory: Path) -> None:
    Scales(fingerprint(directory), {"conv1": 0.01}).save(directory)
    save_directory(directory, tiny.network(seed=1))
    with pytest.raises(ValueError, match=r"was made for weights and a configuration .*\(python -m models quantise"):
        Scales.load(directory)


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        '{"fingerprint": "a"}',
        *(f'{{"fingerprint": "a", "features": {{"conv1": {scale}}}}}' for scale in (0, 1e-50, 1e39)),
    ],
)
def test_a_broken_file_is_refused(directory: Path, broken: str) -> None:
    (directory / SCALES_FILE).write_text(broken)
    with pytest.raises(ValueError, match=f"{SCALES_FILE} does not hold scales"):
        Scales.load(directory)


def test_the_file_is_json_with_a_line_for_each_feature(directory: Path) -> None:
    Scales("f", {"conv1": 0.01, "conv2": 0.02}).save(directory)
    text = (directory / SCALES_FILE).read_text()
    assert json.loads(text)["features"] == {"conv1": 0.01, "conv2": 0.02} and '"conv1": 0.01,\n' in text
