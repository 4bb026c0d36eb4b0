import json
from dataclasses import replace

import pytest

from models.configs import CONFIGS, Masking, ModelConfig, config


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name: str) -> None:
    assert ModelConfig.from_json(json.loads(json.dumps(CONFIGS[name].to_json()))) == CONFIGS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_labels_and_palette_fit_the_outputs(name: str) -> None:
    named = CONFIGS[name]
    assert len(named.labels) == named.outputs
    assert len(named.palette) in (0, named.outputs)
    assert all(joint < named.outputs for pair in (*named.skeleton, *named.flip_pairs) for joint in pair)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'w99'.*adpc-w48-cityscapes"):
        config("w99")


@pytest.mark.parametrize("change", [{"colour": 1}, {"backbone": {"width": 4}}, {"backbone": None}])
def test_broken_json_is_a_value_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="its fields are"):
        ModelConfig.from_json({**CONFIGS["adpc-w18-cityscapes"].to_json(), **change})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "segmentaton", "task is 'segmentaton'; it may be segmentation, pose"),
        ("heads", "redesignd", "heads is"),
        ("outputs", "3", r"outputs and head_channels is \['3', 64\]; give 2 whole numbers above 0"),
        ("outputs", 300, "at most 256 classes"),
        ("downsamplings", [3, 2], "give 3 whole numbers"),
        ("size", [0, 64], "give 2 whole numbers"),
        ("mean", [0.5], "give 3 finite numbers"),
        ("std", [0.5, 0.0, 0.5], "each must be above 0"),
        ("masking.criterion", "max_prob", "criterion is 'max_prob'"),
        ("masking.adaptivity", "inferrence", "it may be training, inference, both"),
        ("masking.threshold", "0.9", "give 1 finite numbers"),
        ("masking.threshold", float("nan"), "give 1 finite numbers"),
        ("masking.window", 7.0, "give 1 whole numbers"),
        ("backbone.fuse_upsample", "bicubic", "it may be bilinear, nearest"),
        ("backbone.modules", [1, 1], "give 3 whole numbers"),
        ("backbone.width", 0, "give 3 whole numbers"),
    ],
)
def test_values_without_meaning_are_refused(field: str, value: object, message: str) -> None:
    data = json.loads(json.dumps(CONFIGS["camvid-adpc-w18"].to_json()))
    *path, name = field.split(".")
    (data[path[0]] if path else data)[name] = value
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(data)


def test_a_person_s_crop_is_square() -> None:
    with pytest.raises(ValueError, match="a person's crop is square"):
        replace(CONFIGS["lsp-adpc-w18"], size=(256, 192))


def test_masking_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="window is 4"):
        Masking("entropy", 0.1, window=4)
    with pytest.raises(ValueError, match="share"):
        Masking("top_k", 1.5)
