"""Test cases of the `triton` executor: networks with random weights, sizes and masks, and the comparison of each.

Half precision changes the scores of a deep network by several per cent, whatever code computes them. PyTorch therefore
runs the same network in half precision too, and the executor's error may exceed PyTorch's by little. Each `Subject`
runs in a process of its own, because a fault on a GPU ends the process that meets it.

Kinds of masks. paper: active shares as in the paper. own: from the network's own confidence. full, empty, single: all,
none or one position active. corners: one position in each corner. scattered: noise. dense: a network without masks.
pair: a batch of two inputs, the first with masks as in paper, the second as in own.

Modes. plain: kernels are launched one by one with the first tile of each layer. graphs: tuned tiles and CUDA graphs, as
in the server.
"""

import copy
import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.anytime import Exit, score_difference
from models.executors.gpu.executor import TritonExecutor
from models.executors.gpu.memory import TritonState
from models.executors.reference import ReferenceExecutor
from models.executors.verify import SHARES, smooth_masks
from models.gpu_day.localise import localise
from models.imaging.geometry import STRIDE, Frame, Size
from models.network.adpc import AdpcNet
from models.network.adpc_configs import AdpcConfig, Backbone
from models.network.confidence import make_mask
from models.network.configs import Masking
from models.network.families import CONFIGS

TINY = Backbone(width=4, layer1_blocks=1, modules=(1, 1, 1), blocks=1)
FACTOR, FLOOR = 1.5, 0.005
"""The executor's scores may differ from float32 by `FACTOR` times the difference of PyTorch's half precision, plus
`FLOOR` of the largest score, because the two round in different places."""


@dataclass(frozen=True)
class Subject:
    """A network and an input size. `tiny`: use a small network of the same kind, which Triton's interpreter can run."""

    network: str
    size: Size
    tiny: bool = False

    def __str__(self) -> str:
        return f"{self.network} {self.size[0]}x{self.size[1]}"


@dataclass(frozen=True)
class Finding:
    """The outcome of one comparison. `differences` and `rounding` hold, for each exit, the largest difference of scores
    from float32, as a share of the largest score: of the executor, and of PyTorch in half precision. `problems`: a
    sentence for each rule that the executor broke."""

    differences: tuple[float, ...]
    rounding: tuple[float, ...]
    problems: tuple[str, ...]


