import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from models.__main__ import main
from models.checkpoint import load_directory, load_weights, save_directory
from models.network.adpc import AdpcNet
from models.network.adpc_configs import AdpcConfig
from models.network.families import CONFIGS


def released(config: AdpcConfig, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """A state dict named as released checkpoints name theirs."""
    network = AdpcNet(config)
    tensors = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    if config.masking:
        window = config.masking.window
        lambdas = [name for name in tensors if name.endswith("Lambda")]
        tensors |= {name.replace("Lambda", "square_dis"): torch.zeros(window, window) for name in lambdas}
    return tensors | {"loss.criterion.weight": torch.ones(config.outputs)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directory_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    network = tiny.network()
    save_directory(tmp_path / "m", network, dtype)
    loaded = load_directory(tmp_path / "m")
    assert loaded.config == network.config
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, network.state_dict()[name].to(dtype).float())


def test_weights_beyond_float16_are_stored_in_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = tiny.network()
    save_directory(tmp_path / "narrow", network, torch.float16)
    assert caplog.text == ""
    with torch.no_grad():
        network.bn1.running_var[3] = 7e4
    save_directory(tmp_path / "m", network, torch.float16)
    assert "1 tensors have values beyond 65504, the largest of torch.float16, and are stored in float32: bn1.runn" in (
        caplog.text
    )
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert [name for name, tensor in stored.items() if tensor.dtype != torch.float16] == ["bn1.running_var"]
    assert torch.equal(load_directory(tmp_path / "m").bn1.running_var, network.bn1.running_var)


@pytest.mark.parametrize(
    ("name", "prefix"), [("adpc-w18-cityscapes", "model."), ("ee-w18-cityscapes", "module.model.")]
)
def test_import_of_a_released_checkpoint(
    tmp_path: Path, name: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = released(CONFIGS[name], prefix)
    torch.save(tensors, tmp_path / "released.pth")
    command = ["import", str(tmp_path / "released.pth"), "--config", name, "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(command) == 1
    assert f"{tmp_path / 'out'} holds a model; choose another --output" in capsys.readouterr().err
    loaded = load_directory(tmp_path / "out").state_dict()
    assert torch.equal(
        loaded["stage4.1.branches.3.1.conv2.weight"], tensors[f"{prefix}stage4.1.branches.3.1.conv2.weight"]
    )
    assert (tmp_path / "out" / "README.md").is_file()


def test_weights_trained_without_masks_are_masked_at_inference_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = released(CONFIGS["rh-w18-cityscapes"])
    torch.save(tensors, tmp_path / "rh.pth")
    command = ["import", str(tmp_path / "rh.pth"), "--output", str(tmp_path / "out"), "--config"]
    assert main([*command, "adpc-w18-cityscapes"]) == 1
    assert "143 tensors are missing: " in capsys.readouterr().err
    assert main([*command, "rh-w18-cityscapes", "--inference-only"]) == 1
    assert "rh-w18-cityscapes has no masks; choose an adpc configuration" in capsys.readouterr().err
    assert main([*command, "adpc-w18-cityscapes", "--inference-only"]) == 0
    network = load_directory(tmp_path / "out")
    assert network.config.masking == replace(CONFIGS["adpc-w18-cityscapes"].masking, adaptivity="inference")
    assert all(t == 3 for n, t in network.state_dict().items() if n.endswith(".Lambda"))
    assert torch.equal(network.state_dict()["exit1.1.weight"], tensors["model.exit1.1.weight"])
    torch.save({n: t for n, t in tensors.items() if n != "model.bn1.bias"}, tmp_path / "rh.pth")
    assert main([*command, "adpc-w18-cityscapes", "--inference-only"]) == 1
    assert "1 tensors are missing: bn1.bias" in capsys.readouterr().err


def test_import_of_plain_hrnet_weights(tmp_path: Path) -> None:
    pose = replace(tiny.POSE, heads="one", masking=None)
    tensors = {n.replace("last_layer.0.", "final_layer."): t for n, t in AdpcNet(pose).state_dict().items()}
    torch.save({"epoch": torch.tensor(3), "state_dict": tensors}, tmp_path / "hrnet.pth")
    network = AdpcNet(pose)
    load_weights(network, tmp_path / "hrnet.pth")
    assert torch.equal(network.state_dict()["last_layer.0.weight"], tensors["final_layer.weight"])


@pytest.mark.parametrize("numpy_1", [True, False])
def test_numpy_scalars_beside_the_weights_are_passed_over(tmp_path: Path, numpy_1: bool) -> None:
    """As HRNet's code saves a training run: in torch's older format by numpy 1, in a zip by numpy 2."""
    weights, path = tiny.network(seed=1).state_dict(), tmp_path / "checkpoint.pth.tar"
    held = {"epoch": 484, "best_mIoU": np.float64(0.76), "perf": np.float32(88.3), "state_dict": weights}
    torch.save(held, path, _use_new_zipfile_serialization=not numpy_1)
    if numpy_1:
        path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert (b"numpy.core" if numpy_1 else b"numpy._core") + b".multiarray\nscalar\n" in path.read_bytes()
    network = tiny.network()
    load_weights(network, path)
    assert torch.equal(network.state_dict()["conv1.weight"], weights["conv1.weight"])
    torch.save({"conv1.weight": np.float64(1)}, path)
    with pytest.raises(ValueError, match="not a state dict of tensors"):
        load_weights(network, path)


def test_backbone_alone_leaves_the_heads(tmp_path: Path) -> None:
    torch.save({**tiny.network(seed=1).state_dict(), "classifier.weight": torch.ones(3)}, tmp_path / "b.pth")
    network = tiny.network(replace(tiny.SEGMENTATION, outputs=7))
    head = network.state_dict()["last_layer.3.weight"].clone()
    load_weights(network, tmp_path / "b.pth", backbone_only=True)
    assert torch.equal(network.state_dict()["conv1.weight"], tiny.network(seed=1).state_dict()["conv1.weight"])
    assert torch.equal(network.state_dict()["last_layer.3.weight"], head)


def test_an_imagenet_backbone_starts_a_network_with_masks(tmp_path: Path) -> None:
    dense = AdpcNet(replace(tiny.SEGMENTATION, masking=None, heads="one"))
    torch.save({**dense.state_dict(), "incre_modules.0.0.conv1.weight": torch.ones(3)}, tmp_path / "imagenet.pth")
    network = AdpcNet(tiny.SEGMENTATION)
    load_weights(network, tmp_path / "imagenet.pth", backbone_only=True)
    assert torch.equal(network.state_dict()["conv1.weight"], dense.state_dict()["conv1.weight"])
    assert all(t.eq(3).all() for n, t in network.state_dict().items() if n.endswith(".Lambda"))
    with pytest.raises(ValueError, match="Lambda"):
        load_weights(network, tmp_path / "imagenet.pth")


def test_a_larger_backbone_is_not_cut_to_size(tmp_path: Path) -> None:
    larger = AdpcNet(replace(tiny.SEGMENTATION, backbone=replace(tiny.BACKBONE, blocks=2)))
    torch.save(larger.state_dict(), tmp_path / "larger.pth")
    with pytest.raises(ValueError, match=r"unknown: stage2\.0\.branches"):
        load_weights(AdpcNet(tiny.SEGMENTATION), tmp_path / "larger.pth", backbone_only=True)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    tensors = tiny.network().state_dict()
    tensors["surplus"] = torch.ones(1)
    tensors["conv1.weight"] = torch.ones(2)
    del tensors["bn1.bias"]
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"missing: bn1.bias.*unknown: surplus.*conv1.weight \[2\] instead of \[64, 3"):
        load_weights(tiny.network(), tmp_path / "w.pth")


def test_another_window_is_named(tmp_path: Path) -> None:
    torch.save(released(tiny.SEGMENTATION), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="a window of 7x7, but tiny-segmentation has no masks"):
        load_weights(AdpcNet(replace(tiny.SEGMENTATION, masking=None)), tmp_path / "w.pth")


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv1.weight": Exploit()}, protocol=2))
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_weights(tiny.network(), tmp_path / "evil.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty; download it again"),
        (b"not weights", ""),
        (b"\n<!DOCTYPE html><title>Quota exceeded</title>", "it is a web page, as a refused download leaves it; "),
        (b"<html>", "it is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "it is a pointer of Git LFS to the file; ",
        ),
    ],
)
def test_broken_files_are_value_errors_that_never_advise_to_run_code(
    tmp_path: Path, suffix: str, data: bytes, sentence: str
) -> None:
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"broken.{suffix} cannot be read as weights: {sentence}") as caught:
        load_weights(tiny.network(), path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("text", [b"hello\n", b"error: not found", b"root:x:0:0:root:/root\n", b"\x80\x02\x8a\nl\xfc"])
def test_text_is_no_checkpoint(tmp_path: Path, text: bytes) -> None:
    """torch takes it for a pickle, and fails by whatever error its first letters lead to."""
    (tmp_path / "a.pth").write_bytes(text)
    with pytest.raises(ValueError, match=r"it is no checkpoint of torch.save, or is cut off; download it again"):
        load_weights(tiny.network(), tmp_path / "a.pth")


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(8)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for lie in (whole[:-4], whole[:4], whole.replace(b"[8]", b"[9]"), b"\xff" * 8 + whole[8:], whole + b"more"):
        (tmp_path / "a.safetensors").write_bytes(lie)
        with pytest.raises(ValueError, match=r"a\.safetensors cannot be read as weights"):
            load_weights(tiny.network(), tmp_path / "a.safetensors")


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2**24 + 1).to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(ValueError, match="its header has 16,777,217 bytes, and the limit is 16,777,216; save it anew"):
        load_weights(tiny.network(), tmp_path / "a.safetensors")


