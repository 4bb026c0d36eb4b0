"""Measures what each exit of a model is worth, and finds what predicts the gain of the next exit.

`models/gains.py` says what the predictors are, and how a scheduler uses them.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.anytime import AnytimeModel
from models.evaluation.observations import ObservedImage
from models.executors.processor import processor
from models.gains import PREDICTORS, Gains, NextGain, Predictor, Profile, Term

FOLDS = 10
"""Parts of the images that are kept aside in turn, each a run of neighbours: frames of a clip resemble each other."""
SURE = 2.0
"""A predictor helps if it lowers the squared error on the parts kept aside by so many standard errors."""
PROFILES = 200
"""The images of which a file keeps the profile; they are spread evenly over all."""

Column = NDArray[np.float64]


def measure(model: AnytimeModel, images: Sequence[ObservedImage], source: str, fingerprint: str) -> Gains:
    """The gains of `model` on labelled images, of which those without a score are left out.

    Raises ValueError if fewer than 2 * FOLDS are left.
    """
    scored = [image for image in images if not math.isnan(image[0].utility)]
    if len(scored) < 2 * FOLDS:
        raise ValueError(f"{len(scored)} images of {source} have a score; give {2 * FOLDS} or more to measure gains")
    profiles = [profile(image) for image in scored]
    return Gains(
        exits=tuple(fit(profiles, index) for index in range(1, model.config.exits + 1)),
        # The stages of the first image took longer: the executor had everything to set up.
        profiles=tuple(
            profiles[round(place)] for place in np.linspace(1, len(profiles) - 1, min(PROFILES, len(profiles) - 1))
        ),
        images=len(profiles),
        source=source,
        machine=f"{processor()}, {torch.get_num_threads()} threads, {model.executor}",
        fingerprint=fingerprint,
        precision=model.precision,
    )


def profile(image: ObservedImage) -> Profile:
    """What an image showed, rounded as the file keeps it."""
    return Profile(
        utility=tuple(round(exit_.utility, 4) for exit_ in image),
        active_share=tuple(round(exit_.active_share, 4) for exit_ in image),
        confidence=tuple(round(1 - exit_.uncertainty, 4) for exit_ in image),
        change=tuple(round(exit_.change, 4) for exit_ in image),
        stage_ms=tuple(round(1000 * exit_.seconds, 2) for exit_ in image),
    )


def fit(profiles: Sequence[Profile], exit_index: int) -> NextGain:
    """The gain of exit `exit_index`, with the predictors of the exit before that help.

    Predictors are added one by one, the best first, as long as one helps those that are there already.
    """
    utility = np.array([(0.0, *profile.utility) for profile in profiles])
    gain = utility[:, exit_index] - utility[:, exit_index - 1]
    shown: dict[Predictor, Column] = {}
    if exit_index > 1:
        usable = PREDICTORS if exit_index > 2 else PREDICTORS[:2]  # exit 1 changes nothing
        shown = {name: np.array([getattr(profile, name)[exit_index - 2] for profile in profiles]) for name in usable}
    chosen: list[Predictor] = []
    mean_errors = errors = squared_errors(gain, [])
    while rest := [name for name in shown if name not in chosen]:
        tried = {name: squared_errors(gain, [shown[each] for each in (*chosen, name)]) for name in rest}
        best = min(rest, key=lambda name: fmean(tried[name]))
        if not helps(errors, tried[best]):
            break
        chosen.append(best)
        errors = tried[best]
    slopes = regress(gain, [shown[name] for name in chosen])[1:]
    return NextGain(
        mean=round(float(gain.mean()), 5),
        error=round(math.sqrt(errors.mean()), 5),
        mean_error=round(math.sqrt(mean_errors.mean()), 5),
        terms=tuple(
            Term(name, round(float(shown[name].mean()), 5), round(float(slope), 5))
            for name, slope in zip(chosen, slopes, strict=True)
        ),
    )


def regress(gain: Column, predictors: Sequence[Column]) -> Column:
    """The intercept and the slope of each predictor, by least squares."""
    solution, *_ = np.linalg.lstsq(_design(predictors, len(gain)), gain, rcond=None)
    return np.asarray(solution, np.float64)


def squared_errors(gain: Column, predictors: Sequence[Column]) -> Column:
    """The mean squared error on each part kept aside, by a regression on the others: (FOLDS,)."""
    design, errors = _design(predictors, len(gain)), []
    for aside in np.array_split(np.arange(len(gain)), FOLDS):
        others = np.delete(np.arange(len(gain)), aside)
        solution = regress(gain[others], [column[others] for column in predictors])
        errors.append(((gain[aside] - design[aside] @ solution) ** 2).mean())
    return np.array(errors)


def helps(before: Column, after: Column) -> bool:
    """Whether the errors on the parts fell by more than SURE standard errors of their fall."""
    fall = before - after
    return bool(fall.mean() > SURE * fall.std(ddof=1) / math.sqrt(len(fall)))


def report(gains: Gains) -> list[dict[str, Any]]:
    """For each exit its mean gain, its predictors, and the errors with and without them."""
    return [
        {
            "exit": index,
            "gain": exit_.mean,
            "error": exit_.error,
            "mean_error": exit_.mean_error,
            "predictors": [term.predictor for term in exit_.terms],
        }
        for index, exit_ in enumerate(gains.exits, 1)
    ]


def _design(predictors: Sequence[Column], images: int) -> Column:
    return np.stack([np.ones(images), *predictors], 1)