def network(config: AdpcConfig, device: str) -> AdpcNet:
    """A network with random weights. Its batch norms have the statistics of noise, so that features stay in range, and
    the Lambdas of its interpolations vary."""
    generator = torch.Generator().manual_seed(0)
    net = AdpcNet(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("Lambda"):
                parameter.fill_(0.5 + 2.5 * float(torch.rand(1, generator=generator)))
            elif parameter.ndim == 4:
                scale = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        net = net.to(device)
        norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        side = 64 if config.backbone == TINY else 256
        noise = torch.randn(2, 3, side, side, generator=generator)
        net.train()(noise.to(device), adaptive=False)
    return net.eval()


def masks(kind: str, size: Size) -> list[Tensor] | None:
    """The masks after each exit but the last, bool (h, w), each within the one before; None if exits make their own."""
    height, width = (side // STRIDE for side in size)
    mask = torch.zeros(height, width, dtype=torch.bool)
    if kind == "paper":
        return smooth_masks(size, SHARES[0], 0)
    if kind == "full":
        mask[:] = True
    elif kind == "single":
        mask[height // 2 + 1, width // 3] = True
    elif kind == "corners":
        mask[0, 0] = mask[0, -1] = mask[-1, 0] = mask[-1, -1] = True
    elif kind == "scattered":
        noise = torch.rand(height, width, generator=torch.Generator().manual_seed(1))
        return [noise < share for share in (0.4, 0.2, 0.05)]
    elif kind != "empty":
        return None
    return [mask] * 3


class Trial:
    """The executors of a subject, made when they are needed."""

    def __init__(self, subject: Subject, device: str) -> None:
        self.subject, self.device = subject, device
        config = CONFIGS[subject.network]
        assert isinstance(config, AdpcConfig)
        if subject.tiny:
            config = replace(config, backbone=_like(config.backbone), head_channels=8)
        assert config.masking is not None
        net = network(config, device)
        self.inputs = torch.randn(2, 3, *subject.size, generator=torch.Generator().manual_seed(2)).to(device)
        with torch.inference_mode():
            scores = net(self.inputs[:1], adaptive=False)[0]
        # With random weights, every confidence is below the paper's threshold. The median masks half of the positions.
        sure = scores.amax(1) if config.task == "pose" else scores.softmax(1).amax(1)
        threshold = float(sure.median())
        net.config = replace(config, masking=replace(config.masking, threshold=threshold))
        dense = AdpcNet(replace(config, masking=None))
        dense.load_state_dict({name: value for name, value in net.state_dict().items() if "Lambda" not in name})
        self.networks = {"masked": net, "dense": dense.to(device).eval()}
        self._executors: dict[tuple[str, str], TritonExecutor] = {}

    def executor(self, kind: str, mode: str) -> TritonExecutor:
        """The executor for a kind of masks and a mode."""
        name = "dense" if kind == "dense" else "masked"
        if (name, mode) not in self._executors:
            recorder = None if mode == "graphs" else _nothing
            self._executors[name, mode] = TritonExecutor(
                self.networks[name], self.device, torch.float16, graphs=recorder
            )
        return self._executors[name, mode]

    def compare(self, kind: str, mode: str) -> Finding:
        """Runs the executor beside the reference in float32 and in half precision. All three use the masks of `kind`,
        or those that the float32 reference makes."""
        ours = self.executor(kind, mode)
        network = self.networks["dense" if kind == "dense" else "masked"]
        reference = ReferenceExecutor(network, self.device)
        rough = ReferenceExecutor(copy.deepcopy(network).half(), self.device)
        frame = Frame(*self.subject.size)
        inputs = [self.inputs[row : row + 1] for row in range(2 if kind == "pair" else 1)]
        found = [ours.start(one, frame) for one in inputs]
        expected = [reference.start(one, frame) for one in inputs]
        rounded = [rough.start(one.half(), frame) for one in inputs]
        given = [masks(kind, self.subject.size)] if kind != "pair" else [masks("paper", self.subject.size), None]
        differences, rounding, problems = [0.0] * ours.config.exits, [0.0] * ours.config.exits, []
        for step in ours.steps:
            ours.advance(found)
            for one, other in zip(expected, rounded, strict=True):
                reference.advance([one])
                rough.advance([other])
            if step.exit is None:
                continue
            last = step.exit - 1
            for state, true, half, row_masks in zip(found, expected, rounded, given, strict=True):
                assert state.exit is not None and true.exit is not None and half.exit is not None
                difference = score_difference(state.exit.scores, true.exit.scores)
                theirs = score_difference(half.exit.scores, true.exit.scores)
                differences[last] = _worse(differences[last], difference)
                rounding[last] = _worse(rounding[last], theirs)
                masking = ours.config.exit_masking
                told = [*_wrong_scores(state.exit, true.exit, difference, theirs)]
                told += _problems(state.exit, true.exit, difference, masking)
                if ours.config.masks_after(step.exit):
                    mask = true.exit.mask if row_masks is None else row_masks[last].to(self.device)
                    ours.override(state, mask, shrinking=True)
                    reference.override(true, mask)
                    rough.override(half, mask)
                    told += _miscounted(state, mask)
                problems += [f"exit {step.exit}: {text}" for text in told]
        return Finding(tuple(differences), tuple(rounding), tuple(problems))

    def localise(self, kind: str) -> Iterator[str]:
        """Lines about every layer whose output is wrong for the input that it got, with layers launched one by one."""
        executor = self.executor(kind, "plain")
        given = masks("paper" if kind == "pair" else kind, self.subject.size)
        yield from localise(executor, self.inputs[:1], given)


def _like(backbone: Backbone) -> Backbone:
    return replace(
        TINY,
        fuse_upsample=backbone.fuse_upsample,
        last_module_fuses_finest_only=backbone.last_module_fuses_finest_only,
    )


def _nothing() -> None:
    """A recorder that records nothing, so that kernels are launched one by one."""


def _worse(one: float, other: float) -> float:
    return other if not other <= one else one  # nan is the worst


def _wrong_scores(ours: Exit, true: Exit, difference: float, theirs: float) -> Iterator[str]:
    """`difference`: of the executor's scores from float32. `theirs`: of PyTorch's half precision."""
    limit = FACTOR * theirs + FLOOR
    if difference <= limit:  # nan is wrong, on either side
        return
    off = torch.nan_to_num((ours.scores.float() - true.scores.float()).abs().amax(0), nan=torch.inf)
    row, column = divmod(int(off.argmax()), off.shape[1])
    share = float((off > limit * float(true.scores.abs().max())).float().mean())
    yield (
        f"scores are off by {difference:.1%} of the largest, most at ({row}, {column}); PyTorch's half precision is "
        f"off by {theirs:.1%}, so the limit is {limit:.1%}, which {share:.2%} of positions exceed"
    )


def _problems(ours: Exit, true: Exit, difference: float, masking: Masking) -> Iterator[str]:
    if not torch.equal(ours.decided, true.decided):
        yield f"{int((ours.decided != true.decided).sum())} positions were decided by another exit"
    if math.isfinite(difference):
        # Both masks must be equal wherever the difference of scores is too small to carry one over the threshold.
        margin = 2 * difference * float(true.scores.abs().max()) + 1e-5
        low, high = (
            make_mask(true.scores[None], replace(masking, threshold=masking.threshold + off), true.index)[0, 0]
            for off in (-margin, margin)
        )
        if other := int(((ours.mask != true.mask) & (low == high)).sum()):
            yield f"{other} positions far from the threshold are active in only one of the two masks"
    share = float(ours.mask.float().mean())
    if abs(ours.active_share - share) > 1e-4:
        yield f"active_share is {ours.active_share:.4f}, but {share:.4f} of the mask is active"
    if abs(ours.macs - true.macs) > 1e-3 * true.macs:
        yield f"multiply-adds are {ours.macs:.4g}, not {true.macs:.4g}"


def _miscounted(state: TritonState, mask: Tensor) -> Iterator[str]:
    for level, share in enumerate(state.shares or ()):
        true = float(mask[:: 1 << level, :: 1 << level].float().mean())
        if abs(share - true) > 1e-4:
            yield f"level {level}: the tables list a share of {share:.4f} as active, but the mask has {true:.4f}"


def main(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Runs the cases of one subject. `argv` holds one JSON object, whose fields are read below. Prints a line of JSON
    when a case begins and when it ends. Returns status 1 if a case raised an error."""
    asked = json.loads(argv[0])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if asked["device"] == "cpu":
        # Triton's interpreter checks every sum of integers for overflow, which takes half of the time.
        builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
        builder.options = replace(builder.options, sanitize_overflow=False)
    trial = Trial(Subject(asked["network"], tuple(asked["size"]), asked["tiny"]), asked["device"])
    for kind, mode in asked["cases"]:
        say(json.dumps({"begins": [kind, mode]}))
        try:
            if asked["localise"]:
                for text in trial.localise(kind):
                    say(json.dumps({"line": text}))
            found = trial.compare(kind, mode)
        except Exception as error:
            traceback.print_exc()
            say(json.dumps({"died": f"{type(error).__name__}: {error}".splitlines()[0]}))
            return 1  # most faults on a GPU make its context unusable
        say(json.dumps({"differences": found.differences, "rounding": found.rounding, "problems": found.problems}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], lambda text: print(text, flush=True)))
