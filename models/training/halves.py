"""Convolutions in bfloat16 with weights in float32. In a step, one kernel copies all weights and one all gradients,
where autocast launches two kernels for each weight.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.network.network import Network


class HalfWeights:
    """bfloat16 copies of the weights and biases of a network's convolutions. A training step calls `forward`, then the
    backward pass, then `hand_over`, and computes the same as with autocast."""

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
        """Copies the weights anew and computes the network's scores. Call it with autocast to bfloat16."""
        halves = list(self.halves.values())
        with torch.no_grad():
            torch._foreach_copy_(halves, self.whole)
        for half in halves:
            half.grad = None
        found: tuple[Tensor, ...] = functional_call(self.network, self.halves, (inputs, adaptive), strict=False)
        return found

    def hand_over(self) -> None:
        """Copies the gradients of the copies to the weights."""
        taken = [(whole, kept, half.grad) for whole, kept, half in zip(
            self.whole, self.gradients, self.halves.values(), strict=True
        ) if half.grad is not None]  # fmt: skip
        torch._foreach_copy_([kept for _, kept, _ in taken], [gradient for _, _, gradient in taken])
        for whole, kept, _ in taken:
            whole.grad = kept
