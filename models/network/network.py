"""The interface of networks of all families to the code that runs, counts, trains, saves and loads them.

A family derives its network from `Network`, its kinds of steps from `anytime.Step`, and, if its requests remember more
than features, its progress from `Progress`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.anytime import Step
from models.imaging.preprocess import check_input
from models.network.confidence import Masks
from models.network.configs import ModelConfig
from models.network.families import FAMILIES, imported


@dataclass(frozen=True)
class Progress:
    """The progress of a batch of N inputs through a network. It is an immutable value: modules keep nothing of a
    request.

    `features`: what the next step reads; before the first one, the images (N, 3, H, W). `masks`: those of the latest
    exit, under which the next stage is computed; None means everywhere. `scores`: of the latest exit, after carry-over
    (equation 7), float (N, outputs, H / 4, W / 4). `decided`: uint8 (N, 1, H / 4, W / 4), see `Exit`. `changed`:
    whether the latest step changed anything for one of them; otherwise it computed nothing. `final`: whether no later
    step changes anything for any of them.

    Fields of a derived class are tensors whose first dimension is N, `Masks`, dataclasses or tuples of these, or values
    that are equal for all inputs that stand at one step; see `batched` and `one_of`.
    """

    features: tuple[Tensor, ...]
    masks: Masks | None = None
    scores: Tensor | None = None
    decided: Tensor | None = None
    changed: bool = True
    final: bool = False


class Stepwise(Protocol):
    """What the reference executor runs: a network, or whatever computes the same steps."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...

    def start(self, images: Tensor) -> Progress:
        """The progress of a batch before its first step: float (N, 3, H, W), normalised, H and W multiples of 32.

        Raises ValueError on other sizes.
        """

    def advance(self, progress: Progress, step: Step) -> Progress:
        """The progress after `step`, which must be the next step of `progress`. Does not change `progress`."""


class Network(nn.Module, ABC):
    """A trainable network with exits.

    `steps`: in the order in which they run; the steps that complete exits number them 1 to `config.exits`. Every
    convolution is an `nn.Conv2d` that is called as a module, each time it is computed: operations are counted there.
    """

    config: ModelConfig
    steps: tuple[Step, ...]

    def start(self, images: Tensor) -> Progress:
        """See `Stepwise.start`."""
        check_input(images)
        return Progress((images,))

    @abstractmethod
    def advance(self, progress: Progress, step: Step, adaptive: bool | None = None) -> Progress:
        """See `Stepwise.advance`. `adaptive`: whether an input's own results may spare it work, for example by
        masks; None follows the configuration and `self.training`."""

    def exits(self, images: Tensor, adaptive: bool | None = None) -> Iterator[Progress]:
        """The progress at every exit."""
        progress = self.start(images)
        for step in self.steps:
            progress = self.advance(progress, step, adaptive)
            if step.exit is not None:
                yield progress

    def forward(self, images: Tensor, adaptive: bool | None = None) -> tuple[Tensor, ...]:
        """The scores of every exit, each (N, outputs, H / 4, W / 4): for training and evaluation."""
        return tuple(found.scores for found in self.exits(images, adaptive) if found.scores is not None)

    def details(self, progress: Progress) -> Mapping[str, Tensor]:
        """What `python -m models run` writes about one input besides its scores, by name."""
        return {}

    @abstractmethod
    def heads(self) -> Sequence[nn.Module]:
        """The layers that make scores of features, a module for each head. The last convolution of each gives the
        scores."""

    @abstractmethod
    def in_backbone(self, name: str) -> bool:
        """Whether a tensor of this name, in this network or in a larger one of its kind, belongs to the backbone, which
        can be taken from a network for another task."""

    def own_name(self, released: str, tensor: Tensor) -> str | None:
        """This network's name for a tensor of a released checkpoint, None if the network does not need the tensor.
        `released`: the name there, without the prefixes of wrappers. Raises ValueError if the tensor shows that the
        checkpoint is of another configuration."""
        return released

    def may_lack(self, name: str) -> bool:
        """Whether a tensor may be missing in weights that were trained without masks, or in a backbone alone. It then
        keeps its initial value."""
        return False

    def passes_over(self, name: str) -> bool:
        """Whether a tensor that this network lacks may be ignored when only the backbone is loaded."""
        return False


def build_network(config: ModelConfig) -> Network:
    """The network of a configuration, with random weights."""
    network: Network = imported(FAMILIES[config.family].network)(config)
    return network


def batched(progresses: Sequence[Progress]) -> Progress:
    """Joins progresses that wait for the same step into one batch. Raises ValueError if they differ in a value that a
    batch must share."""
    joined: Progress = _join(progresses)
    return joined


def one_of(progress: Progress, index: int) -> Progress:
    """Copies one input's progress out of a batch. It shares no memory with the batch, so it can outlive it."""
    found: Progress = _pick(progress, index)
    return found


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, Masks):
        return Masks(torch.cat([masks.finest for masks in values]))
    if isinstance(first, tuple):
        return tuple(_join(parts) for parts in zip(*values, strict=True))
    if is_dataclass(first):
        return _rebuilt(first, {name: _join([getattr(each, name) for each in values]) for name in _names(first)})
    if any(value != first for value in values):
        raise ValueError(f"{len(values)} requests hold unequal values, such as {first!r}; batch equal ones")
    return first


def _pick(value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return value[index : index + 1].clone()
    if isinstance(value, Masks):
        return Masks(value.finest[index : index + 1].clone())
    if isinstance(value, tuple):
        return tuple(_pick(part, index) for part in value)
    if is_dataclass(value):
        return _rebuilt(value, {name: _pick(getattr(value, name), index) for name in _names(value)})
    return value


def _names(value: Any) -> list[str]:
    return [field.name for field in fields(value)]


def _rebuilt(value: Any, parts: Mapping[str, Any]) -> Any:
    return replace(value, **parts)