def test_weights_of_another_shape_are_not_looked_at(tmp_path: Path) -> None:
    """They may have any size, and cost no more than the room of their file on the disk."""
    weights = tiny.network().state_dict()
    torch.save(weights | {"conv1.weight": torch.full((7,), torch.nan)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="1 tensors are of another shape") as caught:
        load_weights(tiny.network(), tmp_path / "a.pth")
    assert "not finite" not in str(caught.value)


def test_weights_are_compared_with_the_configuration_before_memory_is_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_directory(tmp_path, tiny.network())
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["width"] = 1024
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("models.checkpoint.memory_bytes", lambda: 1 << 60)
    devices = []
    monkeypatch.setattr("models.checkpoint.build_network", lambda config: devices.append(meta()) or AdpcNet(config))
    with pytest.raises(ValueError, match=r"transition1.0.0.weight \[4, 256, 3, 3\] instead of \[1024, 256, 3, 3\]"):
        load_directory(tmp_path)
    assert devices == [True]
    monkeypatch.setattr("models.checkpoint.memory_bytes", lambda: 1 << 30)
    with pytest.raises(
        ValueError, match=r"takes \d+,\d+,\d+,\d+ bytes of memory, and there are 1,073,741,824; choose a"
    ):
        load_directory(tmp_path)


def meta() -> bool:
    """Whether tensors are made without memory now."""
    return torch.empty(1).is_meta


def test_weights_that_mean_nothing_are_named(tmp_path: Path) -> None:
    weights, path = dict(tiny.network().state_dict()), tmp_path / "a.pth"
    for change, message in (
        ({"conv1.weight": weights["conv1.weight"] * torch.nan}, "1 tensors are not finite: conv1.weight"),
        ({"conv1.weight": weights["conv1.weight"].long()}, "1 tensors that are no dense floating ones: conv1.weight"),
        ({"conv1.weight": weights["conv1.weight"] * 1j}, "no dense floating ones: conv1.weight"),
        ({"conv1.weight": weights["conv1.weight"].to_sparse()}, "no dense floating ones: conv1.weight"),
        ({0: weights["conv1.weight"]}, "no dense floating ones: 0"),
        ({"module.conv1.weight": weights["conv1.weight"]}, "module.conv1.weight is there twice"),
    ):
        torch.save(weights | change, path)
        with pytest.raises(ValueError, match=message):
            load_weights(tiny.network(), path)


def test_eight_bits_a_weight_are_read(tmp_path: Path) -> None:
    weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tiny.network().state_dict().items()}
    save_file(
        {name: tensor for name, tensor in weights.items() if "num_batches" not in name}, tmp_path / "a.safetensors"
    )
    load_weights(tiny.network(), tmp_path / "a.safetensors")


def test_a_file_with_flipped_bytes_is_a_value_error_or_loads(tmp_path: Path) -> None:
    path, random = tmp_path / "a.pth", np.random.default_rng(0)
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    whole, network = np.frombuffer(path.read_bytes(), np.uint8), tiny.network()
    for _ in range(100):
        broken = whole.copy()
        broken[random.integers(len(whole), size=3)] ^= 0xFF
        path.write_bytes(broken.tobytes())
        with pytest.raises(ValueError, match=r"a\.pth"):
            load_weights(network, path)
