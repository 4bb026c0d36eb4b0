"""Weights: those of model directories, and those of released `.pth` checkpoints."""

import json
import logging
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from models.directory import CONFIG_FILE, WEIGHTS_FILE, read_config
from models.machine import memory_bytes
from models.network.configs import ModelConfig
from models.network.network import Network, build_network
from models.reading import check_readable
from models.writing import replacing, write_text

log = logging.getLogger(__name__)

_SHOWN, _SHOWN_LENGTH = 8, 200  # names in an error message, and characters of each
MAX_HEADER_BYTES = 16 * 2**20
"""The longest header of a safetensors file, which names its tensors and takes many times its size in memory. That of
the largest shipped model has 0.2 MB."""


class _Beside:
    """A stand-in for numpy scalars and dtypes while a checkpoint is unpickled. Training runs save these beside the
    weights, for example as a score.

    The values are dropped, so that numpy's own unpickling, which could run code, never sees them.
    """

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # numpy 1 and numpy 2


def load_directory(directory: Path) -> Network:
    """The network of a model directory, float32, in evaluation mode.

    Raises ValueError on a broken configuration or weights that do not fit it, FileNotFoundError on a missing file.
    """
    return load_network(read_config(directory), directory / WEIGHTS_FILE)[0].eval()


def load_network(
    config: ModelConfig, path: Path, *, backbone_only: bool = False, maskless: bool = False
) -> tuple[Network, tuple[str, ...]]:
    """A network of a configuration, with the weights of a file; see `load_weights`, whose results and errors it has.

    The shapes of both are compared before memory is taken for the network, because a configuration may ask for a
    network of any size.
    """
    with torch.device("meta"):
        outline = build_network(config)
    needed_bytes = sum(tensor.nbytes for tensor in outline.state_dict().values())
    if needed_bytes > (limit_bytes := memory_bytes()):
        raise ValueError(
            f"the configuration {config.name} for {path} takes {needed_bytes:,} bytes of memory, and there are "
            f"{limit_bytes:,}; choose a smaller one"
        )
    tensors, left_out = _fitting(outline, path, backbone_only=backbone_only, maskless=maskless)
    network = build_network(config)
    network.load_state_dict(tensors, strict=False)
    return network, left_out


def save_directory(directory: Path, network: Network, dtype: torch.dtype = torch.float32) -> None:
    """Writes weights and configuration; the card is written by hand.

    Floating tensors are stored as `dtype`, but for those with values beyond its range, which stay as they are; the log
    names them. The configuration is written last: it makes a folder a model directory. Raises OSError if a file cannot
    be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # num_batches_tracked counts training batches; inference does not read it.
    tensors = {n: tensor for n, tensor in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    stored = {name: _stored(tensor, dtype).cpu().contiguous() for name, tensor in tensors.items()}
    wide = [name for name, tensor in stored.items() if tensor.is_floating_point() and tensor.dtype != dtype]
    if wide:
        log.warning(
            "%d tensors have values beyond %s, the largest of %s, and are stored in float32: %s",
            len(wide), f"{torch.finfo(dtype).max:g}", dtype, _some(wide),
        )  # fmt: skip
    with replacing(directory / WEIGHTS_FILE) as partial:
        partial.write_bytes(save(stored))  # `save_file` would let nobody else read the file
    write_text(directory / CONFIG_FILE, json.dumps(network.config.to_json(), indent=1) + "\n")


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as `dtype` if it is floating and no value of it overflows."""
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(dtype)
    return tensor if bool((tensor.isfinite() & ~narrow.isfinite()).any()) else narrow


def load_weights(
    network: Network, path: Path, *, backbone_only: bool = False, maskless: bool = False
) -> tuple[str, ...]:
    """Load `.safetensors` or a released `.pth` into `network`, whatever floating type it is stored in. Returns the
    names of tensors that the network has no use for, such as copies and class weights of the training loss.

    `backbone_only` leaves the heads as they are, for weights of another task. Such weights, and `maskless` ones, may be
    of a network without masks; tensors that `Network.may_lack` names then keep their values.
    Raises ValueError that names tensors which are missing, unknown, of another shape or not finite.
    """
    tensors, left_out = _fitting(network, path, backbone_only=backbone_only, maskless=maskless)
    network.load_state_dict(tensors, strict=False)
    return left_out


