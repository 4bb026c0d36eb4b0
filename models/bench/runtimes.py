"""The runtimes that `python -m models bench` compares on a CPU.

A network is exported into files as the runtime reads them, and then started from these, as where it is used.
"""

import importlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.anytime import AnytimeModel, Overridable, exits_of
from models.bench import quantised, workload
from models.bench.cases import OWN, BenchCase
from models.checkpoint import load_directory, save_directory
from models.directory import fingerprint
from models.executors.onnx import ExitGraph, graphs, groups, signatures
from models.executors.selection import load
from models.imaging.geometry import Frame
from models.network.adpc import AdpcNet


@dataclass(frozen=True)
class TimedRun:
    """One image's way through one runtime, at every exit: seconds from the start, scores (1, C, h, w), and, by the
    sparse executor, multiply-adds from the image."""

    seconds: list[float] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Runtime:
    """A runtime that is ready. `run`: takes a network's input, float32 (1, 3, H, W), through all exits. `precision`:
    says what it chose to compute in. `model`: the sparse executor; None in others' rows."""

    run: Callable[[Tensor], TimedRun]
    precision: Callable[[], str]
    model: AnytimeModel | None = None


def export(case: BenchCase, folder: Path) -> None:
    """Writes the files of a case into `folder`. Raises ModuleNotFoundError if what writes them is not installed, and
    ValueError if a trained model has no scales."""
    net = workload.network(case)
    if case.runtime.startswith(("onnxruntime", "openvino")):
        for path, graph in zip(_graph_files(net, folder), graphs(net), strict=True):
            path.write_bytes(graph)
        if case.int8:
            _quantise(case, net, folder)
        return
    save_directory(folder, net)
    if case.int8:
        replace(workload.scales(case, net), fingerprint=fingerprint(folder)).save(folder)


def start(case: BenchCase, folder: Path) -> Runtime:
    """The runtime on what `export` wrote. Raises ModuleNotFoundError if it is not installed."""
    torch.set_num_threads(case.threads)
    if case.runtime in OWN:
        model = load(folder, "cpu", "sparse", case.threads, "int8" if case.int8 else "fp32")
        assert isinstance(model, Overridable)
        return Runtime(partial(sparse, model, Frame(*case.size), workload.masks(case)), lambda: model.precision, model)
    if case.runtime in ("torch", "compile"):
        net = load_directory(folder)
        assert isinstance(net, AdpcNet)
        return Runtime(partial(chained, eager(net, compiled=case.runtime == "compile")), lambda: "fp32")
    with torch.device("meta"):
        net = AdpcNet(case.config).eval()
    files, known = _graph_files(net, folder), shapes(net, workload.inputs(case))
    begin = onnxruntime if case.runtime.startswith("onnxruntime") else openvino
    stages, precision = begin(case, files, known)
    return Runtime(lambda inputs: chained(stages, inputs.numpy()), precision)


def sparse(model: Overridable, frame: Frame, given: Sequence[Tensor], inputs: Tensor) -> TimedRun:
    state, found = model.start(inputs, frame), TimedRun()
    begin = time.perf_counter()
    for exit_index in exits_of(model, [state]):
        found.seconds.append(time.perf_counter() - begin)
        reached = state.latest()
        found.scores.append(reached.scores[None])
        found.macs.append(reached.macs)
        if exit_index <= len(given):
            model.override(state, given[exit_index - 1], shrinking=True)
    return found


StageFunction = Callable[..., Sequence[Any]]
"""Computes from one exit to the next: takes the branches (or the image), returns the scores and the branches."""


def chained(stages: Sequence[StageFunction], inputs: Any) -> TimedRun:
    begin, found, values = time.perf_counter(), TimedRun(), [inputs]
    with torch.inference_mode():
        for stage in stages:
            scores, *values = stage(*values)
            found.seconds.append(time.perf_counter() - begin)
            found.scores.append(scores)
    return found


def eager(net: AdpcNet, *, compiled: bool = False) -> list[StageFunction]:
    stages = [ExitGraph(net, steps, masked=False).to(memory_format=torch.channels_last) for steps in groups(net)]  # type: ignore[call-overload]
    return [torch.compile(stage) for stage in stages] if compiled else stages


Shapes = Sequence[dict[str, tuple[int, ...]]]
"""The shapes of every stage's inputs, by name: runtimes are fastest when they know them beforehand."""


