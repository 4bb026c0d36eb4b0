"""Training steps as CUDA graphs. A step of a small network is thousands of tiny kernels, and launching them takes
longer than their work.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, bool | None], Tensor]
"""update(inputs, targets, adaptive) -> loss of each exit."""

WARM_UP = 4
"""How many steps run uncaptured first. In these, libraries choose algorithms and compilers compile."""


@dataclass
class _Captured:
    """A form of the step, with its captured graph. `graph` is None until `WARM_UP` calls are over."""

    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    targets: Tensor = field(default_factory=lambda: torch.empty(0))
    result: Tensor = field(default_factory=lambda: torch.empty(0))


class Replayed:
    """An update on a CUDA device. For each shape of the inputs and each value of `adaptive`, the first calls run
    uncaptured, the next one is captured, and later ones replay the graph.

    Call it always in the same stream, which must not be the default one.
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
            # Other threads may train on the device during the capture.
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                form.result = self.update(form.inputs, form.targets, adaptive)
            form.graph = graph
        form.inputs.copy_(inputs)
        form.targets.copy_(targets)
        form.graph.replay()
        return form.result
