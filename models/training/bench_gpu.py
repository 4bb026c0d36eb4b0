"""Side-by-side speed on a GPU: milliseconds to every exit, against the dense runtimes that one could pick instead.

`python -m models.training.bench_gpu` prints the table and writes JSON. Weights are random (they do not matter to time),
masks are those of a synthetic scene, whose active shares and outlines are those of CamVid's label interiors.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from models.adpc import AdpcNet
from models.configs import CONFIGS, Masking
from models.executors.reference import ReferenceExecutor
from models.executors.triton import TritonExecutor
from models.flops import Size, parse_shares, parse_size
from models.preprocess import STRIDE, Frame

SHARES = (0.807, 0.616, 0.370)
"""What the paper's ADP-C leaves active after exits 1 to 3."""


@dataclass(frozen=True)
class Timing:
    """`ms`: median milliseconds from an input on the device to each exit's scores."""

    runtime: str
    network: str
    size: str
    ms: list[float]
    error: float | None = None  # largest difference from the fp32 reference / largest score


def scene(height: int, width: int, seed: int = 1, surfaces: int = 3, things: int = 10) -> NDArray[np.int32]:
    """A label map (height, width) of some wavy surfaces and ellipses of all sizes on them.

    At the paper's shares its masks grow by 1 to 3 % in a 3x3 halo, and cover 41 / 46 / 54 % in blocks of 4 / 8 / 16
    where 37 % are active: as those of CamVid do.
    """
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    labels = np.zeros((height, width), np.int32)
    for surface in range(surfaces):
        a, b, c = draw.normal(size=3)
        outside = a * (x - draw.uniform(0, width / height)) + b * (y - draw.uniform(0, 1))
        labels += (outside > 0.1 * np.sin(5 * c * x + 7 * a * y + surface)) << (surface % 4)
    for thing in range(things):
        radius = draw.pareto(1.5) * 0.02 + 0.02
        left, top, aspect = draw.uniform(0, width / height), draw.uniform(0, 1), draw.uniform(0.4, 2.5)
        labels[((x - left) / radius / aspect) ** 2 + ((y - top) / radius * aspect) ** 2 < 1] = 100 + thing
    return labels


def interiors(labels: NDArray[np.int32], shares: Sequence[float]) -> list[NDArray[np.bool_]]:
    """For each share, the positions nearest to a label's outline, bool like `labels`; what is far away is settled."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    distance = distance_transform_edt(~edge) + np.random.default_rng(0).uniform(0, 1e-3, labels.shape)  # no ties
    ordered = np.sort(distance, axis=None)
    return [distance <= ordered[max(round(share * ordered.size) - 1, 0)] for share in shares]


def positions(size: Size, shares: Sequence[float]) -> dict[int, Tensor]:
    """Masks by exit, bool (1, 1, h, w), on the GPU."""
    masks = interiors(scene(size[0] // STRIDE, size[1] // STRIDE), shares)
    return {
        index: torch.from_numpy(np.ascontiguousarray(mask)).cuda()[None, None] for index, mask in enumerate(masks, 1)
    }


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
    width: str, size: Size, shares: tuple[float, ...], *, repeats: int, modes: Sequence[str], folder: Path
) -> list[Timing]:
    """Every runtime on one-exit HRNet, the anytime network without masks, and with them."""
    label = f"{size[0]}x{size[1]}"
    one, plain, masked = (f"{kind}-{width}-cityscapes" for kind in ("hrnet", "rh", "adpc"))
    inputs = torch.randn(1, 3, *size, device="cuda")
    forced = positions(size, shares)
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models.training.bench_gpu", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=("w18", "w48"), default=["w48", "w18"])
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(512, 1024), (1024, 2048)], metavar="HxW")
    parser.add_argument("--active", type=parse_shares, default=SHARES, metavar="P1,P2,P3")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compile", nargs="*", default=["max-autotune"], metavar="MODE", help="torch.compile's modes")
    parser.add_argument("--output", type=Path, default=Path("bench-gpu"), metavar="DIR")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that torch can see; this benchmark needs one")
        return 1
    args.output.mkdir(parents=True, exist_ok=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "seed": 0, "active": args.active}
    print(json.dumps(machine))
    rows: list[Timing] = []
    for width in args.networks:
        for size in args.sizes:
            rows += bench(width, size, args.active, repeats=args.repeats, modes=args.compile, folder=args.output)
            results = {"machine": machine, "rows": [asdict(row) for row in rows]}
            (args.output / "bench-gpu.json").write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
