"""The runtimes that `python -m models bench` compares on a CPU, each as a function that runs one image through one
network.

Weights are random, because speed does not depend on them.
"""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.anytime import Overridable, exits_of
from models.bench import quantised
from models.data import camvid, scenes
from models.executors.onnx import ExitGraph, graphs, groups, signatures
from models.executors.reference import ReferenceExecutor
from models.executors.selection import build
from models.imaging.geometry import STRIDE, Frame, Size
from models.imaging.preprocess import pad
from models.network.adpc import AdpcNet
from models.network.families import config
from models.network.network import build_network

OWN = ("sparse", "sparse-int8")
RUNTIMES = (
    *OWN, "torch", "compile", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-default", "openvino-int8"
)  # fmt: skip
"""`openvino` computes in float32, `openvino-default` in the precision that OpenVINO chooses for the machine."""


@dataclass(frozen=True)
class TimedRun:
    """One image's way through one runtime: seconds from the start to every exit, and the scores there, (1, C, h, w)."""

    seconds: list[float]
    scores: list[Any]


RunOnce = Callable[[], TimedRun]
"""Runs one image through a runtime that is ready."""


@dataclass(frozen=True)
class Prepared:
    """A runtime that is ready to run. `precision`: what it computes in; OpenVINO is asked what it chose."""

    run: RunOnce
    precision: str


@dataclass(frozen=True)
class BenchCase:
    """A runtime on a network.

    `kind`: "one exit" and "anytime" are dense; "masked" is the anytime network under masks, of `active` shares after
    exits 1 to 3. `data`: the folder of CamVid whose label maps shape the masks; None: a drawn scene.
    """

    runtime: str
    kind: str
    width: str
    size: Size
    active: tuple[float, ...] = ()
    seed: int = 0
    threads: int = 1
    data: str | None = None

    @property
    def config(self) -> str:
        family = {"one exit": "hrnet", "anytime": "rh", "masked": "adpc"}[self.kind]
        return f"{family}-{self.width}-cityscapes"


def network(case: BenchCase) -> AdpcNet:
    """A network of random weights under which activations keep their size; they are the same for every kind."""
    torch.manual_seed(case.seed)
    net = build_network(config(case.config))
    assert isinstance(net, AdpcNet)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        net.train()(torch.randn(2, 3, 128, 128), adaptive=False)
    return net.eval()


def image(case: BenchCase) -> Tensor:
    """Noise as a network's input: float32 (1, 3, H, W), padded to multiples of 32."""
    return pad(torch.randn(1, 3, *case.size, generator=torch.Generator().manual_seed(case.seed)))


