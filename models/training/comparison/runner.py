"""Trains and scores the variants of a comparison, each under the same conditions."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from models.anytime import AnytimeModel
from models.checkpoint import load_directory, load_weights
from models.data import datasets
from models.data.scenes import Scene
from models.directory import WEIGHTS_FILE
from models.evaluation import evaluate
from models.executors.processor import processor
from models.executors.selection import build
from models.network.configs import ModelConfig
from models.network.network import Network, build_network
from models.training import tasks
from models.training.comparison.report import ComparisonReport
from models.training.comparison.sampling import SampledExecutor, SampledNet, SampledSegmentation
from models.training.comparison.variants import PaperVariant, at_inference
from models.training.recipe import Recipe
from models.training.train import CHECKPOINT, Run, read_checkpoint, stream, train


@dataclass(frozen=True)
class TrainingLimits:
    """How long each variant is trained at most, and how often it is scored meanwhile. `resume`: start from its
    checkpoint."""

    resume: bool
    minutes: float
    steps: float
    score_every: float


@dataclass(frozen=True)
class Runner:
    """Trains and scores variants by the same recipe, on the same data and device.

    `output`: the folder with a model directory for each trained variant. `scenes`: the scenes that variants are scored
    on. `hardware`: see the function `hardware`.
    """

    recipe: Recipe
    data: Path
    output: Path
    device: torch.device
    executor: str
    threads: int
    scenes: Sequence[Scene]
    hardware: str

    def train_and_score(
        self,
        chosen: Sequence[PaperVariant],
        every: Sequence[PaperVariant],
        report: ComparisonReport,
        limits: TrainingLimits | None,
        stopping: Callable[[], bool],
    ) -> None:
        """Trains the weights that the `chosen` variants take, unless `limits` is None. Scores the variants whose
        weights are new, and adds the scores to `report`. `stopping` is called before every step of training and every
        variant; if it returns True, the comparison ends."""
        for name in dict.fromkeys(variant.weights for variant in chosen):
            if limits is not None:
                self.train(next(variant for variant in every if variant.name == name), limits, stopping)
            step = self.step(name)
            for variant in chosen:
                if stopping():
                    return
                if variant.weights == name and step and report.found.get(variant.name, {}).get("step") != step:
                    self.score(variant, self.model(variant), step, report)

    def score_weights(self, network: Network, chosen: Sequence[PaperVariant], report: ComparisonReport) -> None:
        """Scores one trained network as each of the `chosen` variants, which differ only in their masks."""
        for variant in at_inference(chosen):
            if variant.name not in report.found:
                self.score(variant, self.build(network, variant.model), None, report)

    def score(self, variant: PaperVariant, model: AnytimeModel, step: int | None, report: ComparisonReport) -> None:
        print(f"{variant.name}: scoring", file=sys.stderr)
        result = evaluate.segmentation(model, self.scenes)
        report.add(variant, result | {"step": step, "hardware": self.hardware})

    def train(self, variant: PaperVariant, limits: TrainingLimits, stopping: Callable[[], bool]) -> None:
        """Trains `variant` to the recipe's end or to the limits, or until `stopping` returns True."""
        directory = self.output / variant.name
        directory.mkdir(parents=True, exist_ok=True)
        masked_steps = sum(phase.steps for phase in self.recipe.phases if phase.masks)
        make = partial(SampledNet, steps=masked_steps) if variant.sampled else build_network
        run = Run.begin(variant.model, self.recipe, self.device, make=make)
        if limits.resume and self.step(variant.name):
            run.load(directory)
        if run.step == self.recipe.steps:
            return
        self.recipe.save(directory)
        print(f"{variant.name}: training from step {run.step}", file=sys.stderr)
        make_task = SampledSegmentation if variant.sampled else tasks.Segmentation
        task = make_task(variant.model, self.recipe, self.data, self.device)
        with stream(self.device):
            train(
                run,
                task,
                self.recipe,
                directory,
                minutes=limits.minutes,
                steps=limits.steps,
                score_every=limits.score_every,
                stopping=stopping,
            )

    def step(self, weights: str) -> int:
        """How many steps the variant of that name has been trained; 0 if it has no run. Raises ValueError if its run is
        by another recipe, or broken."""
        directory = self.output / weights
        if not (directory / CHECKPOINT).is_file():
            return 0
        self.recipe.check_same(directory)
        return int(read_checkpoint(directory / CHECKPOINT, mmap=True)["step"])

    def model(self, variant: PaperVariant) -> AnytimeModel:
        """The trained variant, ready to be scored."""
        directory = self.output / variant.weights
        if variant.sampled:
            sampled = SampledNet(variant.model)
            load_weights(sampled, directory / WEIGHTS_FILE)
            return SampledExecutor(sampled, str(self.device))
        return self.build(load_directory(directory), variant.model)

    def build(self, network: Network, model: ModelConfig) -> AnytimeModel:
        return build(with_masks_of(network, model), str(self.device), self.executor, self.threads)


def with_masks_of(network: Network, model: ModelConfig) -> Network:
    """A network of `model` with the weights of `network`, which may have other masks or none. A parameter of the
    masks that `network` lacks keeps its initial value.

    Raises ValueError if other parameters differ.
    """
    other = build_network(model)
    try:
        differing = other.load_state_dict(network.state_dict(), strict=False)
    except RuntimeError as error:  # says what does not fit in its second line
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"the weights of {network.config.name} do not fit {model.name}: {reason}") from error
    names = [name for found in differing for name in found if not other.may_lack(name)]
    if names:
        raise ValueError(
            f"the weights of {network.config.name} do not fit {model.name}: only one of them has {names[0]}"
        )
    return other.eval()


def scored_scenes(recipe: Recipe, data: Path, split: str | None) -> list[Scene]:
    """The scenes that every variant is scored on: a split, or else what the recipe holds out."""
    return datasets.scenes(data, split) if split else tasks.scenes(recipe, data)[1]


def hardware(device: torch.device) -> str:
    """The GPU's name, or the processor's and how many threads torch uses on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
