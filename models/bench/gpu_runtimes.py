"""What `python -m models bench --device cuda` runs: the Triton executor, and the dense runtimes of a GPU.

Weights are random (they do not matter to time), masks are those of a drawn scene. Needs a GPU and Triton.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from models.anytime import exits_in_turns, exits_of, largest, score_difference
from models.bench import street_masks
from models.bench.gpu import GpuCase, GpuTiming
from models.executors.gpu.executor import TritonExecutor
from models.executors.gpu.graphs import capture
from models.executors.gpu.tuning import TUNED, write
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import STRIDE, Frame, Size
from models.network.adpc import AdpcNet
from models.network.configs import Masking
from models.network.families import config
from models.network.network import build_network


def positions(size: Size, shares: Sequence[float], seed: int) -> dict[int, Tensor]:
    """Masks by exit, bool (1, 1, h, w), on the GPU: those of a drawn scene."""
    height, width = size[0] // STRIDE, size[1] // STRIDE
    masks = street_masks.masks(street_masks.draw(2 * height, 2 * width, seed), height, width, shares)
    return {index: torch.from_numpy(mask).cuda()[None, None] for index, mask in enumerate(masks, 1)}


def network(name: str) -> AdpcNet:
    """Random weights whose features stay in range: batch norms as after training on noise."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        net = build_network(config(name))
    assert isinstance(net, AdpcNet)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            nn.init.uniform_(layer.weight, 0.7, 1.1)
            nn.init.normal_(layer.bias, 0, 0.1)
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 256, 256, device="cuda"), adaptive=False)
    return net.eval()


WARM_UP_S = 0.5
"""A GPU that did nothing runs at a low clock at first."""


def steps(executor: TritonExecutor, inputs: Tensor, repeats: int) -> GpuTiming:
    """Milliseconds until the scores of every exit are known to be there, with all that a request costs the host."""
    frame = Frame(*inputs.shape[2:])

    def once() -> list[float]:
        times = []
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        state = executor.start(inputs, frame)
        for _ in exits_of(executor, [state]):
            torch.cuda.synchronize()
            times.append((time.perf_counter() - began_s) * 1000)
        return times

    return repeated(once, repeats)


def whole(run: Callable[[], object], repeats: int) -> GpuTiming:
    """Milliseconds until what `run` launches is done."""

    def once() -> list[float]:
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return [(time.perf_counter() - began_s) * 1000]

    return repeated(once, repeats)


def repeated(once: Callable[[], list[float]], repeats: int) -> GpuTiming:
    """`once` gives the milliseconds to each exit; the first runs, for `WARM_UP_S` and two at least, do not count."""
    began_s = time.perf_counter()
    warm = 0
    while warm < 2 or time.perf_counter() - began_s < WARM_UP_S:
        once()
        warm += 1
    columns = list(zip(*(once() for _ in range(repeats)), strict=True))
    return GpuTiming([median(column) for column in columns], [min(column) for column in columns])


def error(executor: TritonExecutor, net: AdpcNet, size: Size) -> float:
    """Largest difference of any exit's scores from those of the fp32 reference of `net` under the same masks."""

    def chosen(scores: Tensor, _: Masking, index: int) -> Tensor:
        return executor.forced_masks.get(index, torch.zeros_like(scores[:, :1], dtype=torch.bool))

    inputs, frame = torch.randn(1, 3, *size, device="cuda"), Frame(*size)
    reference = ReferenceExecutor(net, "cuda")
    worst = 0.0
    with (
        patch("models.network.adpc.make_mask", chosen),
        patch("models.executors.reference.make_mask", chosen),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        true, ours = reference.start(inputs, frame), executor.start(inputs, frame)
        for _ in exits_in_turns([(executor, [ours]), (reference, [true])]):
            worst = largest([worst, score_difference(ours.latest().scores, true.latest().scores)])
    return worst


def torch_graph(name: str, inputs: Tensor) -> Callable[[], object]:
    """Eager PyTorch: half precision, channels last, one CUDA graph."""
    net, halves = _half(name, inputs)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        return _recorded(lambda: net(halves, adaptive=False))


def torch_eager(name: str, inputs: Tensor) -> Callable[[], object]:
    """Eager PyTorch: half precision, channels last, every kernel launched by the host."""
    net, halves = _half(name, inputs)

    @torch.inference_mode()
    @torch.backends.cudnn.flags(enabled=True, benchmark=True)
    def run() -> object:
        return net(halves, adaptive=False)

    return run


def torch_compile(name: str, inputs: Tensor) -> Callable[[], object]:
    """What torch.compile makes of the same network, batch norms folded; one CUDA graph."""
    net, halves = _half(name, inputs)
    torch._inductor.config.freezing = True  # folds batch norms
    compiled = torch.compile(lambda images: net(images, adaptive=False))
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        return _recorded(lambda: compiled(halves))


def _half(name: str, inputs: Tensor) -> tuple[AdpcNet, Tensor]:
    net = network(name).half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, inputs.half().to(memory_format=torch.channels_last)


def _recorded(job: Callable[[], object]) -> Callable[[], object]:
    """The replay of `job`, which is run first, so that all it needs is compiled and measured."""
    job()
    torch.cuda.synchronize()
    return capture(job).replay


def onnx_runtime(name: str, inputs: Tensor) -> Callable[[], object]:
    """Raises ModuleNotFoundError unless ONNX Runtime is installed with CUDA."""
    import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415 - an optional extra

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ModuleNotFoundError("the installed ONNX Runtime has no CUDA; install onnxruntime-gpu")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(network(name).half(), (inputs.half(),), path, dynamo=False)
        session = onnxruntime.InferenceSession(path, providers=["CUDAExecutionProvider"])
    binding = session.io_binding()
    halves = inputs.half().contiguous()
    feed = session.get_inputs()[0]
    binding.bind_input(feed.name, "cuda", 0, np.float16, tuple(halves.shape), halves.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: session.run_with_iobinding(binding)


DENSE = {"torch": torch_graph, "eager": torch_eager, "compile": torch_compile, "onnxruntime": onnx_runtime}


def measure(task: GpuCase) -> GpuTiming:
    """On the GPU of this process."""
    inputs = torch.randn(1, 3, *task.size, device="cuda")
    if task.runtime != "triton":
        return whole(DENSE[task.runtime](task.network, inputs), task.repeats)
    net = network(task.network)
    executor = TritonExecutor(net, "cuda", tuned=Path(task.tuned) if task.tuned else TUNED)
    executor.forced_masks = positions(task.size, task.active, task.seed) if task.active else {}
    timing = steps(executor, inputs, task.repeats)
    if not task.active:
        return timing
    if task.tuned:
        write(Path(task.tuned), torch.cuda.get_device_name(), executor.measured)
    tunings = executor.tunings[f"{task.size[0]}x{task.size[1]}x1"]
    chosen = {name: f"{tuning}, {tuning.tile}" for name, tuning in tunings.items()}
    return replace(timing, error=error(executor, net, task.size), choices=chosen)
