"""Pads channels with zeros to multiples of 8, because tensor cores multiply and threads load 8 numbers at once.

Padding changes no result: padded channels are 0 in every feature map, and the gradients of their weights are 0, so they
stay 0 in training. Only the network that trains and the mean of its weights are padded; `strip_channels` makes the
network that is saved.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.adpc import AdpcNet
from models.network.adpc_configs import AdpcConfig
from models.network.confidence import Masks
from models.network.configs import ModelConfig
from models.network.masked import Conv2d, MaskAware
from models.network.network import Network, build_network

EIGHT = 8
CUT = ".layer."
"""Padded networks have this in a tensor's name where plain networks have a dot; see `Cut`."""
Places = tuple[Tensor, ...]
"""For each dimension of a plain tensor, the indices that its entries have in the padded tensor."""


class FirstConv2d(Conv2d):
    """The first convolution, which adds channels of zeros to the image."""

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # before padding, while it is small
        return super().forward(F.pad(x, (0, 0, 0, 0, 0, self.in_channels - x.shape[1])), masks)


class Cut(MaskAware):
    """Runs the last convolution of a head and drops its padded outputs."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.layer, self.outputs = layer, outputs

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        y: Tensor = self.layer(x, masks)
        return y[:, : self.outputs]


def padded(count: int) -> int:
    return -(-count // EIGHT) * EIGHT


def pad_channels(network: Network) -> None:
    """Pads every layer of an `AdpcNet`, which must not have been padded before; other networks stay as they are."""
    if not isinstance(network, AdpcNet):
        return
    places = _places(network.config)
    state = network.state_dict()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels = (padded_size(index) for index in places[f"{name}.weight"][:2])
        if isinstance(layer, nn.BatchNorm2d):
            layer.num_features = padded(layer.num_features)
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            for own in ("weight", "bias", "running_mean", "running_var"):
                if (tensor := state.get(f"{name}.{own}")) is not None:
                    found = _spread(tensor, places[f"{name}.{own}"])
                    setattr(layer, own, nn.Parameter(found) if own in ("weight", "bias") else found)
    network.conv1.__class__ = FirstConv2d
    for head in _heads(network):
        head[-1] = Cut(head[-1], network.config.outputs)


def strip_channels(network: Network) -> Network:
    """A plain network on the CPU with the weights of a padded one; in evaluation mode."""
    plain = build_network(network.config)
    plain.load_state_dict(stripped(network.config, network.state_dict()))
    return plain.eval()


def stripped(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turns the tensors of a padded network into those of the plain network of `config`, by name, on the CPU."""
    return {_plain_name(name): without_padding(config, name, tensor) for name, tensor in state.items()}


def filled(network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `stripped`: turns the tensors of a plain network into those of the padded `network`, by name."""
    own = {name: state.get(_plain_name(name)) for name in network.state_dict()}
    return {name: with_padding(network.config, name, tensor) for name, tensor in own.items() if tensor is not None}


def without_padding(config: ModelConfig, name: str, tensor: Tensor) -> Tensor:
    """Removes the padding of a tensor shaped as tensor `name` of a padded network; returns it on the CPU."""
    places, whole = _places(config).get(_plain_name(name)), tensor.detach().cpu()
    return whole if places is None else whole[torch.meshgrid(*places, indexing="ij")]


def with_padding(config: ModelConfig, name: str, tensor: Tensor) -> Tensor:
    """The inverse of `without_padding`."""
    places = _places(config).get(_plain_name(name))
    return tensor if places is None else _spread(tensor, places)


def _plain_name(name: str) -> str:
    return name.replace(CUT, ".")


def is_padded(network: Network) -> bool:
    return isinstance(network, AdpcNet) and isinstance(network.conv1, FirstConv2d)


def padded_size(index: Tensor) -> int:
    return padded(int(index[-1]) + 1)


def _spread(tensor: Tensor, places: Places) -> Tensor:
    """`tensor` with zeros in between, at the padded size."""
    sizes = [padded_size(index) for index in places[:2]]
    found = torch.zeros(*sizes, *tensor.shape[2:], dtype=tensor.dtype, device=tensor.device)
    found[torch.meshgrid(*places, indexing="ij")] = tensor.detach()
    return found


def _heads(network: AdpcNet) -> list[nn.Sequential]:
    heads = [getattr(network, f"exit{k}") for k in (1, 2, 3) if hasattr(network, f"exit{k}")]
    return [*heads, network.last_layer]


@cache
def _places(config: ModelConfig) -> dict[str, Places]:
    """The `Places` of every tensor, by its name in the plain network."""
    assert isinstance(config, AdpcConfig)
    with torch.device("meta"):
        network = AdpcNet(config)
    read: dict[int, Sequence[int]] = {}
    for k, head in enumerate(_heads(network), start=5 - len(_heads(network))):
        first = next(layer for layer in head if isinstance(layer, nn.Conv2d))
        parts = (256,) if k == 1 else config.backbone.channels(k)
        if first.in_channels == sum(parts):
            read[id(first)] = parts
    found: dict[str, Places] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            inputs = _lie(read.get(id(layer), (layer.in_channels,)))
            outputs = _lie((layer.out_channels,))
            found[f"{name}.weight"] = outputs, inputs, *(torch.arange(k) for k in layer.kernel_size)
            if layer.bias is not None:
                found[f"{name}.bias"] = (outputs,)
        elif isinstance(layer, nn.BatchNorm2d):
            for own in ("weight", "bias", "running_mean", "running_var"):
                found[f"{name}.{own}"] = (_lie((layer.num_features,)),)
    return found


def _lie(parts: Sequence[int]) -> Tensor:
    """The indices of concatenated parts, of so many channels each, when every part is padded by itself."""
    starts = [sum(map(padded, parts[:index])) for index in range(len(parts))]
    return torch.cat([torch.arange(start, start + count) for start, count in zip(starts, parts, strict=True)])
