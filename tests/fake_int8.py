"""A network in eight bits, imitated in floating point by hooks on its modules, and the scales that it takes.

Every named feature (see models/executors/cpu/lowering.py) passes through a function, which may look at it or round it.
"""

import itertools
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.network.adpc import AdpcNet
from models.network.hrnet import BasicBlock, Bottleneck, HighResolutionModule, Transition
from models.quantisation import Scales

Use = Callable[[str, Tensor], Tensor]


def hook(network: AdpcNet, use: Use) -> list[RemovableHandle]:
    """Passes every named feature through `use`."""
    handles: list[RemovableHandle] = []

    def before(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: (use(name, args[0]), *args[1:])))

    def after(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _, args, y: use(name, y)))

    def after_each(module: nn.Module, name: str) -> None:
        handles.append(
            module.register_forward_hook(lambda _, args, ys: tuple(use(f"{name}.{i}", y) for i, y in enumerate(ys)))
        )

    before(network.conv2, "conv1")
    before(network.layer1, "conv2")
    for path, module in network.named_modules():
        match module:
            case BasicBlock():
                before(module.conv2, f"{path}.conv1")
                after(module, path)
            case Bottleneck():
                before(module.conv2, f"{path}.conv1")
                before(module.conv3, f"{path}.conv2")
                after(module, path)
            case Transition():
                for branch, layer in enumerate(module):
                    if not isinstance(layer, nn.Identity):
                        after(layer, f"{path}.{branch}")
            case HighResolutionModule():
                after_each(module, f"{path}.out")
            case nn.Sequential() if re.fullmatch(r".*fuse_layers\.\d+\.\d+\.\d+", path) and len(module) == 3:
                after(module, path)  # a hop that ends in a ReLU
            case nn.Sequential() if re.fullmatch(r"exit\d|last_layer", path):
                pooled = itertools.count()
                for index, layer in enumerate(module):
                    if isinstance(layer, nn.AvgPool2d):
                        after(layer, f"{path}.pooled.{next(pooled)}")
                    if isinstance(layer, nn.ReLU):
                        after(layer, f"{path}.{index - 2}")
    return handles


def scales(network: AdpcNet, images: list[Tensor], float_layers: tuple[str, ...] = ()) -> Scales:
    """From the largest value of each feature. `images`: float32 (1, 3, H, W), normalised."""
    largest: dict[str, float] = {}

    def observe(name: str, x: Tensor) -> Tensor:
        largest[name] = max(largest.get(name, 1e-6), float(x.max()))
        return x

    handles = hook(network, observe)
    with torch.no_grad():
        for image in images:
            network(image)
    for handle in handles:
        handle.remove()
    return Scales("", {name: value / 255 for name, value in largest.items()}, float_layers)


def imitate(network: AdpcNet, found: Scales) -> AdpcNet:
    """A copy of `network` whose features and weights take the values that they have in eight bits."""
    copy = AdpcNet(network.config)
    copy.load_state_dict(network.state_dict())

    def rounded(name: str, x: Tensor) -> Tensor:
        scale = found.features[name]
        return (x / scale).round().clamp(0, 255) * scale

    hook(copy, rounded)
    with torch.no_grad():
        for name, layer in copy.named_modules():
            if isinstance(layer, nn.Conv2d) and name != "conv1" and name not in found.float_layers:
                step = layer.weight.abs().amax((1, 2, 3), keepdim=True) / 127
                layer.weight.copy_((layer.weight / step).round() * step)
    return copy.eval()
