"""Options that several commands have, and what a threshold does to a configuration. Imports no training."""

import argparse
from dataclasses import replace

from models.executors.registry import AUTO, CHOICES
from models.network.configs import ModelConfig


def add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=CHOICES, default=AUTO)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threshold", type=float, metavar="T", help="masking threshold instead of the model's")


def with_threshold(config: ModelConfig, threshold: float | None) -> ModelConfig:
    """None: the configuration's own. Raises ValueError where nothing is masked."""
    if threshold is None:
        return config
    if config.masking is None:
        raise ValueError(f"{config.name} has no masks, so --threshold {threshold:g} has no meaning; leave it out")
    return replace(config, masking=replace(config.masking, threshold=threshold))
