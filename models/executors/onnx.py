"""ONNX: one graph for each exit, which `python -m models export` writes and ONNX Runtime serves exit by exit.

A graph takes the branches that the graph before it gave, so nothing is computed twice. Where the network has masks,
they are an input. The graphs compute what the reference does: dense convolutions under masks. Needs the extra `onnx`.
"""

import importlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anytime import Step, largest, score_difference
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import STRIDE
from models.imaging.preprocess import check_input
from models.network.adpc import AdpcNet
from models.network.confidence import Masks, make_mask
from models.network.masked import MaskedConv2d, rbf
from models.network.network import Progress

OPSET = 17
TOLERANCE = 1e-4
"""How much a graph's scores may differ from the reference's, as a share of the largest score."""
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
"""ONNX Runtime's ways to compute, the fastest first."""


class Sliced(Masks):
    """Masks for tracing: the stride to a level becomes a constant of the graph, while heights and widths stay free."""

    def at(self, like: Tensor) -> Tensor:
        stride = int(self.finest.shape[-1]) // int(like.shape[-1])
        return self.finest[:, :, ::stride, ::stride].to(like.dtype)


class ExitGraph(nn.Module):
    """The steps of a network from one exit to the next, as a function of tensors.

    The first graph takes the image (N, 3, H, W), later ones the branches. If `masked`, it also takes the mask, bool
    (N, 1, h, w), and the scores to carry over (N, outputs, h, w). It returns the scores, then the branches.
    """

    def __init__(self, network: AdpcNet, steps: Sequence[Step], *, masked: bool) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.masked = masked

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        progress = Progress(tensors)
        if self.masked:
            *branches, positions, previous = tensors
            decided = torch.zeros_like(previous[:, :1], dtype=torch.uint8)
            progress = Progress(tuple(branches), Sliced(positions), previous, decided)
        for step in self.steps:
            progress = self.network.advance(progress, step, adaptive=False)
        assert progress.scores is not None
        return (progress.scores, *progress.features)


