"""Batches: the largest batch that pays for a model, measured while the model is warmed up."""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from models.anytime import AnytimeModel, State, exits_of
from server.worker.progress import LoadingProgress

logger = logging.getLogger("anytime.batches")

LARGEST = 8
"""Batches of more images are not tried."""
GAIN = 0.1
"""A batch pays if each image takes less time by this share than in a batch of half the size."""
ROUNDS = 3
"""How often each batch is timed. It takes turns with that of half the size, and the fastest run of each counts."""
LONGEST_S = 0.1
"""A batch that takes longer to exit 1 is not tried: not every executor can pause it for a newcomer."""
RUN_S = 60.0
"""The longest time of a first run, or of one that is timed, from the image to the last exit."""

NO_MEMORY = (MemoryError, torch.OutOfMemoryError)


def measure_batch(
    name: str, model: AnytimeModel, progress: LoadingProgress, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The size of the largest batch that pays, for images of the configured size. The batch is doubled as long as each
    image of it takes less time to exit 1. All exits of every batch that pays have run, because some executors prepare
    for a batch when it first runs.
    """
    image = _noise(model)
    progress.part(f"timing {name} alone", RUN_S)
    size, lacking = 1, ""
    each_s = {1: min(_seconds(model, image, 1, clock) for _ in range(ROUNDS))}
    while size < LARGEST and 2 * size * each_s[size] <= LONGEST_S:
        double = 2 * size
        progress.part(f"warming up {name} in batches of {double}", RUN_S)
        try:
            next(exits_of(model, _begun(model, image, double)))
            progress.part(f"timing {name} in batches of {double}", RUN_S)
            rounds = [[_seconds(model, image, number, clock) for number in (size, double)] for _ in range(ROUNDS)]
            each_s[size], each_s[double] = (min(times) for times in zip(*rounds, strict=True))
            if each_s[double] > (1 - GAIN) * each_s[size]:
                break
            _run(name, model, image, double, progress)
        except NO_MEMORY:
            lacking = f"; a batch of {double} needs too much memory"
            break
        size = double
    together = f"up to {size} images together" if size > 1 else "one image at a time"
    figures = ", ".join(f"{1000 * seconds:.2f} ms in a batch of {number}" for number, seconds in each_s.items())
    logger.info("%s computes %s: to exit 1, each takes %s%s", name, together, figures, lacking)
    return size


def prepare_batch(name: str, model: AnytimeModel, max_batch: int, progress: LoadingProgress) -> int:
    """Compute one batch of 2, of 4 and so on, up to `max_batch` images, as the worker before this one has measured it.
    Executors prepare for a batch when it first runs, so requests do not wait for that. Returns the size of the largest
    batch for which there is memory."""
    size, image = 1, _noise(model)
    while size < max_batch:
        try:
            _run(name, model, image, 2 * size, progress)
        except NO_MEMORY:
            logger.warning("%s needs too much memory for batches of %d; they stay at %d", name, 2 * size, size)
            break
        size *= 2
    return size


def _noise(model: AnytimeModel) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*model.config.size, 3), dtype=np.uint8)


def _begun(model: AnytimeModel, image: NDArray[np.uint8], size: int) -> list[State]:
    return [model.begin(image) for _ in range(size)]


def _seconds(model: AnytimeModel, image: NDArray[np.uint8], size: int, clock: Callable[[], float]) -> float:
    """The seconds to exit 1 for each image of a batch."""
    began_s = clock()
    next(exits_of(model, _begun(model, image, size)))
    return (clock() - began_s) / size


def _run(name: str, model: AnytimeModel, image: NDArray[np.uint8], size: int, progress: LoadingProgress) -> None:
    """Compute one batch of `size` images to the last exit."""
    doing = f"warming up {name} in batches of {size}"
    progress.part(doing, RUN_S)
    for exit_index in exits_of(model, _begun(model, image, size)):
        progress.part(f"{doing}, after exit {exit_index}", RUN_S)
