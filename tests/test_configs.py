import json

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


def test_masking_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="window is 4"):
        Masking("entropy", 0.1, window=4)
    with pytest.raises(ValueError, match="share"):
        Masking("top_k", 1.5)
