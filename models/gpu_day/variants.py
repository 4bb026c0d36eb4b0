"""Forms of a training step, which compute the same at different speeds, and the measurement of their speed."""

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.training import losses, tasks
from models.training.graph import WARM_UP, Update
from models.training.recipe import Phase
from models.training.train import Run, Speed, update_of

Line = Callable[[str], None]
Clock = Callable[[], float]

TIMED = 15
"""How many steps measure the rate of a form."""
BENCHMARKED = 4
"""How many algorithms cuDNN tries for a convolution."""
SMALL_BATCH, SMALL_CROP, SMALL_SCALE = 64, (192, 256), (0.4, 1.2)
"""Batch, size and zoom of small crops."""


@dataclass(frozen=True)
class Variant:
    """A form of a training step. `padded`, `kernels`, `channels_last`: see `Speed`. `loss`: use the kernel for the
    loss. `off`: kernels of fused/layers.py that are not used. `benchmark`: cuDNN tries algorithms, which it does only
    at a convolution's first call in a process. `half`: labels at half resolution. `masks`: exits mask what follows.
    `small`: small crops. The last three compute something else, so they are measured but cannot win."""

    name: str
    padded: bool = True
    kernels: bool = True
    channels_last: bool = True
    loss: bool = True
    off: tuple[str, ...] = ()
    benchmark: bool = True
    half: bool = False
    masks: bool = False
    small: bool = False

    @property
    def speed(self) -> Speed:
        return Speed(self.padded, self.kernels, self.channels_last)

    @property
    def wins(self) -> bool:
        return not (self.half or self.masks or self.small)


BEST = Variant("padded, channels last, all kernels")
PLAIN = Variant("padded, channels last, no kernels", kernels=False, loss=False)
VARIANTS = (
    BEST,
    replace(BEST, name="its loss by torch", loss=False),
    replace(BEST, name="its upsampling by torch (atomics)", off=("enlarge",)),
    replace(BEST, name="its pooling by torch", off=("pool",)),
    replace(BEST, name="its batch normalisation by torch", off=("normalise",)),
    replace(BEST, name="under masks", masks=True),
    replace(BEST, name="small crops, 64 of 192x256", small=True),
    Variant("not padded, channels last, no kernels", padded=False, kernels=False, loss=False),
    PLAIN,
    Variant("not padded, contiguous, no kernels", padded=False, kernels=False, loss=False, channels_last=False),
    replace(BEST, name="its loss at half resolution", half=True),
)
CPU = Variant("not padded, no kernels", padded=False, kernels=False, loss=False)
"""The form on a device without Triton."""


def small(full: Phase) -> Phase:
    """`full` with small crops, which take less time each."""
    return replace(full, batch=SMALL_BATCH, crop=SMALL_CROP, scale=SMALL_SCALE, masks=False)


def phase_of(variant: Variant, full: Phase) -> Phase:
    return small(full) if variant.small else replace(full, masks=variant.masks)


def prepare(run: Run, task: tasks.Task, variant: Variant, distillation: float = 0.0) -> Update:
    """The update of a run, in the form of `variant`. Raises RuntimeError if that needs a GPU and there is none."""
    device = next(run.network.parameters()).device
    if (variant.kernels or variant.loss) and device.type != "cuda":
        raise RuntimeError(f"the kernels of {variant.name!r} need a GPU, and the device is {device.type}")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = variant.benchmark, BENCHMARKED
    if device.type == "cuda":
        from models.training.fused import layers  # noqa: PLC0415  (Triton: only where a GPU is)

        layers.SWITCHED_OFF.clear()
        layers.SWITCHED_OFF.update(variant.off)
    if isinstance(task, tasks.Segmentation):
        task.compare = tasks.compared_by(device) if variant.loss else losses.segmentation
    return update_of(
        run,
        task,
        mixed=device.type == "cuda",
        compiled=False,
        distillation=distillation,
        order=variant.speed.order,
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed_steps(  # noqa: PLR0917
    run: Run, task: tasks.Task, update: Update, phase: Phase, halved: bool, steps: int, clock: Clock
) -> float:
    """Steps a second, measured after a step of this form is captured. A step is batch, update and mean of weights."""
    device = next(run.network.parameters()).device

    def step(number: int) -> None:
        inputs, targets = task.batch(number)
        targets = targets[:, ::2, ::2].contiguous() if halved else targets
        run.losses += update(inputs, targets, None if phase.masks else False)
        run.follow(0.01)

    for number in range(WARM_UP + 2):
        step(number)
    wait(device)
    started = clock()
    for number in range(steps):
        step(number)
    wait(device)
    return steps / max(clock() - started, 1e-9)


def rounded(losses: Tensor) -> list[float]:
    return [round(value, 3) for value in losses.tolist()]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def variant_of(row: Mapping[str, Any]) -> Variant:
    """The variant in a row of the profile, which holds its fields."""
    values: dict[str, Any] = {key: value for key, value in row.items() if key in Variant.__dataclass_fields__}
    return Variant(**{**values, "off": tuple(values["off"])})