def masks(case: BenchCase) -> list[Tensor]:
    """The mask after every exit but the last, bool (h, w) each, a quarter of the input."""
    height, width = (side // STRIDE for side in image(case).shape[-2:])
    if case.data is None:
        labels = scenes.draw(2 * height, 2 * width, case.seed)
    else:
        found = camvid.read(Path(case.data), "val")
        labels = found[case.seed % len(found)].labels()
    return [torch.from_numpy(mask) for mask in scenes.masks(labels, height, width, case.active)]


def prepare(case: BenchCase) -> Prepared:
    """Makes a runtime ready to run. Raises ModuleNotFoundError if it is not installed, and ValueError if it does not
    compute in eight bits."""
    net, inputs = network(case), image(case)
    torch.set_num_threads(case.threads)
    if case.runtime in OWN:
        given = masks(case) if case.kind == "masked" else []
        scales = quantised.sparse_scales(net, calibration(case, net)) if case.runtime == "sparse-int8" else None
        model = build(net, "cpu", "sparse", case.threads, scales)
        assert isinstance(model, Overridable)
        return Prepared(partial(sparse, model, inputs, given), model.precision)
    if case.runtime in ("torch", "compile"):
        return Prepared(partial(chained, eager(net, compiled=case.runtime == "compile"), inputs), "fp32")
    known, examples = shapes(net, inputs), calibration(case, net) if case.runtime.endswith("-int8") else None
    if case.runtime.startswith("onnxruntime"):
        stages = onnxruntime(net, known, case.threads, examples)
        precision = "fp32" if examples is None else "int8"
    else:
        stages, precision = openvino(net, known, case.threads, examples, default=case.runtime == "openvino-default")
    return Prepared(partial(chained, stages, inputs.numpy()), precision)


def calibration(case: BenchCase, net: AdpcNet) -> list[Tensor]:
    """Inputs to quantise with, float32 (1, 3, H, W) each: see `quantised.calibration_images`."""
    noise = [image(replace(case, seed=case.seed + 1 + index)) for index in range(quantised.IMAGES)]
    height, width = noise[0].shape[-2:]
    return quantised.calibration_images(case.data, net, (height, width), noise)


_loaded: dict[BenchCase, Prepared] = {}
"""What this process has made ready."""


def load(case: BenchCase) -> tuple[list[NDArray[np.float32]], str]:
    """Makes a case ready in this process; returns its scores at every exit, float32 (1, C, h, w), and its precision.
    Raises RuntimeError if the runtime is missing or fails."""
    try:
        prepared = _loaded[case] = prepare(case)
        return [np.asarray(scores) for scores in prepared.run().scores], prepared.precision
    # torch.compile without a compiler raises an error that pickles badly.
    except (ImportError, RuntimeError, ValueError) as error:
        raise RuntimeError(str(error).splitlines()[0]) from None


def timed(case: BenchCase) -> list[float]:
    """Seconds to every exit of a case that is loaded."""
    run = _loaded[case].run
    run()  # brings its memory back, and lets the threads of the runtime before fall asleep
    return run().seconds


def sparse(model: Overridable, inputs: Tensor, given: Sequence[Tensor]) -> TimedRun:
    state = model.start(inputs, Frame(*inputs.shape[-2:]))
    begin, found = time.perf_counter(), TimedRun([], [])
    for exit_index in exits_of(model, [state]):
        found.seconds.append(time.perf_counter() - begin)
        found.scores.append(state.latest().scores[None])
        if given and exit_index < model.config.exits:
            model.override(state, given[exit_index - 1], shrinking=True)
    return found


StageFunction = Callable[..., Sequence[Any]]
"""Computes from one exit to the next: takes the branches (or the image), returns the scores and the branches."""


def chained(stages: Sequence[StageFunction], inputs: Any) -> TimedRun:
    begin, found, values = time.perf_counter(), TimedRun([], []), [inputs]
    with torch.inference_mode():
        for stage in stages:
            scores, *values = stage(*values)
            found.seconds.append(time.perf_counter() - begin)
            found.scores.append(scores)
    return found


def eager(net: AdpcNet, *, compiled: bool) -> list[StageFunction]:
    stages = [ExitGraph(net, steps, masked=False).to(memory_format=torch.channels_last) for steps in groups(net)]  # type: ignore[call-overload]
    return [torch.compile(stage) for stage in stages] if compiled else stages


def shapes(net: AdpcNet, inputs: Tensor) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of every stage's inputs by name: runtimes are fastest when they know them beforehand."""
    with torch.device("meta"):
        meta = AdpcNet(net.config).eval()
    values, found = (inputs.to("meta"),), []
    for steps, signature in zip(groups(meta), signatures(net), strict=True):
        found.append({name: tuple(x.shape) for name, x in zip(signature.inputs, values, strict=True)})
        _, *values = ExitGraph(meta, steps, masked=False)(*values)
    return found


Shapes = Sequence[dict[str, tuple[int, ...]]]
"""The shapes of every stage's inputs, by name."""


def onnxruntime(
    net: AdpcNet, known: Shapes, threads: int, examples: Sequence[Tensor] | None = None
) -> list[StageFunction]:
    """`examples`: inputs to quantise with; None: float32."""
    found = graphs(net)
    stages = _onnx_stages(found, known, threads)
    if examples is None:
        return stages
    arrays = quantised.stage_inputs(stages, known, examples)
    return _onnx_stages([quantised.onnx_int8(*each) for each in zip(found, arrays, strict=True)], known, threads)


def _onnx_stages(found: Sequence[bytes], known: Shapes, threads: int) -> list[StageFunction]:
    runtime = importlib.import_module("onnxruntime")
    stages: list[StageFunction] = []
    for graph, by_name in zip(found, known, strict=True):
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        for name, shape in by_name.items():
            for axis, value in (("batch", 0), (f"{name}_height", 2), (f"{name}_width", 3)):
                options.add_free_dimension_override_by_name(axis, shape[value])
        session = runtime.InferenceSession(graph, options, ["CPUExecutionProvider"])
        stages.append(
            lambda *values, session=session, names=tuple(by_name): session.run(
                None, dict(zip(names, values, strict=True))
            )
        )
    return stages


def openvino(
    net: AdpcNet, known: Shapes, threads: int, examples: Sequence[Tensor] | None = None, *, default: bool = False
) -> tuple[list[StageFunction], str]:
    """The stages and their precision. `examples`: inputs to quantise with; None: float32, or, with `default`, whatever
    OpenVINO computes in if it is told nothing. What stays unquantised in an 8-bit model is left to OpenVINO too."""
    core = importlib.import_module("openvino").Core()
    models = [core.read_model(graph) for graph in graphs(net)]
    for model, by_name in zip(models, known, strict=True):
        model.reshape({name: list(shape) for name, shape in by_name.items()})
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    fp32 = options | {"INFERENCE_PRECISION_HINT": "f32"}
    if examples is not None:
        before = _openvino_stages([core.compile_model(model, "CPU", fp32) for model in models])
        arrays = quantised.stage_inputs(before, known, examples)
        models = [quantised.openvino_int8(*each) for each in zip(models, arrays, strict=True)]
    compiled = [core.compile_model(m, "CPU", options if default or examples is not None else fp32) for m in models]
    chosen = {"f32": "fp32", "f16": "fp16"}
    name = compiled[0].get_property("INFERENCE_PRECISION_HINT").get_type_name()
    rest = chosen.get(name, name)
    return _openvino_stages(compiled), rest if examples is None else f"int8, {rest}"


def _openvino_stages(compiled: Sequence[Any]) -> list[StageFunction]:
    return [lambda *values, model=model: [np.array(x) for x in model(list(values)).to_tuple()] for model in compiled]


def expected(case: BenchCase) -> list[Tensor]:
    """The reference's scores at every exit, (1, C, h, w)."""
    net, inputs = network(case), image(case)
    if case.kind != "masked":
        with torch.inference_mode():
            return list(net(inputs, adaptive=False))
    reference, found = ReferenceExecutor(net), []
    state = reference.start(inputs, Frame(*inputs.shape[-2:]))
    given = masks(case)
    for exit_index in exits_of(reference, [state]):
        found.append(state.latest().scores[None])
        if exit_index < net.config.exits:
            reference.override(state, given[exit_index - 1])
    return found


def peak(case: BenchCase) -> int | None:
    """The most bytes that are resident while a process serves one image, those of the model included. None where this
    is not Linux."""
    run = prepare(case).run
    run()
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    reset.write_text("5")  # forgets the peak so far: exporting and compiling are not serving
    run()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