def shapes(meta: AdpcNet, inputs: Tensor) -> Shapes:
    """`meta`: the network without weights, on torch's meta device."""
    values, found = (inputs.to("meta"),), []
    for steps, signature in zip(groups(meta), signatures(meta), strict=True):
        found.append({name: tuple(x.shape) for name, x in zip(signature.inputs, values, strict=True)})
        _, *values = ExitGraph(meta, steps, masked=False)(*values)
    return found


Stages = tuple[list[StageFunction], Callable[[], str]]
"""The stages of a runtime, and what says in which precision they compute."""


def onnxruntime(case: BenchCase, files: Sequence[Path], known: Shapes) -> Stages:
    runtime = importlib.import_module("onnxruntime")

    def session(file: Path, by_name: dict[str, tuple[int, ...]], **more: object) -> Any:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = case.threads
        for name, shape in by_name.items():
            for axis, value in (("batch", 0), (f"{name}_height", 2), (f"{name}_width", 3)):
                options.add_free_dimension_override_by_name(axis, shape[value])
        for name, given in more.items():
            setattr(options, name, given)
        return runtime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def stage(file: Path, by_name: dict[str, tuple[int, ...]]) -> StageFunction:
        ready, names = session(file, by_name), tuple(by_name)
        return lambda *values: ready.run(None, dict(zip(names, values, strict=True)))

    def precision() -> str:
        """From the graphs that it made of ours, which it writes if it is asked to."""
        read = importlib.import_module("onnx").load
        found: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "graph.onnx"
            for file, by_name in zip(files, known, strict=True):
                session(file, by_name, optimized_model_filepath=str(written), log_severity_level=3)
                operators = [node.op_type for node in read(written).graph.node]
                found.update("int8" if name.startswith("QLinear") else "fp32" for name in operators if "Conv" in name)
        return in_words(found)

    return [stage(file, by_name) for file, by_name in zip(files, known, strict=True)], precision


def openvino(case: BenchCase, files: Sequence[Path], known: Shapes) -> Stages:
    """In float32, unless the case leaves the precision to OpenVINO; so is what an 8-bit model has in float."""
    core = importlib.import_module("openvino").Core()
    options = {"INFERENCE_NUM_THREADS": case.threads, "PERFORMANCE_HINT": "LATENCY"}
    if case.runtime == "openvino":
        options["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = []
    for file, by_name in zip(files, known, strict=True):
        model = core.read_model(file.with_suffix(".xml") if case.int8 else file)
        model.reshape({name: list(shape) for name, shape in by_name.items()})
        compiled.append(core.compile_model(model, "CPU", options))

    def precision() -> str:
        """From the graphs that it runs."""
        operators = [op.get_rt_info() for each in compiled for op in each.get_runtime_model().get_ordered_ops()]
        chosen = {"f32": "fp32", "f16": "fp16", "u8": "int8", "i8": "int8"}
        names = [
            str(about["runtimePrecision"].value) for about in operators if about["layerType"].value == "Convolution"
        ]
        return in_words(Counter(chosen.get(name, name) for name in names))

    def stage(model: Any) -> StageFunction:
        return lambda *values: [np.array(x) for x in model(list(values)).to_tuple()]

    return [stage(model) for model in compiled], precision


def in_words(convolutions: Counter[str]) -> str:
    """The precisions of convolutions, the most frequent first."""
    return ", ".join(name for name, _ in convolutions.most_common())


def _graph_files(net: AdpcNet, folder: Path) -> list[Path]:
    return [folder / f"exit{index}.onnx" for index, _ in enumerate(groups(net), 1)]


def _quantise(case: BenchCase, net: AdpcNet, folder: Path) -> None:
    """Quantises the graphs in `folder`: ONNX Runtime's in place, OpenVINO's into its own format beside them."""
    stages, images = eager(net), partial(workload.calibration, case)
    for index, (file, signature) in enumerate(zip(_graph_files(net, folder), signatures(net), strict=True)):
        arrays = quantised.StageInputs(stages[: index + 1], signature.inputs, images)
        if case.runtime.startswith("onnxruntime"):
            quantised.onnx_int8(file, arrays)
        else:
            own = importlib.import_module("openvino")
            model = quantised.openvino_int8(own.Core().read_model(file), arrays)
            own.save_model(model, file.with_suffix(".xml"), compress_to_fp16=False)
