import json
from dataclasses import replace

import pytest

from models.directory import find_models, read_config
from models.network.configs import Masking
from models.network.families import CONFIGS, config, config_from_json


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name: str) -> None:
    assert config_from_json(json.loads(json.dumps(CONFIGS[name].to_json()))) == CONFIGS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_labels_and_palette_fit_the_outputs(name: str) -> None:
    named = CONFIGS[name]
    assert len(named.labels) == named.outputs
    assert len(named.palette) in (0, named.outputs)
    assert all(joint < named.outputs for pair in (*named.skeleton, *named.flip_pairs) for joint in pair)


def test_shipped_models_state_a_licence() -> None:
    for name, directory in find_models().items():
        assert "research use only" in CONFIGS[name].licence
        assert "research use only" in read_config(directory).licence


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'w99'.*adpc-w48-cityscapes"):
        config("w99")


@pytest.mark.parametrize("change", [{"colour": 1}, {"backbone": {"width": 4}}, {"backbone": None}])
def test_broken_json_is_a_value_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="its fields are"):
        config_from_json({**CONFIGS["adpc-w18-cityscapes"].to_json(), **change})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "segmentaton", "task is 'segmentaton'; it may be segmentation, pose"),
        ("heads", "redesignd", "heads is"),
        ("outputs", "3", "outputs is '3'; give a whole number"),
        ("outputs", 300, "outputs is 300; it may be at most 256"),
        ("head_channels", True, "head_channels is True; give a whole number"),
        ("downsamplings", [3, 2], r"downsamplings is \[3, 2\]; give 3 values"),
        ("downsamplings", [4, 2, 1], r"downsamplings\[0\] is 4; it may be at most 3"),
        ("size", [0, 64], r"size\[0\] is 0; it must be at least 1"),
        ("size", 64, "size is 64; give a list"),
        ("size", [64, 96, 3], r"size is \[64, 96, 3\]; give 2 values"),
        ("mean", [0.5], "give 3 values"),
        ("family", "resnet", "family is 'resnet'; it may be adpc"),
        ("family", ["adpc"], r"family is \['adpc'\]; it may be adpc"),
        ("mean", [0.5, None, 0.5], r"mean\[1\] is None; give a finite number"),
        ("std", [0.5, 0.0, 0.5], r"std\[1\] is 0.0; it must be above 0"),
        ("name", None, "name is None; give text"),
        ("labels", "road", "labels is 'road'; give a list"),
        ("labels", [1], r"labels\[0\] is 1; give text"),
        ("labels", ["a"] * 12, "labels has 12 entries for 11 outputs; leave some out"),
        ("palette", [[0, 0]], r"palette\[0\] is \[0, 0\]; give 3 values"),
        ("palette", [[0, 0, 256]], r"palette\[0\]\[2\] is 256; it may be at most 255"),
        ("palette", [[1, 2, 3], [4, 5, 6], [1, 2, 3]], r"gives sky and pole the same colour, \[1, 2, 3\]; give each"),
        ("skeleton", [[0, 11]], r"skeleton\[0\] is \[0, 11\]; joints are numbered from 0 to 10"),
        ("flip_pairs", [0], r"flip_pairs\[0\] is 0; give a list"),
        (
            "masking.criterion",
            "max_prob",
            "masking.criterion is 'max_prob'; it may be max_probability, margin, entropy",
        ),
        ("masking.adaptivity", "inferrence", "it may be training, inference, both"),
        ("masking.threshold", "0.9", "threshold is '0.9'; give a finite number"),
        ("masking.threshold", float("nan"), "give a finite number"),
        ("masking.window", 7.0, "window is 7.0; give a whole number"),
        ("backbone.fuse_upsample", "bicubic", "it may be bilinear, nearest"),
        ("backbone.modules", [1, 1], "give 3 values"),
        ("backbone.width", 0, "backbone.width is 0; it must be at least 1"),
        ("backbone.width", 20_000, "backbone.width is 20000; it may be at most 1024"),
        ("backbone.width", 1 << 70, "backbone.width is 1180591620717411303424; it may be at most 1024"),
        ("backbone.modules", [1, 10**9, 1], r"backbone.modules\[1\] is 1000000000; it may be at most 16"),
        ("head_channels", 10**6, "it may be at most 1024"),
        ("masking.window", 10**6 + 1, "window is 1000001; it may be at most 63"),
        (
            "size",
            [1 << 17, 1 << 17],
            r"size is \[131072, 131072\], which is 17,179,869,184 pixels; it may be at most 16,",
        ),
        ("backbone.bn_momentum", 2, "bn_momentum is 2; it may be at most 1"),
        ("backbone.last_module_fuses_finest_only", 1, "give true or false"),
        ("backbone.last_module_fuses_finest_only", True, "is for pose; segmentation reads every branch"),
    ],
)
def test_values_without_meaning_are_refused(field: str, value: object, message: str) -> None:
    data = json.loads(json.dumps(CONFIGS["camvid-adpc-w18"].to_json()))
    *path, name = field.split(".")
    (data[path[0]] if path else data)[name] = value
    with pytest.raises(ValueError, match=message):
        config_from_json(data)


def test_a_person_s_crop_is_square() -> None:
    with pytest.raises(ValueError, match="a person's crop is square"):
        replace(CONFIGS["lsp-adpc-w18"], size=(256, 192))


def test_masking_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="window is 4"):
        Masking("entropy", 0.1, window=4)
    with pytest.raises(ValueError, match="share"):
        Masking("top_k", 1.5)


def test_a_margin_needs_two_classes() -> None:
    one = replace(CONFIGS["camvid-adpc-w18"], outputs=1, labels=(), palette=())
    with pytest.raises(
        ValueError, match="margin, which compares the two likeliest of several classes, and outputs is 1"
    ):
        replace(one, masking=Masking("margin", 0.9))
    assert replace(one, outputs=2, masking=Masking("margin", 0.9)).masking is not None


@pytest.mark.parametrize("given", [[], 3, None, "adpc"])
def test_what_is_no_object_is_no_configuration(given: object) -> None:
    with pytest.raises(ValueError, match=r"not a model configuration: .* give an object"):
        config_from_json(given)


def test_values_are_checked_wherever_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"^criterion is 'certainty'; it may be max_probability, "):
        Masking("certainty", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^threshold is nan; give a finite number$"):
        replace(Masking("entropy", 0.5), threshold=float("nan"))
    with pytest.raises(AttributeError):
        Masking("entropy", 0.5).threshold = 0.6  # type: ignore[misc]


def test_a_configuration_in_a_file_starts_with_its_name_and_names_no_family_but_a_new_one() -> None:
    names = list(CONFIGS["camvid-adpc-w18"].to_json())
    assert names[:4] == ["name", "task", "backbone", "heads"] and "family" not in names
