"""Side-by-side speed on a GPU: milliseconds to every exit, against the dense runtimes that one could pick instead.

`python -m models bench --device cuda` comes here. Weights are random (they do not matter to time), masks are those of a
drawn scene at given active shares.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from models.adpc import AdpcNet
from models.configs import CONFIGS, Masking
from models.executors.reference import ReferenceExecutor
from models.executors.triton import TritonExecutor
from models.flops import Size
from models.preprocess import MULTIPLE, STRIDE, Frame
from models.training.data import scenes

COMPILE_MODES = ("max-autotune",)
"""torch.compile's; each takes minutes on an HRNet."""


@dataclass(frozen=True)
class Timing:
    """`ms`: median milliseconds from an input on the device to each exit's scores."""

    runtime: str
    network: str
    size: str
    ms: list[float]
    error: float | None = None  # largest difference from the fp32 reference / largest score


def positions(size: Size, shares: Sequence[float], seed: int) -> dict[int, Tensor]:
    """Masks by exit, bool (1, 1, h, w), on the GPU: those of a drawn scene."""
    height, width = size[0] // STRIDE, size[1] // STRIDE
    masks = scenes.masks(scenes.draw(2 * height, 2 * width, seed), height, width, shares)
    return {index: torch.from_numpy(mask).cuda()[None, None] for index, mask in enumerate(masks, 1)}


def network(name: str) -> AdpcNet:
    """Random weights whose features stay in range: batch norms as after training on noise."""
    torch.manual_seed(0)
    net = AdpcNet(CONFIGS[name]).cuda()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            nn.init.uniform_(layer.weight, 0.7, 1.1)
            nn.init.normal_(layer.bias, 0, 0.1)
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 256, 256, device="cuda"), adaptive=False)
    return net.eval()


def steps(executor: TritonExecutor, inputs: Tensor, repeats: int) -> list[float]:
    """Milliseconds until the scores of every exit are known to be there, with all that a request costs the host."""
    frame = Frame(*inputs.shape[2:])
    times: list[list[float]] = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        state = executor.start(inputs, frame)
        times.append([])
        for step in executor.steps:
            executor.advance([state])
            if step.exit is not None:
                torch.cuda.synchronize()
                times[-1].append((time.perf_counter() - began_s) * 1000)
    return [median(column) for column in zip(*times[2:], strict=True)]


def whole(run: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began_s) * 1000)
    return [median(times[2:])]