@dataclass(frozen=True)
class Signature:
    """The names of a graph's inputs and outputs; `masked`: whether it takes a mask and the scores to carry over."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    masked: bool


def groups(network: AdpcNet) -> list[tuple[Step, ...]]:
    """For each exit, the steps that lead to it from the exit before."""
    found: list[tuple[Step, ...]] = []
    steps: list[Step] = []
    for step in network.steps:
        steps.append(step)
        if step.exit is not None:
            found.append(tuple(steps))
            steps = []
    return found


def signatures(network: AdpcNet) -> list[Signature]:
    masked = network.config.masking is not None
    counts = (1, 2, 3, 1 if network.config.backbone.last_module_fuses_finest_only else 4)
    exits = range(network.config.exits)
    branches = [tuple(f"branch{i}" for i in range(counts[k] if len(exits) > 1 else counts[3])) for k in exits]
    return [
        Signature(
            (*(branches[k - 1] if k else ("image",)), *(("positions", "previous") if masked and k else ())),
            ("scores", *(f"next_{name}" for name in branches[k])),
            masked and k > 0,
        )
        for k in exits
    ]


def graphs(network: AdpcNet) -> list[bytes]:
    """The serialised graph of each exit. Batch size, height and width stay free."""
    _need("onnx")
    network = network.cpu().eval()
    tensors: tuple[Tensor, ...] = (torch.zeros(1, 3, 64, 96),)
    found = []
    for steps, signature in zip(groups(network), signatures(network), strict=True):
        graph = ExitGraph(network, steps, masked=signature.masked).eval()
        if signature.masked:
            scores, *branches = tensors
            tensors = (*branches, torch.ones_like(scores[:, :1], dtype=torch.bool), scores)
        elif "image" not in signature.inputs:
            tensors = tensors[1:]
        names = (*signature.inputs, *signature.outputs)
        buffer = io.BytesIO()
        with torch.no_grad(), warnings.catch_warnings(), _depthwise(network):
            # The tracer warns that it fixes the outcome of comparisons of sizes. They only tell one level from another,
            # so they come out alike for every input size.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                tensors,
                buffer,  # type: ignore[arg-type]  # the tracing exporter takes files too
                dynamo=False,
                opset_version=OPSET,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                dynamic_axes={name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names},
            )
            tensors = graph(*tensors)
        found.append(buffer.getvalue())
    return found


@contextmanager
def _depthwise(network: AdpcNet) -> Iterator[None]:
    """Makes interpolation one depthwise convolution with constant weights inside the block: runtimes have kernels for
    it."""

    def fill(y: Tensor, mask: Tensor, scale: Tensor, window: int) -> Tensor:
        taps, norm = rbf(scale, window)
        kernel = torch.outer(taps, taps) / norm
        kernel[window // 2, window // 2] = 0
        channels = int(y.shape[1])
        weights = torch.tensor([[kernel.tolist()]] * channels)  # made in Python, so that the tracer sees a constant
        z = y * mask
        return z + F.conv2d(z, weights, padding=window // 2, groups=channels) * (1 - mask)

    layers = [(layer, layer.fill) for layer in network.modules() if isinstance(layer, MaskedConv2d)]
    for layer, _ in layers:
        layer.fill = fill
    try:
        yield
    finally:
        for layer, before in layers:
            layer.fill = before


class OnnxNetwork:
    """A `Stepwise` network that runs exported graphs. Each step runs one graph, so it completes an exit.

    `exported`: the network's graphs, if they have been exported already.
    """

    def __init__(
        self, network: AdpcNet, device: str, threads: int = 0, exported: Sequence[bytes] | None = None
    ) -> None:
        runtime = _need("onnxruntime")
        self.config = network.config
        self.steps = tuple(steps[-1] for steps in groups(network))
        self._signatures = signatures(network)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Threads that wait must sleep, because the server's front end shares the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = PROVIDERS if device.startswith("cuda") else PROVIDERS[-1:]
        number = {"device_id": device.partition(":")[2] or "0"}
        providers = [
            name if name == PROVIDERS[-1] else (name, number)
            for name in wanted
            if name in runtime.get_available_providers()
        ]
        self._sessions = []
        for graph in graphs(network) if exported is None else exported:
            session = runtime.InferenceSession(graph, options, providers)
            # ONNX Runtime falls back to the CPU silently where it cannot use the GPU.
            if device.startswith("cuda") and "CUDAExecutionProvider" not in session.get_providers():
                raise ValueError(
                    f"this ONNX Runtime cannot use {device}: it runs on {', '.join(session.get_providers())}; "
                    "install onnxruntime-gpu and the CUDA libraries that it names, or use device cpu"
                )
            self._sessions.append(session)

    def start(self, images: Tensor) -> Progress:
        check_input(images)
        return Progress((images,))

    def advance(self, progress: Progress, step: Step) -> Progress:
        index = self.steps.index(step)
        signature, session = self._signatures[index], self._sessions[index]
        tensors = [x.contiguous() for x in progress.features]
        positions = None
        if signature.masked:
            assert progress.scores is not None
            positions = torch.ones_like(progress.scores[:, :1], dtype=torch.bool)
            positions = positions if progress.masks is None else progress.masks.finest
            tensors += [positions, progress.scores.contiguous()]
        feed = {name: tensor.cpu().numpy() for name, tensor in zip(signature.inputs, tensors, strict=True)}
        scores, *branches = (torch.from_numpy(array) for array in session.run(list(signature.outputs), feed))
        decided = torch.full_like(scores[:, :1], step.exit or 0, dtype=torch.uint8)
        if positions is not None and progress.decided is not None:
            decided = torch.where(positions, decided, progress.decided)
        masking, masks = self.config.masking, None
        if masking is not None and self.config.masks_after(step.exit or 0):
            masks = Masks(make_mask(scores, masking, step.exit or 0))
        return Progress(tuple(branches), masks, scores, decided)


class OnnxExecutor(ReferenceExecutor):
    """Runs exported graphs with ONNX Runtime, and keeps states as the reference does.

    `device`: cpu, or cuda for the TensorRT and CUDA providers. `threads`: 0 means as many as torch uses.
    """

    executor = "onnx"

    def __init__(self, network: AdpcNet, device: str = "cpu", threads: int = 0) -> None:
        self.network = OnnxNetwork(network, device, threads)
        self.config = network.config
        self.device = device
        self.steps = self.network.steps


def difference(network: AdpcNet, graphs_of_it: Sequence[bytes], height: int = 96, width: int = 160) -> float:
    """The largest difference between scores of a network and of its graphs at any exit, under random masks. It is a
    share of the largest score, or nan if a score is nan."""
    generator = torch.Generator().manual_seed(0)
    exported, steps = OnnxNetwork(network, "cpu", exported=graphs_of_it), iter(network.steps)
    images = torch.randn(2, 3, height, width, generator=generator)
    found, expected = exported.start(images), network.start(images)
    worst = 0.0
    for step in exported.steps:
        found = exported.advance(found, step)
        with torch.inference_mode():
            for own in steps:
                expected = network.advance(expected, own, adaptive=False)
                if own.exit is not None:
                    break
        assert found.scores is not None and expected.scores is not None
        worst = largest([worst, score_difference(found.scores, expected.scores)])
        if network.config.masking is not None:
            given = torch.rand(2, 1, height // STRIDE, width // STRIDE, generator=generator) < 0.5
            found, expected = replace(found, masks=Masks(given)), replace(expected, masks=Masks(given))
    return worst


def _need(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{package} is not installed; install the extra `onnx`: pip install --editable '.[onnx]'"
        ) from error
