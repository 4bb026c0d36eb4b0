"""Which precision a model is computed in, and why: int8 where it has scales and is measured to be faster."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.anytime import AnytimeModel, Overridable, exits_of
from models.executors.verify import smooth_masks
from models.quantisation import Precision

ROUNDS = 3
"""How often each precision is run; the fastest run counts."""
SHARES = 0.5, 0.4, 0.25
"""The active share after each exit while it is measured: that of the shipped models on photos, see their cards."""

Timer = Callable[[AnytimeModel], float]
"""The seconds of one image from the start to the last exit."""


@dataclass(frozen=True)
class PrecisionChoice:
    """`reason`: why; empty if there was no choice."""

    precision: Precision
    reason: str


def choose_precision(fp32: AnytimeModel, int8: AnytimeModel, timer: Timer | None = None) -> PrecisionChoice:
    """The faster of the same model in two precisions, which take turns at the configured size."""
    measure = timer or seconds_to_last_exit
    rounds = [(measure(int8), measure(fp32)) for _ in range(ROUNDS)]
    int8_ms, fp32_ms = (1000 * min(times) for times in zip(*rounds, strict=True))
    reason = f"int8 takes {int8_ms:.2f} ms to exit {fp32.config.exits}, fp32 {fp32_ms:.2f} ms"
    return PrecisionChoice("int8" if int8_ms < fp32_ms else "fp32", reason)


def seconds_to_last_exit(model: AnytimeModel) -> float:
    """One image of noise at the configured size, under masks of `SHARES` that promise what the model's own do; putting
    them in place does not count."""
    image = np.random.default_rng(0).integers(0, 256, (*model.config.size, 3), dtype=np.uint8)
    state, spent_s = model.begin(image), 0.0
    masks = smooth_masks(state.shape, SHARES, seed=0)
    began_s = time.perf_counter()
    for exit_index in exits_of(model, [state]):
        spent_s += time.perf_counter() - began_s
        if isinstance(model, Overridable) and model.config.masks_after(exit_index):
            mask = masks[exit_index - 1].to(state.latest().mask.device)
            model.override(state, mask, shrinking=model.config.exit_masking.shrinks)
        began_s = time.perf_counter()
    return spent_s