def error(name: str, size: Size, forced: dict[int, Tensor]) -> float:
    """Largest difference of any exit's scores from those of the fp32 reference under the same masks."""

    def chosen(scores: Tensor, _: Masking, index: int) -> Tensor:
        return forced.get(index, torch.zeros_like(scores[:, :1], dtype=torch.bool))

    inputs, frame = torch.randn(1, 3, *size, device="cuda"), Frame(*size)
    reference = ReferenceExecutor(network(name), "cuda")
    executor = TritonExecutor(network(name), "cuda")
    executor.forced = forced
    worst = 0.0
    with (
        patch("models.adpc.active", chosen),
        patch("models.executors.reference.active", chosen),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        true, ours = reference.start(inputs, frame), executor.start(inputs, frame)
        for step in executor.steps:
            executor.advance([ours])
            reference.advance([true])
            if step.exit is not None and true.exit is not None and ours.exit is not None:
                difference = (true.exit.scores - ours.exit.scores).abs().max() / true.exit.scores.abs().max()
                worst = max(worst, float(difference))
    return worst


def torch_graph(name: str, inputs: Tensor) -> Callable[[], object]:
    """Eager PyTorch: half precision, channels last, one CUDA graph."""
    net = network(name).half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    halves = inputs.half().to(memory_format=torch.channels_last)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        with torch.cuda.stream(stream):
            net(halves, adaptive=False)
        with torch.cuda.graph(graph):
            net(halves, adaptive=False)
    return graph.replay


def torch_compile(name: str, inputs: Tensor, mode: str) -> Callable[[], object]:
    net = network(name).half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    halves = inputs.half().to(memory_format=torch.channels_last)
    torch._inductor.config.freezing = True  # folds batch norms
    compiled = torch.compile(lambda images: net(images, adaptive=False), mode=mode)

    def run() -> object:
        with torch.inference_mode():
            return compiled(halves)

    run()
    return run


def onnx_runtime(name: str, inputs: Tensor, folder: Path) -> Callable[[], object] | None:
    """ONNX Runtime with CUDA, or None if it is not installed so."""
    try:
        import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError:
        return None
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return None
    path = folder / f"{name}.onnx"
    net = network(name).half()
    torch.onnx.export(net, (inputs.half(),), path, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CUDAExecutionProvider"])
    binding = session.io_binding()
    halves = inputs.half().contiguous()
    feed = session.get_inputs()[0]
    binding.bind_input(feed.name, "cuda", 0, np.float16, tuple(halves.shape), halves.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: session.run_with_iobinding(binding)


def bench(
    width: str, size: Size, forced: dict[int, Tensor], *, repeats: int, modes: Sequence[str], folder: Path
) -> list[Timing]:
    """Every runtime on one-exit HRNet, the anytime network without masks, and with them."""
    label = f"{size[0]}x{size[1]}"
    one, plain, masked = (f"{kind}-{width}-cityscapes" for kind in ("hrnet", "rh", "adpc"))
    inputs = torch.randn(1, 3, *size, device="cuda")
    rows = []

    def add(runtime: str, name: str, ms: list[float], off: float | None = None) -> None:
        rows.append(Timing(runtime, name, label, ms, off))
        known = f"   error {off:.1e}" if off is not None else ""
        print(f"{label:>10}  {name:24} {runtime:28} {'  '.join(f'{value:8.3f}' for value in ms)}{known}", flush=True)
        torch.cuda.empty_cache()

    executor = TritonExecutor(network(masked), "cuda")
    executor.forced = forced
    add("triton, masks", masked, steps(executor, inputs, repeats), error(masked, size, forced))
    for name, choice in executor.choices[f"{label}x1"].items():
        print(f"{'':10}  {name:32} {choice}, {choice.tile}")
    executor = TritonExecutor(network(masked), "cuda")
    executor.forced = {index: torch.ones_like(mask) for index, mask in forced.items()}
    add("triton, everything active", masked, steps(executor, inputs, repeats))
    for name in (plain, one):
        add("triton executor, no masks", name, steps(TritonExecutor(network(name), "cuda"), inputs, repeats))
        add("torch channels-last, graph", name, whole(torch_graph(name, inputs), repeats))
    for mode in modes:
        add(f"torch.compile {mode}", one, whole(torch_compile(one, inputs, mode), repeats))
    run = onnx_runtime(one, inputs, folder)
    if run is not None:
        add("ONNX Runtime, CUDA", one, whole(run, repeats))
    ours = rows[0].ms[-1]
    fastest = min((row for row in rows if row.network == one), key=lambda row: row.ms[-1])
    print(f"{label:>10}  {fastest.ms[-1] / ours:.2f}x faster than the fastest one-exit network ({fastest.runtime})")
    return rows


def main(args: argparse.Namespace, shares: Mapping[str, tuple[float, ...]]) -> int:
    """`args` of the bench command; `shares` by width, where none are given. Raises ValueError without a GPU."""
    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU; benchmark with --device cpu")
    folder = args.output or Path("bench-gpu")
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": shlex.join(sys.argv), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    modes = COMPILE_MODES if "compile" in args.runtimes else ()
    print(json.dumps(about))
    rows: list[Timing] = []
    for width in args.widths:
        for height, breadth in args.sizes:
            size = (height + -height % MULTIPLE, breadth + -breadth % MULTIPLE)
            forced = positions(size, args.active or shares[width], args.seed)
            rows += bench(width, size, forced, repeats=args.repeats, modes=modes, folder=folder)
            report = {**about, "seed": args.seed, "rows": [asdict(row) for row in rows]}
            (folder / "bench-gpu.json").write_text(json.dumps(report, indent=1))
    return 0