def _fitting(
    network: Network, path: Path, *, backbone_only: bool, maskless: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file by the network's own names, and what is left out; see `load_weights`."""
    tensors, left_out = _own_names(_read(path), network)
    wanted = network.state_dict()
    if backbone_only:
        tensors = {name: tensor for name, tensor in tensors.items() if network.in_backbone(name)}
        wanted = {name: tensor for name, tensor in wanted.items() if network.in_backbone(name)}
        tensors = {n: tensor for n, tensor in tensors.items() if n in wanted or not network.passes_over(n)}
    if backbone_only or maskless:
        tensors = {name: tensor for name, tensor in tensors.items() if name in wanted or not network.may_lack(name)}
        wanted = {name: tensor for name, tensor in wanted.items() if name in tensors or not network.may_lack(name)}
    problems = {
        "missing": [n for n in wanted if n not in tensors and not n.endswith("num_batches_tracked")],
        "unknown": [n for n in tensors if n not in wanted],
        "of another shape": [
            f"{n} {list(tensors[n].shape)} instead of {list(wanted[n].shape)}"
            for n in wanted
            if n in tensors and tensors[n].shape != wanted[n].shape
        ],
        "not finite": [
            n
            for n in wanted
            if n in tensors
            and tensors[n].shape == wanted[n].shape  # of others, nobody knows how much memory it takes to look
            and not tensors[n].to(wanted[n].dtype).isfinite().all()
        ],
    }
    found = [f"{len(names)} tensors are {what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"{path} does not fit the configuration {network.config.name}: {'; '.join(found)}")
    return tensors, left_out


def _some(names: list[str]) -> str:
    shown = (name if len(name) <= _SHOWN_LENGTH else f"{name[:_SHOWN_LENGTH]}..." for name in names[:_SHOWN])
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _read(path: Path) -> Mapping[str, Tensor]:
    """All tensors of a file. A `.pth` or `.pth.tar` is loaded weights-only: no code in it is ever run."""
    try:
        check_readable(path)
        _check_begin(path)
        tensors = load_file(path) if path.suffix == ".safetensors" else _read_pth(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file makes torch raise anything
        raise ValueError(f"{path} cannot be read as weights: {_reason(error)}") from error
    unfit = [str(name) for name, tensor in tensors.items() if not isinstance(name, str) or not _is_weight(name, tensor)]
    if unfit:
        raise ValueError(f"{path} holds {len(unfit)} tensors that are no dense floating ones: {_some(unfit)}")
    return tensors


def _check_begin(path: Path) -> None:
    """Raises ValueError if a file is empty, a pointer of Git LFS or a web page, which downloads often leave instead of
    weights, or if its header is too long."""
    with path.open("rb") as file:
        whole = file.read(64)
    begin = whole.lstrip().lower()
    if not begin:
        raise ValueError("it is empty; download it again")
    if begin.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS to the file; fetch the file with git lfs pull")
    if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError("it is a web page, as a refused download leaves it; download the file again")
    header_bytes = int.from_bytes(whole[:8], "little")
    if path.suffix == ".safetensors" and header_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {header_bytes:,} bytes, and the limit is {MAX_HEADER_BYTES:,}; save it anew")


def _read_pth(path: Path) -> Mapping[str, Tensor]:
    with torch.serialization.safe_globals([(_Beside, name) for name in _NUMPY]):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model_state", "model"):  # checkpoints of a training run wrap the weights
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"it holds {type(loaded).__name__}, not a state dict of tensors; save model.state_dict()")
    return loaded


def _reason(error: Exception) -> str:
    """The reason why a file cannot be read, as a sentence. It replaces torch's message, which advises to load the file
    in a way that runs its code."""
    if isinstance(
        error, pickle.UnpicklingError | LookupError | EOFError | struct.error
    ):  # of text that it takes for code
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            return "it is no checkpoint of torch.save, or is cut off; download it again"
        return f"it names {asked[1]}, and nothing but tensors is loaded; save model.state_dict() alone"
    if isinstance(error, ValueError):
        return str(error)
    return f"{(str(error) or type(error).__name__).splitlines()[0]}; save or download it again"


def _is_weight(name: str, tensor: Tensor) -> bool:
    counts = name.endswith("num_batches_tracked")
    return tensor.layout == torch.strided and (tensor.is_floating_point() or counts)


def _own_names(tensors: Mapping[str, Tensor], network: Network) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Released tensors by the network's own names, without wrappers' prefixes, and the names of those that are left
    out: losses, and what `Network.own_name` has no use for."""
    named: dict[str, Tensor] = {}
    left_out = []
    for released, tensor in tensors.items():
        bare = released
        while bare.startswith(("model.", "module.")):
            bare = bare.partition(".")[2]
        name = None if bare.startswith("loss.") else network.own_name(bare, tensor)
        if name is None:
            left_out.append(released)
            continue
        if name in named:
            raise ValueError(f"{released} is there twice, under another name too; leave one of them out")
        named[name] = tensor
    return named, tuple(left_out)
