"""Loading: the models of a worker, how they are warmed up, and the facts that it tells the front end about them."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import AnytimeModel, Overridable, State, exits_of, run
from models.checkpoint import load_directory
from models.executors.machine import usable
from models.executors.precision import SHARES, Timer, seconds_to_last_exit
from models.executors.selection import build_fastest, choose_executor
from models.executors.verify import LIMIT_S, smooth_masks
from models.gains import Gains, Predictor
from models.imaging.geometry import MULTIPLE
from models.network.configs import GIGA
from models.network.flops import gmacs
from models.quality import Quality, uncertainty
from models.quantisation import Precision
from server.catalog import input_shape
from server.engine.messages import Broken, Chosen, LoadPlan, ModelFacts, Unloadable
from server.scheduling.costs import CostModel, Shape
from server.worker.batches import RUN_S, measure_batch, prepare_batch
from server.worker.progress import LoadingProgress

logger = logging.getLogger("anytime.loading")

WARM_UP_RUNS = 5
WARM_UP_SHARES = SHARES
"""The active share after each exit while warming up."""
READ_S = 120.0
"""The longest time to read a model's weights, from a slow disk, and to lay them out for an executor."""
STAGE_LEAST_S, STAGE_FACTOR = 6.0, 3.0
"""Once all stages have run, the next one may take longer than the longest of them by this factor, and at least that."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run.

    `quality`: its calibration, or None. `gains`: what its exits are worth, or None. `reason`, `precision_reason`: why
    its executor and its precision were chosen, empty if there was no choice. `max_batch`: see `ModelFacts`.
    """

    model: AnytimeModel
    quality: Quality | None = None
    gains: Gains | None = None
    reason: str = ""
    precision_reason: str = ""
    max_batch: int = 1

    def max_batch_at(self, shape: Shape) -> int:
        """The size of the largest batch of jobs of a shape. Only images of the configured size are batched: nothing was
        measured at others, and some executors would prepare for the batch while requests wait."""
        config = self.model.config
        return self.max_batch if self.max_batch > 1 and shape == input_shape(config, *config.size) else 1

    def good_enough(self, state: State, epsilon: float | None) -> bool:
        """Whether at most a share `epsilon` of the pixels would still change after the latest exit of `state`."""
        if self.quality is None or epsilon is None or state.exit is None:
            return False
        return self.quality.stops(uncertainty(state.exit, self.model.config.task, state.frame), epsilon)

    def shown(self, state: State) -> dict[Predictor, float]:
        """The predictors of the next gain, as the latest exit of `state` shows them. Only predictors that are cheap to
        compute are included."""
        found = state.latest()
        if self.gains is None or found.index == len(self.gains.exits):
            return {}
        wanted = {term.predictor for term in self.gains.exits[found.index].terms}
        known: dict[Predictor, Callable[[], float]] = {
            "active_share": lambda: found.active_share,
            "confidence": lambda: 1 - uncertainty(found, self.model.config.task, state.frame),
        }
        return {name: measure() for name, measure in known.items() if name in wanted}


def warm_up(name: str, model: AnytimeModel, costs: CostModel, progress: LoadingProgress, max_batch: int = 1) -> int:
    """Run every exit, so that the first request finds all in place, and learn the seconds at the configured size.
    Returns the size of the largest batch that pays, for images of the configured size.

    The image is noise, for which the network's own masks would be empty or full. Masks with the usual active shares
    replace them. If the costs and `max_batch` are known from the worker before, one run on the smallest image is
    enough, and one of each batch.
    """
    shape = input_shape(model.config, *model.config.size)
    doing = f"warming up {name}"
    progress.part(doing, RUN_S)
    if costs.typical_s(name, shape, 1):
        for _ in run(model, np.zeros((MULTIPLE, MULTIPLE, 3), np.uint8)):
            pass
        return prepare_batch(name, model, max_batch, progress)
    image = np.random.default_rng(0).integers(0, 256, (*model.config.size, 3), dtype=np.uint8)
    masks = smooth_masks(model.begin(image).shape, WARM_UP_SHARES, seed=0)
    longest_s = 0.0
    for number in range(1, WARM_UP_RUNS + 1):
        for exit_index, stage_s, active_share in _stages(model, image, masks):
            costs.observe(name, shape, exit_index, stage_s, active_share)
            longest_s = max(longest_s, stage_s)
            limit_s = RUN_S if number == 1 else max(STAGE_LEAST_S, STAGE_FACTOR * longest_s)
            progress.part(f"{doing}, after exit {exit_index} of run {number}", limit_s)
    return measure_batch(name, model, progress)


