"""The training loop, around a task, a network and a recipe. It trains the network itself and runs no executor."""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.checkpoint import load_weights, save_directory
from models.directory import WEIGHTS_FILE, read_config, resolve
from models.network.configs import ModelConfig
from models.network.network import Network, build_network
from models.training import tasks
from models.training.fused import fuse
from models.training.graph import Replayed, Update
from models.training.halves import HalfWeights
from models.training.padding import (
    filled,
    is_padded,
    pad_channels,
    strip_channels,
    stripped,
    with_padding,
    without_padding,
)
from models.training.recipe import Recipe
from models.writing import replacing

CHECKPOINT = "checkpoint.pt"
ANEW = "remove it to start anew"
"""What to do about a checkpoint that cannot be used."""
PARTS = "network", "mean", "optimizer"
"""The parts of a run that have a state dict."""
MOMENTS = "exp_avg", "exp_avg_sq"
"""The tensors of the optimizer's state that have the shape of their weight."""
SAVE_EVERY_S = 30.0
"""The time between checkpoints. None is written while a step or a scoring runs, which on a CPU may take longer."""


BETAS = (0.9, 0.99)
"""AdamW's betas. A mean over 100 squared gradients soon forgets the first ones, which can be a thousand times larger.
"""


@dataclass(frozen=True)
class Speed:
    """Options that make a step faster and do not change its results. `padded`: pad channels, see padding.py. `kernels`:
    use the kernels of fused/ for all layers, on a GPU. `channels_last`: the order of every feature map in memory."""

    padded: bool = False
    kernels: bool = False
    channels_last: bool = True

    @classmethod
    def of(cls, device: torch.device, *, compiled: bool = False) -> "Speed":
        """The fastest options on a device. The kernels need a GPU, and are not used if `torch.compile` makes others."""
        fast = device.type == "cuda" and not compiled
        return cls(padded=fast, kernels=fast)

    @property
    def order(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass
class Run:
    """The whole state of a training run, with which it goes on as if it had never stopped.

    `mean`: the network with the exponential mean of the weights, which is scored and shipped. `losses`: for each exit,
    the sum over the steps since step `since`, when the network was last scored.
    """

    network: Network
    mean: Network
    optimizer: torch.optim.Optimizer
    losses: Tensor
    step: int = 0
    since: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._followed = _floats(self.mean), _floats(self.network)  # searching them would take longer than moving them

    @classmethod
    def begin(
        cls,
        model: ModelConfig,
        recipe: Recipe,
        device: torch.device,
        make: Callable[[ModelConfig], Network] = build_network,
        speed: Speed = Speed(),
    ) -> "Run":
        """A new run, with the weights of the recipe's `init`, or random weights that depend on the recipe's seed."""
        torch.manual_seed(recipe.seed)
        network = make(model)
        if model.task == "pose":
            start_at_zero(network)
        if recipe.init:
            source = resolve(recipe.init)
            theirs = read_config(source)
            other_heads = any(getattr(theirs, name, None) != getattr(model, name) for name in model.head_fields)
            load_weights(network, source / WEIGHTS_FILE, backbone_only=other_heads, maskless=True)
        if speed.padded:
            pad_channels(network)
        network.to(device, memory_format=speed.order)  # type: ignore[call-overload]
        fuse(network, device, all_layers=speed.kernels)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        graphs = device.type == "cuda"  # a replayed step reads its rate from a tensor
        rate = torch.tensor(0.0, device=device) if graphs else 0.0
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=graphs, capturable=graphs)
        mean = deepcopy(network).eval().requires_grad_(False)
        return cls(network, mean, optimizer, torch.zeros(model.exits, device=device))

    def save(self, output: Path) -> None:
        """Writes the mean as a model directory in half precision, then the checkpoint. Neither has padded channels, so
        that a run can go on on another device. Raises OSError if a file cannot be written."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        if is_padded(self.network):
            parts |= {name: stripped(self.network.config, parts[name]) for name in ("network", "mean")}
            parts["optimizer"] = self._moments(parts["optimizer"], without_padding)
        values = {name: getattr(self, name) for name in ("losses", "step", "since", "history")}
        self.save_mean(output)  # first: a checkpoint says that the weights of its step are there
        path = output / CHECKPOINT
        try:
            with replacing(path) as partial:
                torch.save({**parts, **values}, partial)
        except RuntimeError as error:  # a full disk
            raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error

    def _moments(
        self, optimizer: dict[str, Any], change: Callable[[ModelConfig, str, Tensor], Tensor]
    ) -> dict[str, Any]:
        """An optimizer's state, with `change` applied to the moments of each weight."""
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        order = [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]
        state = {
            index: {
                key: change(self.network.config, order[index], value) if key in MOMENTS else value
                for key, value in values.items()
            }
            for index, values in optimizer["state"].items()
        }
        return {**optimizer, "state": state}

    def save_mean(self, output: Path) -> None:
        save_directory(output, strip_channels(self.mean) if is_padded(self.mean) else self.mean, torch.float16)

    def load(self, output: Path) -> None:
        """Restores the checkpoint in `output`. Raises FileNotFoundError if there is none, and ValueError if it is
        broken or of another network."""
        path = output / CHECKPOINT
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path} to resume from; leave out --resume to start anew")
        state = read_checkpoint(path)
        try:
            for saved, group in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
                saved |= {name: group[name] for name in ("lr", "fused", "capturable")}  # this device's
            if is_padded(self.network):
                state |= {name: filled(self.network, state[name]) for name in ("network", "mean")}
                state["optimizer"] = self._moments(state["optimizer"], with_padding)
            for name in PARTS:
                getattr(self, name).load_state_dict(state[name])
            self.losses.copy_(state["losses"])
            self.step, self.since, self.history = state["step"], state["since"], state["history"]
        except KeyError as error:
            raise ValueError(f"{path} has no {error}, so it is of another version; {ANEW}") from error
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is of another network: {reason}; choose another --output") from error

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def follow(self, share: float) -> None:
        """Moves the mean towards the weights, by `share` of their difference."""
        torch._foreach_lerp_(*self._followed, share)


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """The values of a checkpoint, on the CPU. `mmap`: tensors are read when they are used. Raises ValueError if it is
    broken."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    except Exception as error:  # a broken file makes torch raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read: {reason}; {ANEW}") from error


def start_at_zero(network: Network) -> None:
    """Makes the first heatmaps of every exit nearly 0, as most of a heatmap should be.

    The last pose exit reads features without normalisation. With the usual random weights, its first loss is 1000 times
    that of an empty heatmap, and AdamW's steps stay small for long after.
    """
    for head in network.heads():
        last = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)][-1]
        nn.init.normal_(last.weight, std=1e-3)
        if last.bias is not None:
            nn.init.zeros_(last.bias)


def _floats(network: Network) -> list[Tensor]:
    """Weights and running statistics, without the counters."""
    return [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster: on a GPU, and on a CPU with instructions for it."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def update_of(
    run: Run,
    task: tasks.Task,
    *,
    mixed: bool,
    compiled: bool,
    distillation: float = 0.0,
    order: torch.memory_format = torch.channels_last,
) -> Update:
    """One step of training: forward (`mixed`: in bfloat16), the sum of the exits' losses, backward, optimizer.

    `distillation`: the weight of the loss of `task.distilled`, whose teacher is the last exit of the mean network.
    """
    device = next(run.network.parameters()).device
    halves = HalfWeights(run.network) if mixed and device.type == "cuda" and not compiled else None

    def losses(inputs: Tensor, targets: Tensor, adaptive: bool | None) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            found = halves.forward(inputs, adaptive) if halves else run.network(inputs, adaptive)
        result = task.losses(found, targets)
        if distillation:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                taught = run.mean(inputs, False)[-1]
            result = result + distillation * task.distilled(found, taught)
        return result

    if compiled:
        losses = torch.compile(losses, fullgraph=True, dynamic=False)

    def update(inputs: Tensor, targets: Tensor, adaptive: bool | None) -> Tensor:
        exit_losses = losses(inputs.contiguous(memory_format=order), targets, adaptive)
        run.optimizer.zero_grad()
        exit_losses.sum().backward()  # type: ignore[no-untyped-call]  # equation 1, all weights 1
        if halves:
            halves.hand_over()
        run.optimizer.step()
        return exit_losses.detach()

    return Replayed(update) if device.type == "cuda" else update


def train(
    run: Run,
    task: tasks.Task,
    recipe: Recipe,
    output: Path,
    *,
    minutes: float = math.inf,
    steps: float = math.inf,
    score_every: float = 1000,
    mixed: bool | None = None,
    compiled: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Trains to the recipe's last step, or for `minutes` or `steps` if that ends sooner. Checkpoint and weights are in
    `output` at the end. The network is scored every `score_every` steps and at the last one; never if `score_every` is
    infinite. `mixed`: compute in bfloat16; None means if that is faster. `stopping` is called before every step; if it
    returns True, the run ends there.

    On a GPU, call it in a stream that is not the default one.
    """
    device = next(run.network.parameters()).device
    update = update_of(run, task, mixed=multiplies_bfloat16(device) if mixed is None else mixed, compiled=compiled)
    started_s = saved_s = time.monotonic()
    last = min(recipe.steps, run.step + steps)
    run.network.train()
    with tqdm(total=recipe.steps, initial=run.step, unit="step", mininterval=5, smoothing=0.05) as bar:
        while run.step < last and not stopping() and time.monotonic() - started_s < minutes * 60:
            run.set_rate(recipe.learning_rate_at(run.step))
            torch.manual_seed(recipe.seed * 9_000_011 + run.step)  # for random numbers that a network draws
            run.losses += update(*task.batch(run.step), None if recipe.phase_at(run.step).masks else False)
            run.step += 1
            run.follow(1 / min(recipe.ema_steps, 1 + run.step / 10))
            bar.update()
            if run.step % score_every == 0 or (run.step == recipe.steps and score_every < math.inf):
                mean = (run.losses / (run.step - run.since)).tolist()
                run.history.append({"step": run.step, "losses": mean, "scores": task.score(run.mean)})
                bar.write(json.dumps(run.history[-1]))
                run.losses.zero_()
                run.since = run.step
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                run.save(output)
                saved_s = time.monotonic()
    run.save(output)


def stream(device: torch.device) -> AbstractContextManager[object]:
    """A context in a new stream on a GPU; on a CPU, it does nothing."""
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.synchronize()
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
