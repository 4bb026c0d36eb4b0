"""Training steps as CUDA graphs: a step of a small network is thousands of tiny kernels, whose launches cost more than
their work. Imports nothing of this project.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, bool | None], Tensor]
"""update(inputs, targets, adaptive) -> loss of each exit."""

WARM_UP = 4
"""Steps that run as they are before one is captured: libraries choose algorithms, compilers compile, in them."""


class Replayed:
    """An update on a CUDA device that is captured after its first calls, and replayed while shapes stay the same.

    To be called in a stream that is not the default one, always the same.
    """

    def __init__(self, update: Update) -> None:
        self.update = update
        self.graph: torch.cuda.CUDAGraph | None = None
        self.form: tuple[torch.Size, bool | None] | None = None
        self.calls = 0
        self.inputs = self.targets = self.result = torch.empty(0)

    def __call__(self, inputs: Tensor, targets: Tensor, adaptive: bool | None) -> Tensor:
        """The result stays valid until the next call."""
        if (inputs.shape, adaptive) != self.form:
            self.graph, self.calls, self.form = None, 0, (inputs.shape, adaptive)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.update(inputs, targets, adaptive)
        if self.graph is None:
            self.inputs, self.targets = inputs.clone(), targets.clone()
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may train on the device meanwhile.
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self.result = self.update(self.inputs, self.targets, adaptive)
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.result
