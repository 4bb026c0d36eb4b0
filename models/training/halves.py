"""Convolutions in bfloat16 with weights in float32: one kernel makes all copies of a step, and one takes all gradients
over, where autocast launches two for each weight."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.network.network import Network


class HalfWeights:
    """bfloat16 copies of the weights and biases of a network's convolutions. A step of training is `forward`, the
    backward pass, `hand_over`; it computes what autocast computes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        named = {
            f"{name}.{own}": parameter
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Conv2d)
            for own, parameter in (("weight", layer.weight), ("bias", layer.bias))
            if parameter is not None
        }
        self.whole = list(named.values())
        self.halves = {name: tensor.detach().bfloat16().requires_grad_() for name, tensor in named.items()}
        self.gradients = [torch.zeros_like(tensor) for tensor in self.whole]

    def forward(self, inputs: Tensor, adaptive: bool | None) -> tuple[Tensor, ...]:
        """The network's scores, by new copies; to be called with autocast to bfloat16."""
        halves = list(self.halves.values())
        with torch.no_grad():
            torch._foreach_copy_(halves, self.whole)
        for half in halves:
            half.grad = None
        found: tuple[Tensor, ...] = functional_call(self.network, self.halves, (inputs, adaptive), strict=False)
        return found

    def hand_over(self) -> None:
        """Give the weights the gradients of their copies."""
        taken = [(whole, kept, half.grad) for whole, kept, half in zip(
            self.whole, self.gradients, self.halves.values(), strict=True
        ) if half.grad is not None]  # fmt: skip
        torch._foreach_copy_([kept for _, kept, _ in taken], [gradient for _, _, gradient in taken])
        for whole, kept, _ in taken:
            whole.grad = kept
