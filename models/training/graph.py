"""Training steps as CUDA graphs: a step of a small network is thousands of tiny kernels, whose launches cost more than
their work. Imports nothing of this project.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, bool | None], Tensor]
"""update(inputs, targets, adaptive) -> loss of each exit."""

WARM_UP = 4
"""Steps that run as they are before one is captured: libraries choose algorithms, compilers compile, in them."""


@dataclass
class _Captured:
    """`graph` is None until the form's first calls are over."""

    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    targets: Tensor = field(default_factory=lambda: torch.empty(0))
    result: Tensor = field(default_factory=lambda: torch.empty(0))


class Replayed:
    """An update on a CUDA device. For each shape of the inputs, and each value of `adaptive`, the first calls run as
    they are, the next one is captured, and those after it are replayed.

    To be called in a stream that is not the default one, always the same.
    """

    def __init__(self, update: Update) -> None:
        self.update = update
        self.forms: dict[tuple[torch.Size, bool | None], _Captured] = {}

    def __call__(self, inputs: Tensor, targets: Tensor, adaptive: bool | None) -> Tensor:
        """The result stays valid until the next call."""
        form = self.forms.setdefault((inputs.shape, adaptive), _Captured())
        form.calls += 1
        if form.calls <= WARM_UP:
            return self.update(inputs, targets, adaptive)
        if form.graph is None:
            form.inputs, form.targets = inputs.clone(), targets.clone()
            graph = torch.cuda.CUDAGraph()
            # Other threads may train on the device meanwhile.
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                form.result = self.update(form.inputs, form.targets, adaptive)
            form.graph = graph
        form.inputs.copy_(inputs)
        form.targets.copy_(targets)
        form.graph.replay()
        return form.result
