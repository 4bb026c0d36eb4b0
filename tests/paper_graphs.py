"""CUDA graphs on paper: their rules, played on a CPU with kernels in Triton's interpreter.

A recording executes nothing, so that the tensors that it makes are undefined. A replay runs the recorded work on the
recorded addresses. Memory that nobody referred to when a graph was recorded belongs to that graph, which overwrites it
whenever it is replayed.
"""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only


def spoil(tensor: Tensor) -> None:
    """Fills a tensor with what no result may depend on: NaN, or the largest or a negative integer."""
    tensor.fill_(float("nan") if tensor.is_floating_point() else 255 if tensor.dtype == torch.uint8 else -(1 << 30))


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recording(TorchDispatchMode):
    """`work`: what a replay runs, in order. `made`: tensors that the recorded work allocates. `given`: all others that
    it uses. They are aliases, so that one can tell whether anybody else still refers to a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], object]] = []
        self.made: list[Tensor] = []
        self.given: list[Tensor] = []

    def launch(self, run: Callable[..., object], args: Any, kwargs: Any) -> None:
        with _disable_current_modes():
            args = self._aliases(args)
        self.work.append(lambda: run(*args, **kwargs))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own, options = self._aliases(args), self._aliases(kwargs or {})
        if func._schema.is_mutable:
            self.work.append(lambda: func(*own, **options))
            return args[0]
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, Tensor) or address(out) in {address(x) for x in tree_leaves(own) if type(x) is Tensor}:
            return out  # a view is an address and takes no work
        spoil(out)
        result = torch.ops.aten.alias(out)
        self.made.append(result)
        if "empty" in func._schema.name:
            self.work.append(lambda: spoil(result))
        else:
            self.work.append(lambda: result.copy_(func(*own, **options)))
        return out

    def _aliases(self, values: Any) -> Any:
        values = tree_map_only(Tensor, torch.ops.aten.alias, values)
        self.given += [x for x in tree_leaves(values) if isinstance(x, Tensor)]
        return values


class PaperGraphs:
    """Records graphs that share one memory pool, see `Recorder`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._recordings: list[Recording] = []
        self._spoilt: list[Tensor] = []

    def record(self, job: Callable[[], object]) -> Callable[[], None]:
        from triton.runtime.interpreter import InterpretedFunction  # noqa: PLC0415 - after it is told to interpret

        job()  # as `CudaGraphs` does
        run, recording = InterpretedFunction.run, Recording()
        alive = self._alive()
        free = [made for earlier in self._recordings for made in earlier.made if address(made) not in alive]
        with self._patch.context() as patch, recording:
            patch.setattr(InterpretedFunction, "run", lambda *args, **kwargs: recording.launch(run, args, kwargs))
            job()
        self._recordings.append(recording)

        def replay() -> None:
            for tensor in free:
                spoil(tensor)
            for each in recording.work:
                each()

        return replay

    def verify(self) -> None:
        """Everything that a graph uses, and that no graph made, still belongs to somebody."""
        made = {address(x) for recording in self._recordings for x in recording.made}
        outside = {address(x) for recording in self._recordings for x in recording.given} - made
        assert outside <= self._alive(), "a graph uses memory that was freed"

    def _alive(self) -> set[int]:
        """The storages that anybody but the recordings refers to."""
        gc.collect()
        own = {id(x) for recording in self._recordings for x in recording.made + recording.given}
        return {address(x) for x in gc.get_objects() if type(x) in (Tensor, torch.nn.Parameter) and id(x) not in own}