def _stages(
    model: AnytimeModel, image: NDArray[np.uint8], masks: Sequence[Tensor]
) -> Iterator[tuple[int, float, float]]:
    """Run to each exit in turn under `masks`, bool (h, w), one after each exit.

    Yields the exit's number, the seconds of its stage, without the time to put a mask in place, and the active share
    before the stage.
    """
    active_share = 1.0
    began_s = time.monotonic()
    state = model.begin(image)
    for exit_index in exits_of(model, [state]):
        model.render(state)
        yield exit_index, time.monotonic() - began_s, active_share
        active_share = state.latest().active_share
        if isinstance(model, Overridable) and model.config.masks_after(exit_index):
            active_share = float(masks[exit_index - 1].float().mean())
            positions = masks[exit_index - 1].to(state.latest().mask.device)
            masking = model.config.masking
            model.override(state, positions, shrinking=masking is not None and masking.shrinks)
        began_s = time.monotonic()


def facts(name: str, loaded: Loaded, costs: CostModel, progress: LoadingProgress) -> ModelFacts:
    """The facts about a model that is warm."""
    config = loaded.model.config
    progress.part(f"counting the operations of {name}", READ_S)
    shape = input_shape(config, *config.size)
    return ModelFacts(
        macs=tuple(value * GIGA for value in gmacs(config, *config.size)),
        seconds=tuple(costs.typical_s(name, shape, exit_index) for exit_index in range(1, config.exits + 1)),
        calibrated=loaded.quality is not None,
        chosen=Chosen(loaded.model.executor, loaded.reason, loaded.model.precision, loaded.precision_reason),
        costs=tuple(cost for cost in costs.snapshot() if cost.model == name),
        max_batch=loaded.max_batch,
    )


def load_models(plan: LoadPlan, progress: LoadingProgress, timer: Timer = seconds_to_last_exit) -> dict[str, Loaded]:
    """The models of a load plan, by name. `timer`: see `build_fastest`. Raises ValueError or OSError if one cannot be
    loaded, and what torch raises if the machine cannot run it."""
    loaded = {}
    threads = max(1, (plan.threads or usable()) // plan.sharing)
    for name, text in plan.models.items():
        path = Path(text)
        make, precision, chosen = partial(load_directory, path), plan.precision, plan.chosen.get(name)
        if chosen is None:
            progress.part(f"choosing the executor of {name}", LIMIT_S + READ_S)
            choice = choose_executor(path, plan.device, plan.executor)
            executor, reason = choice.executor, choice.reason
        else:
            executor, reason, precision = chosen.executor, chosen.reason, chosen.precision
        progress.part(f"reading {path}", READ_S)
        timed = partial(_timed, timer, progress, name)
        model, why = build_fastest(make, plan.device, executor, threads, precision, directory=path, timer=timed)
        why = chosen.precision_reason if chosen else why
        logger.info("%s runs on %s in %s%s", name, model.executor, model.precision, f": {why}" if why else "")
        loaded[name] = Loaded(
            model, load_quality(path, model.precision), load_gains(path, model.precision), reason, why
        )
    return loaded


def _timed(timer: Timer, progress: LoadingProgress, name: str, model: AnytimeModel) -> float:
    progress.part(f"timing {name} in {model.precision}", RUN_S)
    return timer(model)


def failure(error: Exception, doing: str, *, served: bool) -> Unloadable | Broken | None:
    """What to tell the front end if loading fails while the worker is `doing` something. None if the models were
    `served` before and are still there: what is missing now, for example memory, may be there for the next worker."""
    if isinstance(error, ValueError | FileNotFoundError | PermissionError):
        return Unloadable(str(error))
    if isinstance(error, OSError) and not served:
        return Unloadable(str(error))
    logger.error("loading failed while %s", doing, exc_info=error)
    reason = first_line(error)
    if isinstance(error, torch.AcceleratorError):  # a device that has failed does not work any more in this process
        return Broken(reason)
    if served:
        return None
    return Unloadable(
        f"{type(error).__name__} while {doing}: {reason}; mend the model, or take it out of the folder of models"
    )


def first_line(error: Exception) -> str:
    """What an error says, without the hints and traces that libraries add in further lines."""
    return (str(error) or "no reason was given").splitlines()[0]


def load_quality(directory: Path, precision: Precision = "fp32") -> Quality | None:
    """The calibration of a model in `precision`, or None if there is none.

    A calibration of other weights is not used, and the log says so. The model serves all the same, and requests that
    ask for `quality` are told that it is not calibrated.
    """
    try:
        return Quality.load(directory, precision)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is served without quality stop: %s", directory.name, error)
        return None


def load_gains(directory: Path, precision: Precision = "fp32") -> Gains | None:
    """What the exits of a model in `precision` are worth, or None if it was not measured.

    Gains of other weights are not used, and the log says so.
    """
    try:
        return Gains.load(directory, precision)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is served without measured gains: %s", directory.name, error)
        return None
